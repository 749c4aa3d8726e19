"""The run directory on disk: one reader and one writer of every file in it.

Layout (fixed)::

    RUN/config.json  metrics.jsonl  summary.json  report.html  probe.jsonl  landscape.json  oracle.jsonl
    RUN/checkpoints/epoch-00000.safetensors ...

Every file appears whole or not at all: written beside, flushed to disk, renamed.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from convexlab.errors import MisuseError

__all__ = [
    "Checkpoint",
    "Run",
    "read_checkpoint",
    "read_json",
    "write_atomically",
    "write_checkpoint",
    "write_json",
    "write_json_lines",
]

Row = dict[str, Any]


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` either keeps its old content or has all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp is private to the user; a result is as readable as any other file.
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _strict(value: Any) -> Any:
    """Replace what JSON has no word for: a NaN or an infinity becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, atomically."""
    write_atomically(path, (json.dumps(_strict(value), indent=2, allow_nan=False) + "\n").encode())


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    lines = (json.dumps(_strict(row), allow_nan=False) + "\n" for row in rows)
    write_atomically(path, "".join(lines).encode())


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors of a model, and what the file says of itself."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, atomically; the same bytes for the same content."""
    # Copies: safetensors takes none that share storage, as those of tied weights do.
    content = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    write_atomically(path, _ordered(safetensors_bytes(content, metadata=dict(metadata))))


def _ordered(file: bytes) -> bytes:
    """Return a safetensors file with its metadata in the order of their names; the library writes them in a random one.

    The format: 8 bytes that say how long the header is, the header as JSON, then the tensors, whose places count from
    there.
    """
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # The tensors stay aligned.
    return len(text).to_bytes(8, "little") + text + file[8 + length :]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that nobody vouches for: safetensors, or a PyTorch file of tensors only.

    Raises:
        MisuseError: no such file, a damaged one, or one that holds anything but named tensors.
    """
    if not path.is_file():
        raise MisuseError(f"no checkpoint {str(path)!r}: expected a .safetensors, .pt or .pth file.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(path, tensors, dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError) as error:
        raise MisuseError(
            f"cannot read checkpoint {str(path)!r}: it is damaged or not a safetensors file ({error}). "
            "Save or copy it again."
        ) from error


def _read_torch(path: Path) -> Checkpoint:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MisuseError(
            f"cannot read checkpoint {str(path)!r}: expected a file of tensors that torch.load reads with "
            f"weights_only=True ({type(error).__name__}). Save model.state_dict() again, best as safetensors."
        ) from error
    if isinstance(content, Mapping):
        for wrapper in ("state_dict", "model_state_dict", "model"):
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    named = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items()
    )
    if not named:
        raise MisuseError(
            f"checkpoint {str(path)!r} does not hold a state dict: expected a mapping of names to tensors."
        )
    return Checkpoint(path, dict(content), {})


class Run:
    """A run directory; every property reads the disk afresh.

    A run over several seeds is a directory of such directories: ``members`` lists them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the directory; nothing is read yet."""
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Return the run at ``path``.

        Raises:
            MisuseError: there is no run directory.
        """
        run = cls(path)
        if not run.config_path.is_file():
            raise MisuseError(
                f"{str(run.path)!r} is not a run directory: expected it to hold config.json, "
                "as written by `convexlab train two-phase`."
            )
        return run

    @property
    def config_path(self) -> Path:
        """Where the settings are."""
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        """Where the loss and the gradient norm of every epoch are."""
        return self.path / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        """Where the result is."""
        return self.path / "summary.json"

    @property
    def probe_path(self) -> Path:
        """Where the curvature of every probed checkpoint is."""
        return self.path / "probe.jsonl"

    @property
    def landscape_path(self) -> Path:
        """Where the loss on the plane of the training path is."""
        return self.path / "landscape.json"

    @property
    def oracle_path(self) -> Path:
        """Where the outcome of every switch is that the oracle tried."""
        return self.path / "oracle.jsonl"

    @property
    def report_path(self) -> Path:
        """Where the page for people is."""
        return self.path / "report.html"

    @property
    def config(self) -> Row:
        """The settings."""
        return read_json(self.config_path)

    @property
    def summary(self) -> Row | None:
        """The result, or None while the run is not finished."""
        return read_json(self.summary_path) if self.summary_path.is_file() else None

    @property
    def metrics(self) -> list[Row]:
        """One row an epoch and run, in the order of writing."""
        return list(_read_lines(self.metrics_path))

    @property
    def probe(self) -> list[Row]:
        """One row a probed checkpoint."""
        return list(_read_lines(self.probe_path))

    @property
    def oracle(self) -> list[Row]:
        """One row a switch that the oracle tried, by epoch."""
        return list(_read_lines(self.oracle_path))

    @property
    def checkpoints(self) -> list[Path]:
        """The two-phase run's checkpoints, by epoch."""
        return sorted((self.path / "checkpoints").glob("epoch-*.safetensors"), key=_numeric)

    def checkpoint_path(self, epoch: int) -> Path:
        """Where the checkpoint after ``epoch`` epochs is, or would be."""
        return self.path / "checkpoints" / f"epoch-{epoch:05d}.safetensors"

    @property
    def members(self) -> list[Run]:
        """The single-seed runs: itself, or its sub-directories when it spans several seeds."""
        folders = (path.parent for path in self.path.glob("seed-*/config.json"))
        return [Run(folder) for folder in sorted(folders, key=_numeric)] or [self]


def _numeric(path: Path) -> tuple[int, str]:
    """Order names by the number that they end in, also where it has more digits than the others."""
    return len(path.name), path.name


def read_json(path: Path) -> Row:
    """Read one JSON object.

    Raises:
        MisuseError: the file cannot be read, or holds something else.
    """
    return _parse(_read_text(path), f"cannot read {str(path)!r}: its content")


def _read_lines(path: Path) -> Iterator[Row]:
    if not path.is_file():
        return
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield _parse(line, f"cannot read {str(path)!r}: line {number}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MisuseError(f"cannot read {str(path)!r}: expected text in UTF-8 ({error}).") from error


def _parse(text: str, what: str) -> Row:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MisuseError(f"{what} is not JSON ({error}). Expected one object.") from error
    if not isinstance(value, dict):
        raise MisuseError(f"{what} is {type(value).__name__}, expected one JSON object.")
    return value

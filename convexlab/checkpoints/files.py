"""Checkpoint files: safetensors, and PyTorch's own where they hold tensors only."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from convexlab.checkpoints.distributed import DistributedCheckpoint, is_distributed
from convexlab.checkpoints.layouts import parts_of, state_of
from convexlab.checkpoints.packing import check_packing
from convexlab.checkpoints.timing import NO_TIME, Time, time_in, time_of_name
from convexlab.errors import MisuseError
from convexlab.machine.atomic import write_atomically

__all__ = [
    "Checkpoint",
    "CheckpointHeader",
    "add_tensors",
    "read_checkpoint",
    "read_header",
    "reread",
    "torch_content",
    "write_checkpoint",
]

# Of the metadata: a digest of the header without it and of all that follows.
_CHECKSUM, _DIGITS = "checksum", 16
# The padding behind a header that has a checksum. Another program that writes the file again with the same metadata
# pads less. Then the checksum is that of the former file.
_SEAL = b" " * 8
# The most that the format allows for a header.
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors of a model, and what the file says of itself."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    time: Time = NO_TIME
    """When along training, as the file or its name says."""
    key: str = ""
    """The name that the weights were under; "" where they are bare."""

    @property
    def header(self) -> CheckpointHeader:
        """All but the tensors."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        real = frozenset(name for name, tensor in self.tensors.items() if tensor.is_floating_point())
        return CheckpointHeader(self.path, shapes, self.metadata, real, self.time, self.key)


@dataclass(frozen=True)
class CheckpointHeader:
    """What can be known of a checkpoint without holding its tensors."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    """Shapes by the names of the tensors."""
    metadata: dict[str, str]
    real: frozenset[str]
    """Names of the tensors of floating-point numbers."""
    time: Time = NO_TIME
    """As of the `Checkpoint`; likewise ``key``."""
    key: str = ""


def add_tensors(digest: hashlib._Hash, checkpoint: Checkpoint) -> None:
    """Add a checkpoint's tensors to a digest, by name, whatever the file says beside them and in which order."""
    for _, tensor in sorted(checkpoint.tensors.items()):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def write_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, atomically; the same bytes for the same content."""
    # Copies: safetensors takes none that share storage, as those of tied weights do.
    content = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    write_atomically(path, _ordered(safetensors_bytes(content, metadata=dict(metadata))))


def _ordered(file: bytes) -> bytes:
    """Return a safetensors file with its metadata in the order of their names, and with a checksum among them.

    The library writes them in a random order.

    The format: 8 bytes that say how long the header is, the header as JSON, then the tensors, whose places count from
    there.
    """
    length = int.from_bytes(file[:8], "little")
    header, tensors = json.loads(file[8 : 8 + length]), memoryview(file)[8 + length :]
    digest = hashlib.sha256(_canonical(header))
    digest.update(tensors)
    metadata = header.get("__metadata__", {}) | {_CHECKSUM: digest.hexdigest()[:_DIGITS]}
    text = _canonical(header | {"__metadata__": metadata})
    text += b" " * (-len(text) % 8) + _SEAL  # The tensors stay aligned.
    return b"".join([len(text).to_bytes(8, "little"), text, tensors])


def _canonical(header: Mapping[str, Any]) -> bytes:
    """Return a header as it is written: its metadata first, by name."""
    metadata = dict(sorted(header.get("__metadata__", {}).items()))
    first = {"__metadata__": metadata} if metadata else {}
    others = {name: value for name, value in header.items() if name != "__metadata__"}
    return json.dumps(first | others, separators=(",", ":"), ensure_ascii=False).encode()


def _check_whole(path: Path) -> None:
    """Raise a ValueError if a safetensors file has a checksum that it does not fit."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, _LARGEST_HEADER))
        header = json.loads(text)
        metadata = dict(header.get("__metadata__", {}))
        stored = metadata.pop(_CHECKSUM, None)
        if stored is None or not text.endswith(_SEAL):
            return
        digest = hashlib.sha256(_canonical(header | {"__metadata__": metadata}))
        while part := file.read(2**20):
            digest.update(part)
    if digest.hexdigest()[:_DIGITS] != stored:
        raise ValueError("its content does not fit its checksum")


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read a checkpoint from an untrusted source: safetensors, PyTorch files of tensors only, or a folder of either.

    Args:
        path: a file, or a folder such as one of Hugging Face.
        key: the name in a PyTorch file that the weights are under; None takes the first that is known, see `state_of`.

    Raises:
        MisuseError: no such path, a damaged file, one that holds anything but named tensors, or a key beside
            safetensors.
    """
    if is_distributed(path):
        return _read_distributed(path, key)
    files = _files_of(path, key)
    parts = [_read_safetensors(part) if _is_safetensors(part) else _read_torch(part, key) for part in files]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return Checkpoint(path, tensors, parts[0].metadata, parts[0].time.or_else(time_of_name(path)), parts[0].key)


def read_header(path: Path, key: str | None = None) -> CheckpointHeader:
    """Read what a checkpoint says of itself, and refuse what `read_checkpoint` refuses.

    Of safetensors no tensor is held. A PyTorch file has no header: it is loaded and dropped.

    Raises:
        MisuseError: as `read_checkpoint` does.
    """
    if is_distributed(path):
        return _read_distributed(path, key, stand_ins=True).header
    files = _files_of(path, key)
    parts = [_read_header(part) if _is_safetensors(part) else _read_torch(part, key).header for part in files]
    shapes = {name: shape for part in parts for name, shape in part.shapes.items()}
    real = frozenset().union(*(part.real for part in parts))
    return CheckpointHeader(
        path, shapes, parts[0].metadata, real, parts[0].time.or_else(time_of_name(path)), parts[0].key
    )


def reread(header: CheckpointHeader) -> Checkpoint:
    """Return the checkpoint that a header was read of, its weights under the same name."""
    return read_checkpoint(header.path, header.key or None)


def _files_of(path: Path, key: str | None) -> list[Path]:
    files = parts_of(path)
    for file in files:
        if file.stat().st_size == 0:
            raise MisuseError(f"cannot read checkpoint {str(file)!r}: it is empty. Save or copy it again.")
    if key is not None and any(map(_is_safetensors, files)):
        raise MisuseError(
            f"checkpoint {str(path)!r} is of safetensors, which hold tensors under no other name: expected no key, got "
            f"{key!r}. Leave --key out."
        )
    return files


def _is_safetensors(path: Path) -> bool:
    return path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> Checkpoint:
    with _safetensors(path) as file:
        _check_whole(path)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = _metadata(file)
        return Checkpoint(path, tensors, metadata, time_in(metadata))


def _read_header(path: Path) -> CheckpointHeader:
    with _safetensors(path) as file:
        _check_whole(path)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        real = frozenset(name for name in shapes if file.get_slice(name).get_dtype().startswith(("F", "BF")))
        metadata = _metadata(file)
        return CheckpointHeader(path, shapes, metadata, real, time_in(metadata))


def _metadata(file: Any) -> dict[str, str]:
    metadata = dict(file.metadata() or {})
    metadata.pop(_CHECKSUM, None)
    return metadata


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:  # safe_open ships no types
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise MisuseError(
            f"cannot read checkpoint {str(path)!r}: it is damaged or not a safetensors file ({error}). "
            "Save or copy it again."
        ) from error


def _read_distributed(path: Path, key: str | None, *, stand_ins: bool = False) -> Checkpoint:
    stored = DistributedCheckpoint(path)
    state, name = state_of(stored.content, path, key)
    tensors = {name: tensor if stand_ins else stored.tensor(tensor) for name, tensor in state.items()}
    return Checkpoint(path, tensors, {}, time_in(stored.content).or_else(time_of_name(path)), name)


def _read_torch(path: Path, key: str | None) -> Checkpoint:
    content = torch_content(path)
    tensors, name = state_of(content, path, key)
    return Checkpoint(path, tensors, {}, time_in(content), name)


def torch_content(path: Path) -> Any:
    """Return the content of an untrusted PyTorch file: tensors, numbers, strings and containers of these.

    Raises:
        MisuseError: it is damaged, or holds anything else.
    """
    try:
        check_packing(path, path.stat().st_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What torch thinks of foreign files is no use to the reader.
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MisuseError(
            f"cannot read checkpoint {str(path)!r}: expected a file of tensors that torch.load reads with "
            f"weights_only=True ({type(error).__name__}). Save model.state_dict() again, best as safetensors."
        ) from error

"""Checkpoint files: safetensors, and PyTorch's own where they hold tensors only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes

from convexlab.errors import MisuseError
from convexlab.machine.atomic import write_atomically

__all__ = ["Checkpoint", "CheckpointHeader", "read_checkpoint", "read_header", "write_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors of a model, and what the file says of itself."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]

    @property
    def header(self) -> CheckpointHeader:
        """All but the tensors."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return CheckpointHeader(self.path, shapes, self.metadata)


@dataclass(frozen=True)
class CheckpointHeader:
    """What can be known of a checkpoint without holding its tensors."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    """By the names of the tensors."""
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
    _check_exists(path)
    if path.suffix != ".safetensors":
        return _read_torch(path)
    with _safetensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(path, tensors, dict(file.metadata() or {}))


def read_header(path: Path) -> CheckpointHeader:
    """Read what a checkpoint says of itself, and refuse what `read_checkpoint` refuses.

    Of safetensors no tensor is read. A PyTorch file has no header: it is loaded and dropped.

    Raises:
        MisuseError: as `read_checkpoint` does.
    """
    _check_exists(path)
    if path.suffix != ".safetensors":
        return _read_torch(path).header
    with _safetensors(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return CheckpointHeader(path, shapes, dict(file.metadata() or {}))


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise MisuseError(f"no checkpoint {str(path)!r}: expected a .safetensors, .pt or .pth file.")


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

"""Distributed checkpoints of `torch.distributed.checkpoint`: an index that is a pickle, and parts of tensors.

The pickle runs nothing. Of the classes that it names, a fixed list, none is imported: stand-ins that keep what they are
given take their place. Any other name ends the reading. Parts are read with ``weights_only=True``.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convexlab.checkpoints.packing import check_packing
from convexlab.checkpoints.timing import TIME_KEYS
from convexlab.errors import MisuseError

__all__ = ["DistributedCheckpoint", "is_distributed"]

_INDEX = ".metadata"


def is_distributed(path: Path) -> bool:
    """Return whether a folder is a distributed checkpoint."""
    return (path / _INDEX).is_file()


class _Inert:
    """Keeps what a pickle gives to an object of another class."""

    state: Any = None

    def __new__(cls, *_: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __getitem__(self, name: str) -> Any:
        return self.state.get(name)


_CLASSES = {
    "torch.distributed.checkpoint.metadata": frozenset(
        [
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        ]
    ),
    "torch.distributed.checkpoint.filesystem": frozenset(["_StorageInfo"]),
    "torch.serialization": frozenset(["_get_layout"]),
    "pathlib": frozenset(["PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"]),
    "pathlib._local": frozenset(["PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"]),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()):
            return _Inert
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}")


class DistributedCheckpoint:
    """What the index of a distributed checkpoint says, and the tensors that it leads to.

    Args:
        path: of the folder.

    Raises:
        MisuseError: the index is damaged, or names anything but the parts of tensors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with (path / _INDEX).open("rb") as file:
                index = _Unpickler(file).load()
            self._sources = {(key["fqn"], _whole(key["offset"])): part for key, part in index["storage_data"].items()}
            self._entries = dict(index["state_dict_metadata"])
            paths = index["planner_data"] or {}
            self._names: dict[int, str] = {}
            self.content: dict[Any, Any] = {}
            """The nested state: of each tensor a stand-in of its shape and dtype that holds no memory."""
            for name, entry in self._entries.items():
                self._place(name, entry, paths.get(name, (name,)))
        except Exception as error:
            raise self._damaged(error) from error

    def tensor(self, stand_in: Tensor) -> Tensor:
        """Return a tensor by its stand-in in `content`.

        Raises:
            MisuseError: a part is missing, damaged or of another shape.
        """
        name = self._names[id(stand_in)]
        try:
            return self._assembled(name, stand_in)
        except Exception as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> MisuseError:
        return MisuseError(
            f"cannot read the distributed checkpoint {str(self._path)!r}: expected an index of tensors alone and "
            f"their parts beside it ({type(error).__name__}: {error}). If you trust who made it, convert it: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt."
        )

    def _place(self, name: str, entry: _Inert, path: tuple[Any, ...]) -> None:
        """Put an entry where it was in the state that was saved."""
        inner = self.content
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        if entry.state:
            dtype = vars(torch)[entry["properties"].state[0]]
            stand_in = torch.empty((), dtype=dtype).expand(_whole(entry["size"]))
            self._names[id(stand_in)] = name
            inner[path[-1]] = stand_in
        elif len(path) == 1 and path[0] in TIME_KEYS:
            inner[path[-1]] = self._part(name, ())

    def _assembled(self, name: str, stand_in: Tensor) -> Tensor:
        chunks = [(_whole(chunk["offsets"]), _whole(chunk["sizes"])) for chunk in self._entries[name]["chunks"]]
        if sum(math.prod(sizes) for _, sizes in chunks) != stand_in.numel():
            raise ValueError(f"the parts of {name} do not cover it")
        parts = [self._part(name, offsets) for offsets, _ in chunks]
        for (_, sizes), part in zip(chunks, parts, strict=True):
            if not isinstance(part, Tensor) or (tuple(part.shape), part.dtype) != (sizes, stand_in.dtype):
                raise ValueError(f"a part of {name} is of another kind")
        tensor = torch.empty(stand_in.shape, dtype=stand_in.dtype)  # Not larger than the parts, which are there.
        for (offsets, sizes), part in zip(chunks, parts, strict=True):
            tensor[tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))] = part
        return tensor

    def _part(self, name: str, offsets: tuple[int, ...]) -> Any:
        """Return what is stored of an entry at a place in it."""
        source = self._sources[name, offsets]
        file = source["relative_path"]
        if not isinstance(file, str) or file != Path(file).name or source["transform_descriptors"]:
            raise ValueError(f"{name} is not in a plain file beside the index")
        with (self._path / file).open("rb") as opened:
            opened.seek(source["offset"])
            data = opened.read(source["length"])
        check_packing(io.BytesIO(data), len(data))
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _whole(numbers: Any) -> tuple[int, ...]:
    """Return sizes or offsets; none are those of a single number."""
    values = tuple(numbers or ())
    if not all(isinstance(value, int) and value >= 0 for value in values):
        raise ValueError(f"expected whole numbers, got {values!r}")
    return values

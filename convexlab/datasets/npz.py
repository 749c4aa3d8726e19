"""Data sets in NumPy's archive format, one file each."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convexlab.datasets.arrays import Source, source_from_arrays
from convexlab.errors import MisuseError
from convexlab.machine.memory import available_memory
from convexlab.wording.numbers import byte_size

__all__ = ["read_npz"]

KEYS = ("x_train", "y_train", "x_test", "y_test")
LAYOUT = (
    "an .npz archive with x_train (N, H, W) or (N, H, W, C), y_train (N,), x_test and y_test; "
    "make it with numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)"
)
# Bytes that may be packed as tightly as they like, and the ratio beyond that.
_SMALL, _LARGEST_RATIO = 2**26, 200
# What zipfile, zlib and NumPy raise on a file that is not such an archive, or is cut off, encrypted or pickled.
UNREADABLE = (
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: str) -> Source:
    """Read ``x_train``, ``y_train``, ``x_test`` and ``y_test`` from a file; other entries are left alone.

    Images are uint8 (0 to 255) or any real type (taken as it is), with the channels last. Pickled objects are refused.

    Raises:
        MisuseError: no such file, not such an archive, an entry missing, or entries that do not fit each other.
    """
    name, file = f"npz:{path}", Path(path).expanduser().absolute()
    if not path or not file.is_file():
        raise MisuseError(f"no file at {str(file)!r}; npz:FILE expects {LAYOUT}.")
    try:
        arrays = _read(file)
    except UNREADABLE as error:
        raise MisuseError(f"{str(file)!r} does not fit: {error}. npz:FILE expects {LAYOUT}.") from error
    return source_from_arrays(name, *(arrays[key] for key in KEYS), channels_last=True)


def _read(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:  # opened here, because numpy.load leaves it open where it fails
        archive = np.load(stream, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array, not an archive")
        if missing := [key for key in KEYS if key not in archive.files]:
            held = ", ".join(archive.files) or "nothing"
            raise ValueError(f"it lacks {', '.join(missing)} and holds {held}")
        assert archive.zip is not None  # until it is closed
        _check_sizes(archive.zip)
        return {key: archive[key] for key in KEYS}


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Refuse what would take more memory than there is, or than its entries hold, before any is unpacked."""
    entries = [archive.getinfo(f"{key}.npy") for key in KEYS]
    size, available = sum(entry.file_size for entry in entries), available_memory(torch.device("cpu"))
    if available is not None and size > available / 2:
        raise ValueError(
            f"its arrays take {byte_size(size)}, more than half of the {byte_size(available)} that are free"
        )
    packed = max(1, sum(entry.compress_size for entry in entries))
    if size > _SMALL and size / packed > _LARGEST_RATIO:
        raise ValueError(f"{byte_size(size)} are packed into {byte_size(packed)}: images do not compress that well")
    for entry in entries:
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize > entry.file_size:
            raise ValueError(f"{entry.filename} says shape {shape} of {dtype}, but holds {entry.file_size:,} bytes")

"""Data sets in NumPy's archive format, one file each."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from convexlab.datasets.arrays import Source, source_from_arrays
from convexlab.errors import MisuseError

__all__ = ["read_npz"]

KEYS = ("x_train", "y_train", "x_test", "y_test")
LAYOUT = (
    "an .npz archive with x_train (N, H, W) or (N, H, W, C), y_train (N,), x_test and y_test; "
    "make it with numpy.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)"
)
# What zipfile, zlib and NumPy raise on a file that is not such an archive, or is cut off, encrypted or pickled.
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)


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
        return {key: archive[key] for key in KEYS}

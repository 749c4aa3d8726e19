"""Pairs of arrays in NumPy's files, memory-mapped: batches of them, and never the set in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from convexlab.errors import FailureError, MisuseError
from convexlab.machine.random_state import spread_rows

__all__ = ["MappedPairs", "native", "open_pairs"]

LAYOUT = (
    "a folder with x.npy (N, ...) and y.npy (N, ...), or both files with a comma between; make them with numpy.save"
)

Pair = tuple[Tensor, Tensor]


class MappedPairs(Dataset[Pair]):
    """Batches of consecutive rows of two files, by number; in another process the files are opened anew.

    Rows are copied as they are asked for. Inputs of type uint8 are divided by 255, as in ``npz:FILE``. Other whole
    numbers, such as words of a text, become int64. Floating-point numbers stay.

    Args:
        x: file of the inputs, (N, ...).
        y: file of the targets, (N, ...).
        size: rows in a batch; the last may have fewer.
        rows: (M,) int64, ascending: only these; None is all.
    """

    def __init__(self, x: Path, y: Path, size: int, rows: Tensor | None = None) -> None:
        self._files, self.size, self._rows = (x, y), size, rows
        self._arrays: tuple[NDArray[Any], NDArray[Any]] | None = None
        self.examples = len(self._opened()[0]) if rows is None else len(rows)
        """N, or M."""

    @property
    def bytes(self) -> int:
        """What both files hold."""
        return sum(array.nbytes for array in self._opened())

    @property
    def most_readers(self) -> int:
        """Processes that can read at once."""
        return len(self)

    def sample(self, examples: int, seed: int) -> MappedPairs:
        """Return a sample of the examples, drawn from ``seed``: one of each of equal stretches of the files.

        Raises:
            MisuseError: more than there are, or fewer than one.
        """
        if not 1 <= examples <= self.examples:
            raise MisuseError(
                f"train_size of {str(self._files[0])!r} must be from 1 to {self.examples} (all its examples), got "
                f"{examples}."
            )
        rows = spread_rows(self.examples, examples, torch.Generator().manual_seed(seed))
        return MappedPairs(*self._files, self.size, rows)

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-self.examples // self.size)

    def __getitem__(self, index: int) -> Pair:
        """Return batch ``index`` as inputs and targets."""
        start = range(len(self))[index] * self.size
        stop = min(start + self.size, self.examples)
        return self._pair(slice(start, stop) if self._rows is None else self._rows[start:stop].numpy())

    def __iter__(self) -> Iterator[Pair]:
        """Yield the batches in order."""
        return (self[index] for index in range(len(self)))

    def of(self, rows: Tensor) -> Pair:
        """Return the pair of some rows (m,), in ascending order, as a disk reads them."""
        ascending = rows.cpu().sort().values
        return self._pair((ascending if self._rows is None else self._rows[ascending]).numpy())

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the arrays, which would be copied as a whole."""
        return vars(self) | {"_arrays": None}

    def _pair(self, rows: slice | NDArray[np.int64]) -> Pair:
        x, y = self._opened()
        inputs = torch.from_numpy(native(x[rows]))
        return inputs / 255 if x.dtype == np.uint8 else inputs, torch.from_numpy(native(y[rows]))

    def _opened(self) -> tuple[NDArray[Any], NDArray[Any]]:
        if self._arrays is None:
            try:
                x, y = (np.load(file, mmap_mode="r", allow_pickle=False) for file in self._files)
            except (OSError, ValueError, EOFError) as error:
                raise FailureError(f"{str(self._files[0].parent)!r} can no longer be read: {error}.") from error
            self._arrays = x, y
        return self._arrays


def open_pairs(place: str, size: int) -> MappedPairs:
    """Return the pairs in a folder, or in two files with a comma between.

    Raises:
        MisuseError: no such files, or arrays that are none of numbers, are empty or differ in length.
    """
    x, y = _files(place)
    lengths = [_check(file) for file in (x, y)]
    if lengths[0] != lengths[1]:
        raise MisuseError(
            f"npy:{place}: expected one target an input, got {lengths[0]} inputs in {str(x)!r} and {lengths[1]} "
            f"targets in {str(y)!r}."
        )
    return MappedPairs(x, y, size)


def _files(place: str) -> tuple[Path, Path]:
    parts = [Path(part).expanduser().absolute() for part in place.split(",")] if place else []
    if len(parts) == 1:
        parts = [parts[0] / "x.npy", parts[0] / "y.npy"]
    if len(parts) != 2:
        raise MisuseError(f"npy:PLACE expects {LAYOUT}; got {place!r}.")
    missing = [str(part) for part in parts if not part.is_file()]
    if missing:
        raise MisuseError(f"no file at {missing[0]!r}; npy:PLACE expects {LAYOUT}.")
    return parts[0], parts[1]


def _check(file: Path) -> int:
    """Return how many examples a file has, if it is one array of real numbers."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError) as error:
        raise MisuseError(
            f"{str(file)!r} does not fit: {str(error).rstrip('.')}. npy:PLACE expects {LAYOUT}."
        ) from error
    # A long double has more bytes than any number of torch.
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        got = f"type {array.dtype}" if isinstance(array, np.ndarray) else "an archive; that goes by --dataset npz:FILE"
        raise MisuseError(f"{str(file)!r} must be one array of real numbers of at most 64 bits, got {got}.")
    if array.ndim == 0 or array.size == 0:
        raise MisuseError(f"{str(file)!r} must hold at least one example, got shape {array.shape}.")
    return len(array)


def native(part: NDArray[Any]) -> NDArray[Any]:
    """Return rows as torch takes them: a copy in memory, in this machine's byte order, whole numbers as int64."""
    if part.dtype.kind == "f":
        return np.array(part, dtype=part.dtype.newbyteorder("="))
    if part.dtype == np.uint8:
        return np.array(part)
    return np.array(part, dtype=np.int64)

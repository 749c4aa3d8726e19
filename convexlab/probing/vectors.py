"""Many long vectors, of which only a part is in memory."""

from __future__ import annotations

from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Self

import torch
from torch import Tensor

__all__ = ["StoredVectors"]

# Bytes that are kept in memory before a file is made of them.
_IN_MEMORY = 2**26


class StoredVectors:
    """Vectors of one length and dtype, in a temporary file that is removed at the end of the context.

    Each is held while it is appended; afterwards a few entries of all of them are read at a time.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """Make the file in ``folder``, if it takes one; None is the system's place for temporary files."""
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY, dir=None if folder is None else str(folder))  # noqa: SIM115
        self._count = 0
        self._dtype = torch.float32
        self.size = 0
        """Entries of each."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def append(self, vector: Tensor) -> None:
        """Store a vector (n,) on the CPU behind the others."""
        self.size, self._dtype = vector.numel(), vector.dtype
        self._file.seek(self._count * self.size * self._dtype.itemsize)
        self._file.write(vector.contiguous().view(torch.uint8).numpy().tobytes())
        self._count += 1

    def part(self, index: int, start: int, stop: int) -> Tensor:
        """Return entries (stop - start,) of one vector."""
        self._file.seek((index * self.size + start) * self._dtype.itemsize)
        return torch.frombuffer(bytearray(self._file.read((stop - start) * self._dtype.itemsize)), dtype=self._dtype)

    def parts(self, start: int, stop: int) -> Tensor:
        """Return the same entries of all vectors, (count, stop - start)."""
        return torch.stack([self.part(index, start, stop) for index in range(self._count)])

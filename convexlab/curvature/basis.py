"""The orthonormal basis of a Krylov space, in blocks of rows that are allocated when they are reached."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from convexlab.machine.memory import release_freed_memory

__all__ = ["Basis"]

# A block has a quarter as many rows as there are before it, and at least this many rows and bytes. So a step takes few
# kernels, and a run that ends early has allocated little that it does not use.
_LEAST_ROWS, _LEAST_BYTES = 16, 2**20
# Of all vectors that are held twice while they are replaced by combinations of themselves.
_CHUNK_BYTES = 2**22


class Basis:
    """Vectors (n,), appended one by one. Products with all of them are matrix-vector products, one a block."""

    def __init__(self, first: Tensor, most: int) -> None:
        """Begin with one vector, whose dtype and device are the basis'; it takes at most ``most`` vectors."""
        self.dtype, self.device = first.dtype, first.device
        self._blocks: list[Tensor] = []
        self._count, self._to_come = 0, most
        self.append(first)

    def append(self, vector: Tensor) -> None:
        """Take a copy of a vector."""
        room = sum(map(len, self._blocks))
        if self._count == room:
            rows = min(max(_LEAST_ROWS, room // 4, _LEAST_BYTES // vector.nbytes), self._to_come)
            self._to_come -= rows
            if self._blocks and self.device.type == "cpu":
                release_freed_memory()  # Of the products since the last block.
            self._blocks.append(vector.new_empty((rows, len(vector))))
        self._count += 1
        self.last[:] = vector

    @property
    def first(self) -> Tensor:
        """The first vector; a view."""
        return self._blocks[0][0]

    @property
    def last(self) -> Tensor:
        """The vector that was appended last; a view."""
        *_, rows = self._rows()
        return rows[-1]

    def keep(self, count: int) -> None:
        """Forget all but the first ``count`` vectors; their memory stays with the basis."""
        self._count = count

    def compress(self, coefficients: Tensor) -> None:
        """Replace the vectors but the last by VC, for coefficients C (k, m) of the others; in place.

        Columns are taken a few at a time, so that it needs next to no memory.
        """
        weights = coefficients.to(device=self.device, dtype=self.dtype).T
        count, size = len(weights) + 1, self._blocks[0].shape[1]
        width = max(1, _CHUNK_BYTES // (self._count * self.dtype.itemsize))
        for start in range(0, size, width):
            columns = slice(start, start + width)
            vectors = torch.cat([rows[:, columns] for rows in self._rows()])
            replaced, position = torch.cat([weights @ vectors[:-1], vectors[-1:]]), 0
            for block in self._blocks:
                part = replaced[position : position + len(block)]
                block[: len(part), columns] = part
                position += len(part)
        self.keep(count)

    def project_out(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return a vector (n,) less its part in the span of the basis, and the last coefficient () of that part."""
        rest, coefficients = vector, vector
        for rows in self._rows():
            coefficients = rows @ rest
            if rest is vector:  # Which is the caller's, and not to be changed.
                rest = torch.addmv(rest, rows.T, coefficients, alpha=-1)
            else:
                rest.addmv_(rows.T, coefficients, alpha=-1)
        return rest, coefficients[-1]

    def without_part_in_first(self, vector: Tensor, count: int) -> Tensor:
        """Return a vector (n,) less its part in the span of the first ``count`` vectors."""
        rest, start = vector.clone(), 0
        for rows in self._rows():
            first = rows[: max(0, min(len(rows), count - start))]
            rest.addmv_(first.T, first @ rest, alpha=-1)
            start += len(rows)
        return rest

    def combined(self, coefficients: Tensor) -> Tensor:
        """Return CᵀV (m, n) for coefficients C (k, m) of the first k vectors, the rows of V."""
        weights = coefficients.to(device=self.device, dtype=self.dtype).T
        result = weights.new_zeros((len(weights), self._blocks[0].shape[1]))
        start, most = 0, weights.shape[1]
        for rows in self._rows():
            count = max(0, min(len(rows), most - start))
            result.addmm_(weights[:, start : start + count], rows[:count])
            start += count
        return result

    def _rows(self) -> Iterator[Tensor]:
        """Yield the vectors as matrices, block by block."""
        left = self._count
        for block in self._blocks:
            if left <= 0:
                return
            yield block[:left]
            left -= len(block)

"""The orthonormal basis of a Krylov space, in blocks of rows that are allocated when they are reached."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from convexlab.machine.memory import release_freed_memory
from convexlab.machine.ranks import ALONE, Ranks

__all__ = ["Basis"]

# A block has a quarter as many rows as there are before it, and at least this many rows and bytes. So a step takes few
# kernels, and a run that ends early has allocated little that it does not use.
_LEAST_ROWS, _LEAST_BYTES = 16, 2**20
# Of all vectors that are held twice while they are replaced by combinations of themselves.
_CHUNK_BYTES = 2**22


class Basis:
    """Vectors (n,), appended one by one. Products with all of them are matrix-vector products, one a block.

    Of several ranks each holds the same entries of all vectors, its part; inner products are summed over the ranks.
    """

    def __init__(self, first: Tensor, most: int, ranks: Ranks = ALONE) -> None:
        """Begin with a whole vector, whose dtype and device are the basis'; it takes at most ``most`` vectors."""
        self.dtype, self.device = first.dtype, first.device
        self._size, self._ranks = len(first), ranks
        self._blocks: list[Tensor] = []
        self._count, self._to_come = 0, most
        self.append(self.part_of(first))

    def part_of(self, vector: Tensor) -> Tensor:
        """Return this rank's entries of a vector (n,); a view."""
        return vector[self._ranks.part_of(self._size)]

    def norm(self, part: Tensor) -> Tensor:
        """Return the length () of a vector, by this rank's entries."""
        length: Tensor = torch.linalg.vector_norm(part)
        return self._ranks.added(length.square_()).sqrt_() if self._ranks.size > 1 else length

    def append(self, part: Tensor) -> None:
        """Take a copy of a vector, by this rank's entries."""
        room = sum(map(len, self._blocks))
        if self._count == room:
            rows = min(max(_LEAST_ROWS, room // 4, _LEAST_BYTES // max(1, part.nbytes)), self._to_come)
            self._to_come -= rows
            if self._blocks and self.device.type == "cpu":
                release_freed_memory()  # Of the products since the last block.
            self._blocks.append(part.new_empty((rows, len(part))))
        self._count += 1
        self._last[:] = part

    @property
    def first(self) -> Tensor:
        """The first vector (n,); a view where one rank holds all of it."""
        return self._ranks.joined(self._blocks[0][0], self._size)

    @property
    def last(self) -> Tensor:
        """The vector (n,) that was appended last; a view where one rank holds all of it."""
        return self._ranks.joined(self._last, self._size)

    @property
    def _last(self) -> Tensor:
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
        """Return a vector less its part in the span of the basis, and the last coefficient () of that part.

        The vector is given and returned by this rank's entries.
        """
        rest, coefficients = vector, vector
        for rows in self._rows():
            coefficients = self._ranks.added(rows @ rest)
            if rest is vector:  # Which is the caller's, and not to be changed.
                rest = torch.addmv(rest, rows.T, coefficients, alpha=-1)
            else:
                rest.addmv_(rows.T, coefficients, alpha=-1)
        return rest, coefficients[-1]

    def without_part_in_first(self, vector: Tensor, count: int) -> Tensor:
        """Return a vector (n,) less its part in the span of the first ``count`` vectors."""
        rest, start = self.part_of(vector).clone(), 0
        for rows in self._rows():
            first = rows[: max(0, min(len(rows), count - start))]
            rest.addmv_(first.T, self._ranks.added(first @ rest), alpha=-1)
            start += len(rows)
        return self._ranks.joined(rest, self._size)

    def combined(self, coefficients: Tensor) -> Tensor:
        """Return CᵀV (m, n) for coefficients C (k, m) of the first k vectors, the rows of V."""
        weights = coefficients.to(device=self.device, dtype=self.dtype).T
        result = weights.new_zeros((len(weights), self._blocks[0].shape[1]))
        start, most = 0, weights.shape[1]
        for rows in self._rows():
            count = max(0, min(len(rows), most - start))
            result.addmm_(weights[:, start : start + count], rows[:count])
            start += count
        return self._ranks.joined(result, self._size)

    def coordinates(self, vectors: Tensor) -> Tensor:
        """Return VᵀW (count, m) for the rows W (m, n), V of all vectors."""
        parts = vectors[:, self._ranks.part_of(self._size)].T
        return self._ranks.added(torch.cat([rows @ parts for rows in self._rows()]))

    def _rows(self) -> Iterator[Tensor]:
        """Yield the vectors as matrices, block by block."""
        left = self._count
        for block in self._blocks:
            if left <= 0:
                return
            yield block[:left]
            left -= len(block)

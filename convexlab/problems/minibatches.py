"""What Adam sees in an epoch: random rows of tensors in memory, or a loader's batches as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from convexlab.datasets.mapped import MappedPairs
from convexlab.machine.random_state import loader_generators, restore_all, seed_all
from convexlab.objective.batches import mapped

__all__ = ["LoaderBatches", "MappedRows", "MiniBatches", "RandomRows", "default_batch_size"]

# With 1,400 examples 512 would make three steps an epoch, and an epoch, the unit in which norms are compared, would be
# hardly any training.
_LARGEST, _LEAST = 512, 16


@runtime_checkable
class MiniBatches(Protocol):
    """The mini-batches of an epoch, each with the share of the epoch that is done before it."""

    def epoch(self, order: torch.Generator) -> Iterator[tuple[float, Any]]:
        """Yield (share of the epoch done, batch); ``order`` decides their order, if anything here does."""


class RandomRows:
    """Rows of tensors in memory, in a random order, cut into batches.

    Args:
        tensors: nested tensors of N rows each, in the form that the loss takes a batch.
        rows: N.
        size: rows in a batch; the last one of an epoch may have fewer.
    """

    def __init__(self, tensors: Any, rows: int, size: int) -> None:
        self._tensors = tensors
        self.rows = rows
        self.size = size

    def epoch(self, order: torch.Generator) -> Iterator[tuple[float, Any]]:
        """See `MiniBatches`."""
        for step, rows in enumerate(torch.randperm(self.rows, generator=order).split(self.size)):
            yield step * self.size / self.rows, self.of(rows)

    def of(self, rows: Tensor) -> Any:
        """Return the batch of some rows (m,)."""
        return mapped(lambda tensor: tensor[rows.to(tensor.device)], self._tensors)


class MappedRows(RandomRows):
    """Rows of files, in a random order; those of a batch are read, and no others.

    Args:
        pairs: the files.
        size: rows in a batch.
    """

    def __init__(self, pairs: MappedPairs, size: int) -> None:
        super().__init__(None, pairs.examples, size)
        self._pairs = pairs

    def of(self, rows: Tensor) -> Any:
        """See `RandomRows`."""
        return self._pairs.of(rows)


def default_batch_size(examples: int) -> int:
    """Return Adam's default batch size: the paper's 512, or a twentieth of a smaller set, at least 16."""
    return min(_LARGEST, max(_LEAST, examples // 20))


class LoaderBatches:
    """The batches of a re-iterable, such as a DataLoader, as they come.

    A generator of the loader's own is seeded for the epoch and left as it was: its order is the same after a resume.
    """

    def __init__(self, data: Iterable[Any]) -> None:
        self._data = data

    def epoch(self, order: torch.Generator) -> Iterator[tuple[float, Any]]:
        """See `MiniBatches`; without a length, no share of the epoch is known."""
        length = len(self._data) if isinstance(self._data, Sized) else None
        generators = loader_generators(self._data)
        states = [generator.get_state() for generator in generators]
        seed = int(torch.randint(2**63 - 1, (), generator=order))
        try:
            seed_all(generators, seed)
            for step, batch in enumerate(self._data):
                yield (step / length if length else 0.0), batch
        finally:
            restore_all(generators, states)

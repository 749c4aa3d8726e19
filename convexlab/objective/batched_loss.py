"""What an evaluation of the loss is made of: a point, a batch's loss, micro-batches with their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["BatchLoss", "Parts", "Point"]

Parts = Iterator[tuple[Any, float]]
"""(micro-batch, weight) pairs."""

BatchLoss = Callable[[Any, Any], Tensor]
"""``fn(model, batch)``: the scalar mean loss of one batch."""


@dataclass(frozen=True)
class Point:
    """Where an objective is evaluated."""

    leaves: list[Tensor]
    """The selected parameters."""
    rest: dict[str, Tensor]
    """The other parameters, by name."""
    buffers: dict[str, Tensor]
    """By name."""

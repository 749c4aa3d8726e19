"""The memory that products take, measured on the first micro-batch alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convexlab.linalg.operators import SymmetricOperator
from convexlab.machine.memory import LiveTensors
from convexlab.objective.batched_loss import BatchedLoss
from convexlab.objective.batches import leaves_of

__all__ = ["Footprint", "product_bytes", "sizes_of"]


@dataclass(frozen=True)
class Footprint:
    """Bytes of tensors that products take."""

    graphs: int
    """The gradient graphs that will be kept from one product to the next."""
    kept: int
    """Those of them that are kept now."""
    product: int
    """A product in addition: the graph that is not kept, temporaries, vectors."""


def sizes_of(loss: BatchedLoss) -> tuple[list[int], float]:
    """Return the bytes of the examples of each micro-batch, and the weight of the first in the mean.

    Of several ranks the sizes are this one's, and the weight is that among all micro-batches of one process.
    """
    with loss.evaluating():
        ours = [(_batch_bytes(batch), weight) for batch, weight in loss.parts()]
        weights = [weight for _, weight in (loss.alone().parts() if loss.ranks.shared else ours)]
    return [size for size, _ in ours], weights[0] / sum(weights)


def _batch_bytes(batch: Any) -> int:
    """Return the bytes of the tensors in a batch; 1 if there are none."""
    return sum(leaf.nbytes for leaf in leaves_of(batch) if isinstance(leaf, Tensor)) or 1


def product_bytes(loss: BatchedLoss, share: float, make: Callable[[BatchedLoss], SymmetricOperator]) -> int:
    """Return the bytes that a product of the operator from ``make`` takes, for the first micro-batch alone.

    It is charged as a ``share`` of a product with all micro-batches.
    """
    first = loss.of_first_part()
    with LiveTensors() as live:
        make(first).matvec(torch.ones(first.size, dtype=first.dtype, device=first.device))
    loss.spend(replace(first.cost * share, seconds=first.cost.seconds))
    peak: int = live.peak
    return peak

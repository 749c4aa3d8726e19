"""The empirical Fisher matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.objective.batched_loss import BatchedLoss, Point
from convexlab.objective.batches import common_rows, split
from convexlab.objective.output_curvature import OutputCurvature
from convexlab.objective.products import GaussNewtonOperator

__all__ = ["EmpiricalFisherOperator"]


class EmpiricalFisherOperator(GaussNewtonOperator):
    """Σ_i ω_i g_i g_iᵀ / Σ_i ω_i, g_i the gradient of the loss of example i and ω_i its weight in the mean.

    It is JᵀDJ with J the Jacobian of the examples' losses, that is, a Gauss-Newton matrix with these losses as the
    model's output.
    """

    def _output(self, loss: BatchedLoss, point: Point, batch: Any) -> Tensor:
        """Return the losses (B,) of those examples of a micro-batch that have a weight."""
        if common_rows(batch) is None:
            raise MisuseError(
                "expected batches whose tensors all have a row an example, for the empirical Fisher matrix is a sum "
                "over examples. Pad what differs in length."
            )
        rows = zip(loss.batch_output(point, batch).split(1), split(batch, 1), strict=True)
        return torch.stack([loss.criterion(row, part) for row, part in rows if loss.weight_of(part)])

    def _curvature(self, output: Tensor, batch: Any) -> OutputCurvature:
        weights = output.new_tensor([weight for weight in map(self._loss.weight_of, split(batch, 1)) if weight])
        return _Diagonal(weights / weights.sum())


@dataclass(frozen=True)
class _Diagonal:
    entries: Tensor

    def times(self, u: Tensor) -> Tensor:
        """Return the product with ``u``."""
        return self.entries * u

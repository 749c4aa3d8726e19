"""Products of the Hessian in fewer bits than float32, with their measured error."""

from __future__ import annotations

import torch
from torch import Tensor

from convexlab.linalg.vectors import flatten, norm
from convexlab.machine.precision import Precision
from convexlab.objective.batched_loss import BatchedLoss
from convexlab.objective.cost import Cost
from convexlab.objective.products import HessianOperator
from convexlab.objective.soundness import CHECKED_ROWS, random_unit

__all__ = ["NarrowHessian"]


class NarrowHessian(HessianOperator):
    """The Hessian by products in bfloat16 or TensorFloat-32; `reference` has those in float32.

    Matrices are multiplied and images convolved in fewer bits, in the graph of the gradient and in its products.
    Parameters and vectors stay in float32, as do the criterion where it is known apart from the model, and sums over
    micro-batches. The matrix is then neither exactly symmetric nor exactly the Hessian. Statements on its spectrum have
    to allow for that, see `curvature.inexact`.
    """

    exact = True

    def __init__(self, loss: BatchedLoss, precision: Precision) -> None:
        """Take the loss at its model's present parameters."""
        super().__init__(loss.in_precision(precision))
        self.precision = precision
        self._whole = loss
        self._reference = HessianOperator(loss)
        self._reference.exact = True
        self._point, self._leaves = self._reference._point, self._reference._leaves
        self.error: float | None = None
        """‖H̃u - Hu‖ / ‖Hu‖ for a random u and `CHECKED_ROWS` examples at most; None until `prove` has measured it."""

    @property
    def cost(self) -> Cost:
        """What the objective has spent, on this operator and otherwise."""
        return self._whole.cost

    @property
    def summary(self) -> str:
        """Words for a plan."""
        measured = "" if self.error is None else f", {self.error:.1%} off along a random direction"
        return f"products in {self.precision}{measured}"

    def reference(self) -> HessianOperator:
        """Return products in float32 at the same point, which show the error of these."""
        return self._reference

    def prove(self) -> None:
        """Check the products in full precision (`ObjectiveOperator.prove`), and measure how far off these are."""
        self._reference.prove()
        if self.error is None:
            few = self._whole.of_few(CHECKED_ROWS)
            full, narrow = (self._first_product(loss) for loss in (few, few.in_precision(self.precision)))
            few.spend(self._unit * 2)
            length = float(norm(full))
            self.error = float(norm(narrow - full)) / length if length else 0.0

    def recomputed(self, v: Tensor, *, seed: int) -> Tensor:
        """See `ObjectiveOperator.recomputed`."""
        return self._reference.recomputed(v, seed=seed)

    def second_difference(self, v: Tensor) -> float | None:
        """See `HessianOperator.second_difference`."""
        return self._reference.second_difference(v)

    def _first_product(self, loss: BatchedLoss) -> Tensor:
        """Return the product of a loss's first micro-batch with a random direction, uncharged."""
        operator = self._at(self._point, loss)
        with loss.evaluating():
            batch, _ = next(loss.parts())
            product = operator._product(operator._linearise(batch), random_unit(self._leaves, 0))
        return flatten(product).to(torch.float64)

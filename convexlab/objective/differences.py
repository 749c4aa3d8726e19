"""Products of the Hessian by differences of gradients: no second derivative is taken."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from convexlab.linalg.operators import SymmetricOperator
from convexlab.linalg.vectors import flatten, norm, scale_of, unflatten
from convexlab.machine.ranks import Ranks
from convexlab.objective.batched_loss import BatchedLoss, Point
from convexlab.objective.cost import Cost
from convexlab.objective.footprint import Footprint, product_bytes, sizes_of
from convexlab.objective.noise import NEARBY, POINTS, noise_of
from convexlab.objective.soundness import differences_of, nearest_pair, random_unit

__all__ = ["CentralDifferences", "GradientDifferences"]

# Relative disagreement of differences up to which its cause is not sought.
_CLEAR = 1e-3
# Times that the gap between both sides may be what rounding explains.
_FAR = 4.0


class GradientDifferences(SymmetricOperator):
    """H v as (g(θ + h v) - g(θ)) / h, one gradient a product, with errors of order h and ε / h.

    The size of the errors is not known, least of all where the loss has kinks. Compare with products of the Hessian.
    """

    def __init__(self, loss: BatchedLoss, point: Point) -> None:
        """Evaluate the gradient at the point."""
        super().__init__(loss.size, dtype=loss.dtype, device=loss.device)
        self.step = torch.finfo(loss.dtype).eps ** 0.5
        """h for a vector of unit length; the error is least near √ε, the better the smoother the loss."""
        self._loss = loss
        self._point = point
        self._gradient = loss.value_and_gradient_at(point)[1]

    @property
    def cost(self) -> Cost:
        """What the objective has spent, on this operator and otherwise."""
        return self._loss.cost

    @property
    def ranks(self) -> Ranks:
        """Which make products together."""
        return self._loss.ranks

    def footprint(self) -> Footprint:
        """Return what products take, measured on a product with the first micro-batch alone."""
        _, share = sizes_of(self._loss)
        product = product_bytes(self._loss, share, self._on)
        return Footprint(graphs=0, kept=0, product=product)

    def _on(self, loss: BatchedLoss) -> GradientDifferences:
        """Return the same for another loss."""
        return GradientDifferences(loss, self._point)

    def _multiply(self, v: Tensor) -> Tensor:
        return torch.stack([self._difference(column) for column in v.unbind(dim=1)], dim=1).to(self.dtype)

    def _difference(self, v: Tensor) -> Tensor:
        scale = self.step / norm(v).clamp_min(torch.finfo(self.dtype).tiny)
        parts = unflatten(v * scale.to(v), self._point.leaves)
        leaves = [(leaf.detach() + part).requires_grad_() for leaf, part in zip(self._point.leaves, parts, strict=True)]
        gradient = self._loss.value_and_gradient_at(replace(self._point, leaves=leaves))[1]
        difference: Tensor = (gradient - self._gradient) / scale
        return difference


class CentralDifferences(GradientDifferences):
    """H v as (g(θ + h v) - g(θ - h v)) / 2h, two gradients a product, for losses without exact products.

    Gradients are taken in float64 where the loss allows that. The step is a power of ten: that with which the
    difference along a random direction agrees best with that of the next larger step. Rounding makes small steps
    disagree, and kinks and higher derivatives make large ones. The search takes 16 gradients. `reference` has products
    with twice the step; the distance between the two estimates the error.
    """

    def __init__(self, loss: BatchedLoss, point: Point) -> None:
        """Find the step."""
        loss.require_one_function()
        loss.precisely(lambda dtype: self._begin(loss, point, dtype))

    def _begin(self, loss: BatchedLoss, point: Point, dtype: torch.dtype) -> None:
        SymmetricOperator.__init__(self, loss.size, dtype=dtype, device=loss.device)
        self._whole = loss
        self._loss = loss.in_dtype(dtype)
        self._point = replace(point, leaves=[leaf.detach().to(dtype, copy=True) for leaf in point.leaves])
        length = scale_of(self._point.leaves)
        direction = flatten(random_unit(self._point.leaves, 0))
        self._eps = self._loss.coarsest_eps(self._point)
        differences = differences_of(lambda step: self._gradient_at(direction, step), length, self._eps)
        move, spread = nearest_pair(differences)
        self.step = move * length
        """h for a vector of unit length."""
        size = float(norm(differences[move]))
        self.disagreement = spread / size if size else 0.0
        """Relative distance between the differences with this step and with ten times it, along a random direction."""
        self.cause = self._cause(direction) if self.disagreement > _CLEAR else ""
        """Why they disagree by more than `_CLEAR`: "kinks" of the loss or "rounding"; "" where they agree."""

    @property
    def summary(self) -> str:
        """Words for a plan."""
        because = f" for {self.cause}" if self.cause else ""
        return f"products by differences of gradients, which agree to {self.disagreement:.0e}{because}"

    def _cause(self, direction: Tensor) -> str:
        """Return "rounding" where noise measured nearby explains the gap between both sides, else "kinks"."""
        spacing = max(NEARBY, self._eps) * scale_of(self._point.leaves)
        # Beside the point itself: it may be a kink.
        nearby = torch.stack([self._gradient_at(direction, place * spacing) for place in range(1, POINTS + 1)])
        below, here, above = (self._gradient_at(direction, side * self.step) for side in (-1, 0, 1))
        # (g(θ + hu) - g(θ)) / h less (g(θ) - g(θ - hu)) / h: roundings of weights 1, -2 and 1.
        gap = float(norm(above - 2 * here + below)) / self.step
        return "rounding" if gap <= _FAR * 6**0.5 * noise_of(nearby) / self.step else "kinks"

    @property
    def cost(self) -> Cost:
        """What the objective has spent, on this operator and otherwise."""
        return self._whole.cost

    def reference(self) -> CentralDifferences:
        """Return products with twice the step, which show the error of these."""
        other = copy.copy(self)
        other.step = 2 * self.step
        return other

    def _on(self, loss: BatchedLoss) -> GradientDifferences:
        other = copy.copy(self)
        other._loss, other._whole = loss, loss.in_dtype(loss.dtype)
        other.dtype = loss.dtype
        other._point = replace(self._point, leaves=[leaf.to(loss.dtype) for leaf in self._point.leaves])
        return other

    def _gradient_at(self, direction: Tensor, step: float | Tensor) -> Tensor:
        parts = unflatten(direction * step, self._point.leaves)
        leaves = [(leaf + part).requires_grad_() for leaf, part in zip(self._point.leaves, parts, strict=True)]
        before = self._loss.cost
        gradient = self._loss.value_and_gradient_at(replace(self._point, leaves=leaves))[1]
        self._whole.spend(self._loss.cost - before)
        return gradient

    def _difference(self, v: Tensor) -> Tensor:
        scale = self.step / norm(v).clamp_min(torch.finfo(self.dtype).tiny)
        with torch.inference_mode(False):
            above, below = self._gradient_at(v, scale.to(v)), self._gradient_at(v, -scale.to(v))
        difference: Tensor = (above - below) / (2 * scale)
        return difference

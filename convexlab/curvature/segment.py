"""Convexity of the loss on the straight line between two points, from its values alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.vectors import accumulation_dtype, unflatten
from convexlab.objective import Objective

__all__ = ["Segment", "segment_curvature"]

_POINTS = 9  # Four differences of the fifth order.
# Rounding relative to a loss: at least that of a hundred additions, and at most √ε, beyond which it is no rounding.
_LEAST_ROUNDING = 100
# Order of the differences that show noise: a smooth loss adds to those of lower order, and of higher order are few.
_NOISE_ORDER = 5
# Standard deviations of noise by which a second difference may be off. Of 20,000 draws of independent errors at nine
# points, one had a larger error.
_NOISE_FACTOR = 50


@dataclass(frozen=True)
class Segment:
    """The loss at evenly spaced points of a segment."""

    values: tuple[float, ...]
    """(k,), ends included."""
    second_differences: tuple[float, ...]
    """(k - 2,), L₋ - 2 L + L₊ at each inner point; in the unit of the loss."""
    rounding: float
    """Bound on the error of a second difference, in the unit of the loss."""

    @property
    def convex(self) -> bool:
        """Whether no second difference is negative, as it must be on a segment within a convex region.

        False where a value is not finite.
        """
        return self._finite and min(self.second_differences) >= -self.rounding

    @property
    def least(self) -> float:
        """The smallest second difference over the range of the values; NaN where one of them is not finite.

        Below -`rounding` over that range it proves the loss non-convex here.
        """
        if not self._finite:
            return math.nan
        span = max(self.values) - min(self.values)
        return min(self.second_differences) / span if span > 0 else 0.0

    @property
    def _finite(self) -> bool:
        return all(map(math.isfinite, self.values))


def segment_curvature(objective: Objective, begin: Tensor, end: Tensor, *, points: int = _POINTS) -> Segment:
    """Return the loss along the segment between two flat vectors (n,); the model's parameters do not change.

    Costs a value a point, made in float64 where the loss allows that. A convex function is convex on every segment. A
    function that is convex on a segment may bend downwards in other directions, or between the points.

    Where the loss is a small difference of large numbers, its rounding is larger than its size suggests. With nine
    points or more it is estimated from differences of higher order. These are small for a smooth function and so show
    the noise (Moré and Wild 2011, doi 10.1137/100786125, section 3.1).

    Raises:
        MisuseError: fewer than three points, or vectors of another shape.
    """
    if points < 3:
        raise MisuseError(f"expected at least 3 points for a second difference, got {points!r}.")
    if begin.shape != (objective.size,) or end.shape != (objective.size,):
        raise MisuseError(
            f"expected ends of shape ({objective.size},), got {tuple(begin.shape)} and {tuple(end.shape)}."
        )
    dtype = accumulation_dtype(objective.device)
    try:
        values = _values(objective, begin, end, points, dtype)
    except RuntimeError:  # The loss holds tensors of its own dtype.
        dtype = objective.dtype
        values = _values(objective, begin, end, points, dtype)
    return Segment(tuple(values.tolist()), tuple(values.diff(n=2).tolist()), _rounding(values, torch.finfo(dtype).eps))


def _values(objective: Objective, begin: Tensor, end: Tensor, points: int, dtype: torch.dtype) -> Tensor:
    """Return the loss (k,) at the points, which are not rounded to the model's dtype: that would bend the line."""
    exact = objective.in_dtype(dtype)
    point = exact.point(requires_grad=False)
    first, last = (vector.to(device=exact.device, dtype=dtype) for vector in (begin, end))
    values = [
        float(exact.value_at(replace(point, leaves=unflatten(torch.lerp(first, last, share), point.leaves))))
        for share in torch.linspace(0.0, 1.0, points, dtype=torch.float64).tolist()
    ]
    objective.spend(exact.cost)
    return torch.tensor(values, dtype=torch.float64)


def _rounding(values: Tensor, precision: float) -> float:
    """Return by how much a second difference of the values may be off."""
    scale = float(values.abs().max())
    least, most = _LEAST_ROUNDING * precision * scale, math.sqrt(precision) * scale
    if len(values) < _POINTS:
        return least
    # σ² is (k!)² / (2k)! times the mean square of the k-th differences.
    variance = values.diff(n=_NOISE_ORDER).square().mean() / math.comb(2 * _NOISE_ORDER, _NOISE_ORDER)
    return min(max(least, _NOISE_FACTOR * math.sqrt(float(variance))), most)

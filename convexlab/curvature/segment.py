"""Convexity of the loss on the straight line between two points, from its values alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.objective import Objective
from convexlab.parameters import accumulation_dtype, unflatten

__all__ = ["Segment", "segment_curvature"]

# Of a loss summed in float64 from outputs in float64: a hundred times the rounding of one addition.
_ROUNDING = 100 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Segment:
    """The loss at evenly spaced points of a segment."""

    values: tuple[float, ...]
    """(k,), ends included."""
    second_differences: tuple[float, ...]
    """(k - 2,), L₋ - 2 L + L₊ at each inner point; in the unit of the loss."""
    rounding: float
    """What a second difference may err by."""

    @property
    def convex(self) -> bool:
        """Whether no second difference is negative: so it must be on a segment within a convex region."""
        return min(self.second_differences) >= -self.rounding

    @property
    def least(self) -> float:
        """The smallest second difference over the range of the values; negative proves the loss non-convex here."""
        span = max(self.values) - min(self.values)
        return min(self.second_differences) / span if span > 0 else 0.0


def segment_curvature(objective: Objective, begin: Tensor, end: Tensor, *, points: int = 9) -> Segment:
    """Return the loss along the segment between two flat vectors (n,), evaluated in float64.

    Costs a value a point. A convex function is convex on every segment; one that is convex on a segment may bend
    downwards in other directions, or between the points.

    Raises:
        MisuseError: fewer than three points, or vectors of another shape.
    """
    if points < 3:
        raise MisuseError(f"expected at least 3 points for a second difference, got {points!r}.")
    if begin.shape != (objective.size,) or end.shape != (objective.size,):
        raise MisuseError(
            f"expected ends of shape ({objective.size},), got {tuple(begin.shape)} and {tuple(end.shape)}."
        )
    exact = objective.in_dtype(accumulation_dtype(objective.device))
    point = exact.point(requires_grad=False)
    first, last = (vector.to(device=exact.device, dtype=exact.dtype) for vector in (begin, end))
    # Not rounded to the model's dtype, which would bend the line: the model itself is left where it is.
    values = [
        float(exact.value_at(replace(point, leaves=unflatten(torch.lerp(first, last, share), point.leaves))))
        for share in torch.linspace(0.0, 1.0, points, dtype=torch.float64).tolist()
    ]
    objective.spend(exact.cost)
    differences = tuple(
        before - 2 * here + after for before, here, after in zip(values, values[1:], values[2:], strict=False)
    )
    return Segment(tuple(values), differences, _ROUNDING * max(map(abs, values)))

"""Slices of the loss: its values along a line, beside the quadratic model of slope and curvature at the middle."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlab.curvature.verdict import Verdict
from convexlab.errors import MisuseError
from convexlab.linalg.vectors import accumulation_dtype, unflatten
from convexlab.objective import Objective

__all__ = ["Slice", "check_points", "extreme_slices", "loss_slice", "losses_at", "reach_of"]

# The share of the loss that the curvature term is at the end of a slice.
_CHANGE = 0.25


@dataclass(frozen=True)
class Slice:
    """The loss at evenly spaced steps along a unit vector, on both sides of a point."""

    steps: tuple[float, ...]
    """(k,), distances from the point, 0 in the middle."""
    losses: tuple[float, ...]
    """(k,)."""


def check_points(points: int) -> None:
    """Raise a MisuseError unless a slice of that many points has a middle and both sides."""
    if not isinstance(points, int) or points < 3 or points % 2 == 0:
        raise MisuseError(f"expected an odd number of points from 3, so that one is the middle, got {points!r}.")


def reach_of(loss: float, curvature: float, resolution: float = 0.0) -> float | None:
    """Return the step s at which the curvature term ½ |curvature| s² is a quarter of the loss.

    The middle points are near enough to show the curvature. The outer points are far enough to show where the quadratic
    model ends. On half-trained vision transformers the model held up to between a sixth of s and s. A curvature within
    ``resolution`` of zero counts as ``resolution``, as s would have no limit. None where there is no such step.
    """
    bend = max(abs(curvature), resolution)
    reach = math.sqrt(2 * _CHANGE * abs(loss) / bend) if bend > 0 and math.isfinite(bend + loss) else 0.0
    return reach if 0 < reach < math.inf else None


def loss_slice(objective: Objective, direction: Tensor, *, loss: float, reach: float, points: int = 13) -> Slice:
    """Return the loss from -``reach`` to ``reach`` along a unit vector (n,); the model stays where it is.

    Costs ``points`` - 1 values, because the value in the middle is known.

    Args:
        objective: at the model's present parameters.
        direction: (n,), of unit length.
        loss: the objective's value here.
        reach: the largest step.
        points: how many, an odd number.

    Raises:
        MisuseError: an even number of points or fewer than 3, or a direction of another shape.
    """
    check_points(points)
    if direction.shape != (objective.size,):
        raise MisuseError(f"expected a direction of shape ({objective.size},), got {tuple(direction.shape)}.")
    middle = points // 2
    steps = [reach * k / middle for k in range(-middle, middle + 1)]
    exact = accumulation_dtype(objective.device)
    start, along = objective.flat_parameters().to(exact), direction.to(device=objective.device, dtype=exact)
    losses = losses_at(objective, (start + step * along for step in steps if step)).tolist()
    return Slice(tuple(steps), (*losses[:middle], loss, *losses[middle:]))


def extreme_slices(objective: Objective, verdict: Verdict, loss: float, points: int) -> dict[str, Slice]:
    """Return slices along the eigenvectors of the ``smallest`` and the ``largest`` eigenvalue, each to its `reach_of`.

    Costs two thirds of a gradient equivalent for each of ``points`` - 1. Empty without points, or where the loss is
    zero.
    """
    if not points:
        return {}
    ends, slices = verdict.extremes, {}
    # Below its floor the verdict does not resolve curvature.
    resolution = max(verdict.floor * max(abs(ends.smallest), abs(ends.largest)), verdict.rounding_floor)
    for name, curvature, vector in (
        ("smallest", ends.smallest, ends.smallest_vector),
        ("largest", ends.largest, ends.largest_vector),
    ):
        reach = reach_of(loss, curvature, resolution)
        if reach is not None:
            slices[name] = loss_slice(objective, vector, loss=loss, reach=reach, points=points)
    return slices


def losses_at(objective: Objective, points: Iterable[Tensor]) -> Tensor:
    """Return the loss at flat vectors (n,), one value each, as (k,) on the CPU in float64.

    The model stays where it is, and the host waits for the device once.
    """
    here = objective.point(requires_grad=False)
    losses = [
        objective.value_at(replace(here, leaves=unflatten(theta.to(objective.dtype), here.leaves))) for theta in points
    ]
    return torch.stack(losses).cpu().double() if losses else torch.empty(0, dtype=torch.float64)

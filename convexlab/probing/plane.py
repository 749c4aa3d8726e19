"""The loss on the plane that holds most of a training path."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.curvature.slices import losses_at
from convexlab.errors import MisuseError
from convexlab.linalg.vectors import accumulation_dtype
from convexlab.objective import Objective
from convexlab.objective.cost import Cost
from convexlab.probing.pca import Projection, project
from convexlab.probing.vectors import StoredVectors
from convexlab.runs.plane import PathPlane, Waypoint

__all__ = ["Milestone", "measure_plane"]

# What is shown beyond the path on either side, as a share of its extent.
_MARGIN = 0.25
# The least height of the plane over its width: of a path that is nearly straight there would be nothing to see.
_FLATTEST = 0.5
# A sample of fewer examples says too little of the loss, whatever it may cost.
_LEAST_EXAMPLES = 64
_VALUE = Cost(values=1).gradient_equivalents


@dataclass(frozen=True)
class Milestone:
    """A checkpoint of a path."""

    checkpoint: str
    epoch: int
    phase: str


def measure_plane(
    objective: Objective,
    path: Sequence[Milestone],
    weights: StoredVectors,
    *,
    train_size: int | None,
    budget: float,
    points: int = 13,
    key: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PathPlane | None:
    """Evaluate the loss on a grid of the plane of the first two principal components of a path.

    Where the grid would cost more than ``budget``, the loss is that of a random sample of the examples. The model
    stays where it is; its buffers, such as running statistics, are used as they are, and should be the last
    checkpoint's.

    Args:
        objective: the training loss.
        path: checkpoints by epoch.
        weights: of each of them, (n,).
        train_size: examples of the objective; None where nothing counts them: then the whole loss is evaluated,
            whatever it costs.
        budget: gradient equivalents.
        points: of the grid along the first direction; there are as many as that, or fewer, along the second.
        key: see `PathPlane`.
        progress: called after each row of the grid.

    Returns:
        None where the checkpoints lie on one line: fewer than three that differ do.

    Raises:
        MisuseError: fewer than 3 points.
    """
    if points < 3:
        raise MisuseError(f"expected a grid of at least 3 points, got {points!r}.")
    projection = project(weights)
    if projection is None:
        return None
    columns, rows = _grid(projection.coordinates, points)
    begin, sample, examples = time.perf_counter(), objective, train_size
    if train_size is not None:
        affordable = math.floor(train_size * budget / (_VALUE * len(columns) * len(rows)))
        examples = min(train_size, max(_LEAST_EXAMPLES, affordable))
        sample = objective if examples == train_size else objective.sample(examples)
    losses = _losses(sample, weights.part(len(weights) - 1, 0, weights.size), projection, columns, rows, progress)
    places = zip(path, *projection.coordinates.T.tolist(), projection.distances.tolist(), strict=True)
    return PathPlane(
        key=key,
        checkpoints=tuple(Waypoint(m.checkpoint, m.epoch, m.phase, x, y, off) for m, x, y, off in places),
        explained_variance=projection.explained,
        x=tuple(columns),
        y=tuple(rows),
        losses=losses,
        examples=examples,
        train_size=train_size,
        # What was charged, without the rounding that adding it to earlier costs brings.
        gradient_equivalents=_VALUE * len(columns) * len(rows) * sample.share,
        seconds=time.perf_counter() - begin,
    )


def _losses(
    objective: Objective,
    origin: Tensor,
    projection: Projection,
    x: Sequence[float],
    y: Sequence[float],
    progress: Callable[[int, int], None],
) -> tuple[tuple[float, ...], ...]:
    """Return the losses (q, p): every row of the grid is waited for, so that progress is true."""
    exact = accumulation_dtype(objective.device)
    start = origin.to(device=objective.device, dtype=exact)
    right, up = projection.directions.to(device=objective.device, dtype=exact)
    rows = []
    for done, height in enumerate(y, start=1):
        begin = start + height * up
        losses = losses_at(objective, (begin + step * right for step in x))
        rows.append(tuple(torch.where(losses.isfinite(), losses, math.nan).tolist()))
        progress(done, len(y))
    return tuple(rows)


def _grid(coordinates: Tensor, points: int) -> tuple[list[float], list[float]]:
    """Return rising coordinates along both directions, about equally far apart: so the picture keeps all angles."""
    low, high = coordinates.amin(dim=0), coordinates.amax(dim=0)
    middle = (low + high) / 2
    width, height = ((high - low) * (1 + 2 * _MARGIN)).tolist()
    width = max(width, height)
    height = max(height, _FLATTEST * width)
    rows = min(points, max(3, round((points - 1) * height / width) + 1))

    def axis(centre: float, extent: float, count: int) -> list[float]:
        return torch.linspace(centre - extent / 2, centre + extent / 2, count, dtype=torch.float64).tolist()

    return axis(float(middle[0]), width, points), axis(float(middle[1]), height, rows)

"""Steepest descent with infinitely small steps on a loss of few parameters, with its exact curvature along the way.

Along the flow dp/dt = -g the squared norm changes by d‖g‖²/dt = -2gᵀHg. So the norm peaks where the curvature along the
gradient changes its sign from minus to plus, whatever the smallest eigenvalue of H does there. Where H has no negative
eigenvalue the norm falls. So its last peak comes no later than the last entry into a convex region, but can come
sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from convexlab.errors import MisuseError

__all__ = ["FlowPath", "Moment", "PointCurvature", "curvature_at", "descend"]

Floats = npt.NDArray[np.float64]
RowLoss = Callable[[Tensor], Tensor]
"""Maps parameters (m, n), a point a row, to losses (m,), each of its own row only; every row may have its own task."""

# Of the integrator, per step: far below anything that is read off a path.
_RELATIVE, _ABSOLUTE = 1e-9, 1e-11


class PointCurvature(NamedTuple):
    """A loss at points (m, n), float64."""

    value: Floats
    """(m,)."""
    gradient: Floats
    """(m, n)."""
    hessian: Floats
    """(m, n, n)."""

    @property
    def norm(self) -> Floats:
        """‖g‖, (m,)."""
        norm: Floats = np.sqrt((self.gradient**2).sum(axis=1))
        return norm

    @property
    def along_gradient(self) -> Floats:
        """gᵀHg / gᵀg, (m,); NaN where the gradient is zero."""
        along, squared = np.einsum("mi,mij,mj->m", self.gradient, self.hessian, self.gradient), self.norm**2
        quotient: Floats = np.divide(along, squared, out=np.full_like(along, np.nan), where=squared > 0)
        return quotient

    @property
    def smallest(self) -> Floats:
        """The smallest eigenvalue of the Hessian, (m,)."""
        smallest: Floats = np.asarray(np.linalg.eigvalsh(self.hessian), dtype=np.float64)[:, 0]
        return smallest


@dataclass(frozen=True)
class Moment:
    """A point of a path."""

    time: float
    """In the integrator's own pace: it has no meaning but its order."""
    value: float
    """The loss."""
    norm: float
    position: tuple[float, ...]


@dataclass(frozen=True)
class FlowPath:
    """One path of steepest descent, at ``k`` samples until it arrived."""

    position: Floats
    """(k, n)."""
    value: Floats
    """(k,), falling."""
    norm: Floats
    """(k,)."""
    along_gradient: Floats
    """(k,), gᵀHg / gᵀg."""
    smallest: Floats
    """(k,), the smallest eigenvalue."""
    arrived: bool
    """Whether the norm fell below the tolerance."""
    norm_peaks: tuple[Moment, ...]
    """Maxima of the norm inside the path, found from the norm alone."""
    along_changes: tuple[Moment, ...]
    """Where gᵀHg changes its sign."""
    smallest_changes: tuple[Moment, ...]
    """Where the smallest eigenvalue changes its sign."""

    @property
    def ends_convex(self) -> bool:
        """Whether the smallest eigenvalue is positive at the end."""
        return bool(self.smallest[-1] > 0)

    @property
    def is_simple(self) -> bool:
        """Whether it is what the paper expects: first non-convex, then convex, one swap between them."""
        return bool(self.smallest[0] < 0) and self.ends_convex and len(self.smallest_changes) == 1


def curvature_at(loss: RowLoss, points: npt.ArrayLike) -> PointCurvature:
    """Return loss, gradient and Hessian at all points (m, n) at once, by automatic differentiation in float64."""
    at = torch.tensor(np.asarray(points, dtype=np.float64), requires_grad=True)
    # The zero keeps a linear loss, whose gradient depends on nothing, twice differentiable.
    value = loss(at) + 0 * (at**2).sum(1)
    # No value depends on another's row: the gradient of the sum holds every gradient.
    (gradient,) = torch.autograd.grad(value.sum(), at, create_graph=True)
    columns = [torch.autograd.grad(part.sum(), at, retain_graph=True)[0] for part in gradient.unbind(1)]
    return PointCurvature(value.detach().numpy(), gradient.detach().numpy(), torch.stack(columns, 1).numpy())


def descend(
    loss: RowLoss, starts: npt.ArrayLike, *, length: float, samples: int = 1000, tolerance: float = 1e-4
) -> tuple[FlowPath, ...]:
    """Follow the gradient flow from every start, all in one system, by SciPy's Runge-Kutta 5(4).

    Time runs as dp/ds = -g / √(‖g‖² + τ²) with τ ten times the tolerance. Where the norm is large, s is the length of
    the path; where it is small, s is the time of the flow. The path is the flow's. What is read off between two samples
    is refined on the integrator's continuous solution; changes of sign between neighbouring samples that cancel are
    missed.

    Args:
        loss: Row by row.
        starts: (m, n).
        length: How far s runs; a path of that length, less what it takes to settle.
        samples: number of points of each path, evenly in s. At a minimum of curvature λ the norm falls by exp(λ length
            / (samples τ)) from one to the next.
        tolerance: The norm at which a path has arrived and is cut.

    Raises:
        MisuseError: If ``starts`` is no matrix, or length, samples or tolerance make no path.
    """
    points = np.asarray(starts, dtype=np.float64)
    if points.ndim != 2 or not points.size:
        raise MisuseError(f"starts must be a matrix with a point a row, got shape {points.shape}")
    if not (length > 0 and samples >= 3 and tolerance > 0):
        raise MisuseError("a path needs a positive length, at least three samples and a positive tolerance")
    solution = _flow(loss, points, length, pace=10 * tolerance)
    times = np.linspace(0, length, samples)
    positions = [solution(time).reshape(points.shape) for time in times]
    tracks = [curvature_at(loss, position) for position in positions]

    def sample(row: int, time: float) -> _Sample:
        at = solution(time).reshape(points.shape)
        return _samples(curvature_at(loss, at), at)[row]

    rows = zip(*(_samples(track, position) for track, position in zip(tracks, positions, strict=True)), strict=True)
    return tuple(_path(partial(sample, row), times, track, tolerance) for row, track in enumerate(rows))


def _flow(loss: RowLoss, starts: Floats, length: float, pace: float) -> Callable[[float], Floats]:
    """Return the flat positions as a continuous function of s."""

    def velocity(_: float, flat: Floats) -> Floats:
        at = torch.tensor(flat.reshape(starts.shape), requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(at).sum(), at)
        return (-gradient / torch.sqrt((gradient**2).sum(1, keepdim=True) + pace**2)).numpy().ravel()

    found = solve_ivp(velocity, (0, length), starts.ravel(), dense_output=True, rtol=_RELATIVE, atol=_ABSOLUTE)
    solution: Callable[[float], Floats] = found.sol
    return solution


class _Sample(NamedTuple):
    value: float
    norm: float
    along_gradient: float
    smallest: float
    position: tuple[float, ...]


def _samples(points: PointCurvature, positions: Floats) -> list[_Sample]:
    columns = (points.value, points.norm, points.along_gradient, points.smallest, positions)
    return [_Sample(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _path(at: Callable[[float], _Sample], times: Floats, track: Sequence[_Sample], tolerance: float) -> FlowPath:
    end = next((i for i, sample in enumerate(track) if sample.norm < tolerance), len(track))
    # At least three samples, as a path that starts where it ends would have none.
    kept = track[: max(end, 3)]
    value, norm, along, smallest = (np.array([sample[i] for sample in kept]) for i in range(4))

    def moment(time: float) -> Moment:
        sample = at(time)
        return Moment(time, sample.value, sample.norm, tuple(sample.position))

    def changes(of: Callable[[_Sample], float], values: Floats) -> tuple[Moment, ...]:
        before = np.flatnonzero(values[:-1] * values[1:] < 0)
        return tuple(moment(brentq(lambda time: of(at(time)), times[i], times[i + 1])) for i in before)

    inner = np.flatnonzero((norm[1:-1] > norm[:-2]) & (norm[1:-1] >= norm[2:])) + 1
    peaks = tuple(moment(_largest(lambda time: at(time).norm, times[i - 1], times[i + 1])) for i in inner)
    return FlowPath(
        position=np.array([sample.position for sample in kept]),
        value=value,
        norm=norm,
        along_gradient=along,
        smallest=smallest,
        arrived=end < len(track),
        norm_peaks=peaks,
        along_changes=changes(lambda sample: sample.along_gradient, along),
        smallest_changes=changes(lambda sample: sample.smallest, smallest),
    )


def _largest(function: Callable[[float], float], low: float, high: float) -> float:
    # The tolerance is the square root of epsilon: a maximum is flat.
    found = minimize_scalar(lambda time: -function(time), bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    return float(found.x)

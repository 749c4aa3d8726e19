"""The loss of a model with one parameter, seen whole: where it is convex, where its minima are, what the norm does.

In one dimension everything is exact that training in many can only sample. The second derivative is the Hessian, and
the gradient norm is |L'|, which peaks where L'' changes its sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor, nn

from convexlab.architectures import OneLayerTanh
from convexlab.errors import MisuseError

__all__ = [
    "Branch",
    "Change",
    "Derivatives",
    "Region",
    "ScalarLandscape",
    "count_changes",
    "differentiate",
    "norm_peaks",
    "random_losses",
    "squared_error",
    "survey",
]

Floats = npt.NDArray[np.float64]
Loss = Callable[[Tensor], Tensor]
"""Maps parameter values (n,) to losses (n,), each of its own parameter value only."""

# A sum of a hundred terms of mixed sign is right to some hundred epsilon of the largest: below, a sign means nothing.
_FLOOR = 2.0**8 * np.finfo(np.float64).eps
# What brentq can reach: a few units in the last place.
_RELATIVE = 4 * np.finfo(np.float64).eps


class Derivatives(NamedTuple):
    """A loss and its first two derivatives, (n,) each, float64."""

    value: Floats
    slope: Floats
    curvature: Floats


@dataclass(frozen=True)
class Region:
    """An interval on which the second derivative keeps its sign."""

    low: float
    high: float
    convex: bool
    """Whether that sign is plus."""


@dataclass(frozen=True)
class Branch:
    """The way from a starting point to the lowest minimum."""

    start: float
    minimum: float
    starts_convex: bool
    """Whether the second derivative is positive at the start."""
    inflections: tuple[float, ...]
    """Where it changes its sign, from the start on."""
    stationary: tuple[float, ...]
    """Minima and maxima on the way, from the start on; none if the loss falls all the way."""

    @property
    def entries(self) -> tuple[float, ...]:
        """Inflections at which it becomes convex: on a falling branch the norm peaks there and nowhere else inside."""
        return self.inflections[1 if self.starts_convex else 0 :: 2]

    @property
    def is_simple(self) -> bool:
        """Whether it is what the paper expects: falling all the way, first non-convex, then convex."""
        return not self.stationary and not self.starts_convex and len(self.inflections) == 1


@dataclass(frozen=True)
class ScalarLandscape:
    """A loss over an interval of its parameter."""

    grid: Floats
    """(n,), rising."""
    value: Floats
    slope: Floats
    curvature: Floats
    regions: tuple[Region, ...]
    """From left to right, in turn convex and not; they cover the range."""
    minima: tuple[float, ...]
    """Inside the range, from left to right."""
    maxima: tuple[float, ...]
    minimum: float | None
    """The lowest of them, nearest to zero among equals; None where a margin of the range lies lower."""

    @property
    def inflections(self) -> tuple[float, ...]:
        """Where the second derivative changes its sign, from left to right."""
        return tuple(region.low for region in self.regions[1:])

    @property
    def convex_regions(self) -> tuple[Region, ...]:
        """Where the loss is convex, from left to right."""
        return tuple(region for region in self.regions if region.convex)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """From the left and from the right margin to the lowest minimum; empty if there is none."""
        return self._branches(float(self.grid[0]), float(self.grid[-1]))

    @property
    def basin(self) -> tuple[Branch, ...]:
        """The same from the next maximum, where there is one: all starts from which descent leads to the minimum."""
        if self.minimum is None:
            return ()
        left = [p for p in self.maxima if p < self.minimum]
        right = [p for p in self.maxima if p > self.minimum]
        return self._branches(max(left, default=float(self.grid[0])), min(right, default=float(self.grid[-1])))

    @property
    def is_simple(self) -> bool:
        """Whether there is one minimum in one convex region and the loss is non-convex at both margins."""
        return bool(self.branches) and all(branch.is_simple for branch in self.branches)

    def _branches(self, left: float, right: float) -> tuple[Branch, ...]:
        return () if self.minimum is None else tuple(self._branch(start, self.minimum) for start in (left, right))

    def _branch(self, start: float, minimum: float) -> Branch:
        low, high = sorted((start, minimum))

        def between(points: Sequence[float]) -> tuple[float, ...]:
            return tuple(sorted((point for point in points if low < point < high), reverse=start > minimum))

        starts_convex = next(region.convex for region in self.regions if region.low <= start <= region.high)
        return Branch(start, minimum, starts_convex, between(self.inflections), between(self.minima + self.maxima))


def squared_error(model: nn.Module, inputs: Tensor, target: float) -> Loss:
    """Return L(p) = (y(p) - target)² of a model of one example whose only parameter is the scalar ``p``.

    Args:
        model: As `OneLayerTanh` and `TwoLayerTanh`: with ``p`` (n, 1) it maps inputs (units,) to (n, 1).
        inputs: (units,).
        target: The reference value r of equation 4.
    """
    inputs = inputs.double()
    return lambda p: (torch.func.functional_call(model, {"p": p[:, None]}, (inputs,))[:, 0] - target) ** 2


def random_losses(count: int, *, units: int = 100, seed: int = 0) -> list[Loss]:
    """Return the paper's random tasks (equations 3 and 4): inputs from (-0.5, 0.5), target from (0, 1), uniform.

    The first of them are the same whatever their number.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(count, units + 1, generator=generator, dtype=torch.float64)
    return [squared_error(OneLayerTanh(), draw[1:] - 0.5, draw[0].item()) for draw in draws]


def differentiate(loss: Loss, p: npt.ArrayLike) -> Derivatives:
    """Return loss, slope and curvature at all parameter values (n,) at once, by autograd in float64."""
    at = torch.tensor(np.atleast_1d(np.asarray(p, dtype=np.float64)), requires_grad=True)
    # The zero keeps a linear loss, whose slope depends on nothing, twice differentiable.
    value = loss(at) + 0 * at**2
    # No value depends on another's parameter: the gradient of the sum holds every derivative.
    (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), at)
    return Derivatives(*(tensor.detach().numpy() for tensor in (value, slope, curvature)))


def survey(loss: Loss, grid: npt.ArrayLike) -> ScalarLandscape:
    """Return where a loss is convex and where its minima are, by Brent's method between grid points.

    Two changes of sign between neighbours of the grid cancel and are missed. A derivative within the rounding floor,
    2⁸ε of its largest value, has no sign.

    Args:
        loss: Of one parameter, elementwise.
        grid: (n,) finite and rising, at least three values.

    Raises:
        MisuseError: If the grid is not.
    """
    points = np.asarray(grid, dtype=np.float64)
    if points.ndim != 1 or len(points) < 3 or not np.isfinite(points).all() or not (np.diff(points) > 0).all():
        raise MisuseError("the grid must be a row of at least three finite rising values, as from numpy.linspace")
    value, slope, curvature = differentiate(loss, points)
    turns, falls = _sign_changes(lambda p: float(differentiate(loss, p).slope[0]), points, slope)
    minima = tuple(p for p, fall in zip(turns, falls, strict=True) if not fall)
    maxima = tuple(p for p, fall in zip(turns, falls, strict=True) if fall)
    regions = _regions(loss, points, curvature)
    return ScalarLandscape(points, value, slope, curvature, regions, minima, maxima, _lowest(loss, minima, value))


def _sign_changes(
    function: Callable[[float], float], grid: Floats, values: Floats
) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Return the roots at which the sign changes, and for each whether it does so from plus to minus."""
    signed = np.flatnonzero(np.abs(values) > _FLOOR * np.abs(values).max())
    before = signed[:-1][np.sign(values[signed[:-1]]) != np.sign(values[signed[1:]])]
    after = signed[1:][np.sign(values[signed[:-1]]) != np.sign(values[signed[1:]])]
    # An absolute tolerance near nothing: it is what stops the search only at a root at zero.
    roots = [brentq(function, grid[a], grid[b], xtol=1e-14, rtol=_RELATIVE) for a, b in zip(before, after, strict=True)]
    return tuple(map(float, roots)), tuple(bool(values[a] > 0) for a in before)


def _regions(loss: Loss, grid: Floats, curvature: Floats) -> tuple[Region, ...]:
    roots, falls = _sign_changes(lambda p: float(differentiate(loss, p).curvature[0]), grid, curvature)
    first = falls[0] if falls else bool(curvature[np.abs(curvature).argmax()] > 0)
    signs = [first, *(not fall for fall in falls)]
    ends = [float(grid[0]), *roots, float(grid[-1])]
    return tuple(Region(low, high, sign) for (low, high), sign in zip(pairwise(ends), signs, strict=True))


def _lowest(loss: Loss, minima: Sequence[float], value: Floats) -> float | None:
    if not minima:
        return None
    at_minima = differentiate(loss, minima).value
    # Several can be exact fits, all zero up to rounding.
    near = at_minima.min() + _FLOOR * (value.max() - value.min())
    if min(value[0], value[-1]) < at_minima.min():
        return None
    return min((p for p, height in zip(minima, at_minima, strict=True) if height <= near), key=abs)


def norm_peaks(loss: Loss, landscape: ScalarLandscape, branch: Branch) -> tuple[float, ...]:
    """Return where |L'| is largest among its neighbours along a branch, from its start on, by first derivatives alone.

    Each peak on the grid is refined by Brent's parabolas between its neighbours; a maximum is flat, so half the digits
    are right. It is the counterpart of `Branch.entries`, found without the second derivative.
    """
    low, high = sorted((branch.start, branch.minimum))
    last = len(landscape.grid) - 1
    grid, padded = landscape.grid, np.pad(np.abs(landscape.slope), 1, constant_values=-np.inf)
    found = np.flatnonzero((padded[1:-1] > padded[:-2]) & (padded[1:-1] >= padded[2:]))
    tops = [i for i in found.tolist() if low <= grid[i] <= high]
    peaks = [_peak(loss, grid[max(i - 1, 0)], grid[min(i + 1, last)]) for i in tops]
    return tuple(sorted((peak for peak in peaks if peak is not None), reverse=branch.start > branch.minimum))


def _peak(loss: Loss, low: float, high: float) -> float | None:
    """Return where the norm is largest, or None if that is an end of the interval."""

    def negative(p: float) -> float:
        return -abs(float(differentiate(loss, p).slope[0]))

    # The tolerance is the square root of epsilon: below it the norm of neighbours is the same number.
    found = minimize_scalar(negative, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    return float(found.x) if found.fun < min(negative(low), negative(high)) else None


@dataclass(frozen=True)
class Change:
    """A value of a constant at which a count of the landscape changes."""

    at: float
    before: int
    after: int


def count_changes(count: Callable[[float], int], values: Sequence[float], *, tolerance: float) -> tuple[Change, ...]:
    """Return where an integer function changes between neighbours among rising ``values``, bisected to ``tolerance``.

    Where it changes more than once between two neighbours, one change is found, or none if they cancel.
    """
    counts = [count(value) for value in values]
    steps = zip(pairwise(values), pairwise(counts), strict=True)
    changing = [(low, high, before) for (low, high), (before, after) in steps if before != after]
    return tuple(_bisect(count, low, high, before, tolerance) for low, high, before in changing)


def _bisect(count: Callable[[float], int], low: float, high: float, before: int, tolerance: float) -> Change:
    after = count(high)
    while high - low > tolerance:
        middle = (low + high) / 2
        found = count(middle)
        if found == before:
            low = middle
        else:
            high, after = middle, found
    return Change((low + high) / 2, before, after)

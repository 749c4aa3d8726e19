"""Bracketing a minimum by values alone: ``mnbrak`` of Numerical Recipes in C, 2nd ed. 1992, section 10.1."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from convexlab.errors import MisuseError
from convexlab.optim.line_search.interface import RETREAT, Line, LineSearch, SearchStopped, Trial

__all__ = ["GOLD", "Bracket", "BracketingSearch", "bracket"]

GOLD = (1.0 + math.sqrt(5.0)) / 2.0
"""Default ratio by which successive intervals are magnified."""

_GLIMIT = 100.0  # Largest magnification allowed for a parabolic step.
_VISIBLE = 4.0  # Twice the rounding errors of two values: a smaller decrease cannot be distinguished from none.


class Bracket(NamedTuple):
    """Three points with ``a.step < b.step < c.step`` and φ(a) > φ(b) ≤ φ(c): a minimum lies inside."""

    a: Trial
    b: Trial
    c: Trial


def bracket(line: Line, initial_step: float) -> Bracket:
    """Return a bracket of a minimum at a positive step.

    There are three departures from ``mnbrak``. The direction is known to descend, so a first step that does not is
    shortened (quadratic interpolation with φ'(0)) where ``mnbrak`` would turn round. TINY, an absolute number, is
    replaced by a test for zero, so that the scale of the loss does not matter. An infinite value ends the bracket.

    Raises:
        SearchStopped: no lower value can be distinguished from rounding, or the evaluations ran out.
    """
    shortest = _VISIBLE * line.resolution * abs(line.start.value) / -line.start.slope
    b = line.value(max(initial_step, shortest))
    if b.value < line.start.value:
        return _expand(line, b)
    return _shorten(line, b, shortest)


@dataclass(frozen=True, kw_only=True)
class BracketingSearch(LineSearch):
    """A search by values alone: bracket a minimum, then narrow the bracket."""

    tolerance: float = 1e-2
    """Relative: on a unimodal φ the minimum lies within ``2 * tolerance`` of the step returned.

    Values resolve a minimum only to the root of their rounding (3e-4 in float32, 1.5e-8 in float64), so a smaller
    tolerance is raised to that."""

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            MisuseError: the tolerance is not in (0, 1).
        """
        super().__post_init__()
        if not 0.0 < self.tolerance < 1.0:
            raise MisuseError(f"the tolerance must lie between 0 and 1, got {self.tolerance!r}. It is relative.")

    def _search(self, line: Line, initial_step: float) -> Trial:
        points = bracket(line, initial_step)
        return self._narrow(line, points, max(self.tolerance, math.sqrt(line.resolution)))

    @abstractmethod
    def _narrow(self, line: Line, points: Bracket, tolerance: float) -> Trial:
        """Return the lowest point of the bracket to within the relative tolerance."""


def _shorten(line: Line, c: Trial, shortest: float) -> Bracket:
    while c.step > shortest:
        b = line.value(max(_shorter(line.start, c), shortest))
        if b.value < line.start.value:
            return Bracket(line.start, b, c)
        c = b
    raise SearchStopped("the predicted decrease is smaller than the rounding of the loss")


def _shorter(start: Trial, c: Trial) -> float:
    if c.value == math.inf:
        return RETREAT * c.step
    # φ(c) ≥ φ(0) puts the parabola's minimum at or below c/2.
    minimum = -start.slope * c.step**2 / (2.0 * (c.value - start.value - start.slope * c.step))
    return max(minimum, RETREAT * c.step)


def _expand(line: Line, b: Trial) -> Bracket:
    a, c = line.start, line.value(b.step + GOLD * (b.step - line.start.step))
    while b.value > c.value:
        step = _extrapolate(a, b, c)
        trial = line.value(step)
        if step < c.step:
            if trial.value < c.value:
                return Bracket(b, trial, c)
            if trial.value > b.value:
                return Bracket(a, b, trial)
            trial = line.value(c.step + GOLD * (c.step - b.step))
        elif c.step < step < b.step + _GLIMIT * (c.step - b.step) and trial.value < c.value:
            b, c, trial = c, trial, line.value(step + GOLD * (step - c.step))
        a, b, c = b, c, trial
    return Bracket(a, b, c)


def _extrapolate(a: Trial, b: Trial, c: Trial) -> float:
    """Return the next trial: the minimum of the parabola through three points, within limits, or golden growth."""
    golden = c.step + GOLD * (c.step - b.step)
    r = (b.step - a.step) * (b.value - c.value)
    q = (b.step - c.step) * (b.value - a.value)
    if q == r:
        return golden
    step = b.step - ((b.step - c.step) * q - (b.step - a.step) * r) / (2.0 * (q - r))
    if not b.step < step:  # A parabola that opens downwards, or NaN.
        return golden
    limit = b.step + _GLIMIT * (c.step - b.step)
    return golden if step == c.step else min(step, limit)

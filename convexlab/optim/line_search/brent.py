"""Brent's method, by values alone: Numerical Recipes in C, 2nd ed. 1992, section 10.2 (``brent``)."""

from __future__ import annotations

from dataclasses import dataclass
from math import copysign

from convexlab.optim.line_search.bracketing import GOLD, Bracket, BracketingSearch
from convexlab.optim.line_search.interface import Line, Trial

__all__ = ["Brent"]

_CGOLD = 2.0 - GOLD


@dataclass(frozen=True, kw_only=True)
class Brent(BracketingSearch):
    """Bracket, then parabolic interpolation guarded by golden sections.

    It is the better of the two searches by values alone (``benchmarks/second_phase_choices.py``). Nonlinear CG ends at
    0.70 to 0.83 of its loss with golden sections, and L-BFGS at 0.23 to 0.71. With the Hager-Zhang search both end
    lower.

    Departure from ``brent``: ZEPS, an absolute number for minima at 0, is left out, since every step is positive.
    """

    def _narrow(self, line: Line, points: Bracket, tolerance: float) -> Trial:
        low, high = points.a.step, points.c.step
        x = w = v = points.b  # The lowest point, the second lowest, and the second lowest before that.
        move = before_last = 0.0
        while True:
            middle, near = 0.5 * (low + high), tolerance * x.step
            if abs(x.step - middle) <= 2.0 * near - 0.5 * (high - low):
                return x
            parabolic = _parabola(x, w, v, before_last, low, high) if abs(before_last) > near else None
            if parabolic is None:
                before_last = (low if x.step >= middle else high) - x.step
                move = _CGOLD * before_last
            else:
                before_last, move = move, parabolic
                if x.step + move - low < 2.0 * near or high - x.step - move < 2.0 * near:
                    move = copysign(near, middle - x.step)
            trial = line.value(x.step + (move if abs(move) >= near else copysign(near, move)))
            lower = trial.value <= x.value
            if lower == (trial.step >= x.step):
                low = x.step if lower else trial.step
            else:
                high = x.step if lower else trial.step
            if lower:
                v, w, x = w, x, trial
            elif trial.value <= w.value or w is x:
                v, w = w, trial
            elif trial.value <= v.value or v is x or v is w:
                v = trial


def _parabola(x: Trial, w: Trial, v: Trial, before_last: float, low: float, high: float) -> float | None:
    """Return the move to the parabola's minimum if it stays inside and is less than half the move before last."""
    r = (x.step - w.step) * (x.value - v.value)
    q = (x.step - v.step) * (x.value - w.value)
    p = (x.step - v.step) * q - (x.step - w.step) * r
    q = 2.0 * (q - r)
    p, q = (-p, q) if q > 0.0 else (p, -q)
    # Infinite values make p NaN, which no comparison accepts.
    if abs(p) < abs(0.5 * q * before_last) and q * (low - x.step) < p < q * (high - x.step):
        return p / q
    return None

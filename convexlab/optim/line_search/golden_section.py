"""Golden-section search, by values alone: Numerical Recipes in C, 2nd ed. 1992, section 10.1 (``golden``)."""

from __future__ import annotations

from dataclasses import dataclass

from convexlab.optim.line_search.bracketing import GOLD, Bracket, BracketingSearch
from convexlab.optim.line_search.interface import Line, Trial

__all__ = ["GoldenSection"]

_R = 1.0 / GOLD
_C = 1.0 - _R


@dataclass(frozen=True, kw_only=True)
class GoldenSection(BracketingSearch):
    """Bracket, then divide the bracket in the golden ratio; the search of the paper's second phase.

    Each division costs one value and shrinks the bracket to 0.618. A search takes about 3 values to bracket, then some
    7 at a tolerance of 1e-2, or 15 at 2e-4.
    """

    def _narrow(self, line: Line, points: Bracket, tolerance: float) -> Trial:
        low, inner, outer, high = _divide(line, points)
        while high - low > tolerance * (inner.step + outer.step):
            if outer.value < inner.value:
                low, inner = inner.step, outer
                outer = line.value(_R * inner.step + _C * high)
            else:
                high, outer = outer.step, inner
                inner = line.value(_R * outer.step + _C * low)
        return min(inner, outer, key=lambda trial: trial.value)


def _divide(line: Line, points: Bracket) -> tuple[float, Trial, Trial, float]:
    """Put the fourth point into the longer half. φ(b) is known already: unlike ``golden``, it is not paid for again."""
    a, b, c = points
    if c.step - b.step > b.step - a.step:
        return a.step, b, line.value(b.step + _C * (c.step - b.step)), c.step
    return a.step, line.value(b.step - _C * (b.step - a.step)), b, c.step

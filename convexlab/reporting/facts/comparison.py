"""The two-phase run against its Adam baselines: better, worse or level, and whether the costs allow the word."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from convexlab.reporting.facts.run import TWO_PHASE, Digest
from convexlab.reporting.numbers import count, number
from convexlab.runs.rows import Outcome

__all__ = ["Comparison", "compare", "geometric_mean", "level"]

# Losses closer than this are called equal: below what another seed or another machine changes.
_SAME_WITHIN = 0.01
# Costs within one epoch equivalent count as equal; they are sums of thirds, hence a hair more for rounding.
_SLACK = 1.0 + 1e-6


@dataclass(frozen=True)
class Comparison:
    """The two-phase run against the better of its Adam baselines."""

    baseline: str
    """The `run` of the better baseline."""
    two_phase_loss: float
    baseline_loss: float
    costs: tuple[float, float]
    """Gradient equivalents of the whole runs, two-phase and baseline; NaN when unknown."""

    @property
    def ratio(self) -> float:
        """Two-phase over baseline; NaN when either is not positive."""
        if min(self.two_phase_loss, self.baseline_loss) <= 0:
            return math.nan
        return self.two_phase_loss / self.baseline_loss

    @property
    def word(self) -> str:
        """`better`, `worse` or `equal`, by training loss."""
        if level(self.two_phase_loss, self.baseline_loss):
            return "equal"
        return "better" if self.two_phase_loss < self.baseline_loss else "worse"

    @property
    def factor(self) -> str:
        """How many times the larger loss is the smaller one, or nothing when that means nothing."""
        if math.isnan(self.ratio) or self.word == "equal":
            return ""
        return number(max(self.ratio, 1 / self.ratio))

    @property
    def is_conclusive(self) -> bool:
        """Whether the costs allow the word: a lower loss at a higher cost is no win."""
        ours, theirs = self.costs
        ours_cheap, theirs_cheap = ours <= theirs + _SLACK, theirs <= ours + _SLACK
        return bool({"better": ours_cheap, "worse": theirs_cheap, "equal": ours_cheap and theirs_cheap}[self.word])

    @property
    def fairness(self) -> str:
        """Whether both cost the same, in a word or two."""
        ours, theirs = self.costs
        if math.isnan(ours) or math.isnan(theirs):
            return "unknown"
        return "yes" if abs(ours - theirs) <= _SLACK else f"no: {count(ours)} against {count(theirs)}"

    @property
    def cost_clause(self) -> str:
        """At what cost the losses were reached."""
        ours, theirs = self.costs
        if math.isnan(ours) or math.isnan(theirs):
            return "at a cost that was not recorded"
        if abs(ours - theirs) <= _SLACK:
            return f"at equal cost ({count(ours)} gradient equivalents)"
        level = "lower" if ours < theirs else "higher"
        return f"at {level} cost ({count(ours)} against {count(theirs)} gradient equivalents)"


def level(ours: float, theirs: float) -> bool:
    """Tell whether two losses are so close that neither is called better."""
    return abs(ours - theirs) <= _SAME_WITHIN * abs(theirs)


def compare(digest: Digest) -> Comparison | None:
    """Return the comparison with the better Adam baseline, or None without both losses."""
    best, ours = digest.better_baseline, digest.two_phase
    if best is None or ours is None:
        return None
    name, theirs = best
    if ours.train_loss is None or theirs.train_loss is None:
        return None
    costs = (_total_cost(digest, TWO_PHASE, ours), _total_cost(digest, name, theirs))
    return Comparison(name, ours.train_loss, theirs.train_loss, costs)


def geometric_mean(comparisons: Iterable[Comparison]) -> float | None:
    """Return the geometric mean of the ratios that mean anything, or None without any."""
    logs = [math.log(comparison.ratio) for comparison in comparisons if not math.isnan(comparison.ratio)]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def _total_cost(digest: Digest, run: str, outcome: Outcome) -> float:
    """The whole run's cost: the outcome's own may be that of its best epoch."""
    curve = digest.curves.get(run)
    if curve is not None and np.isfinite(curve.cost).any():
        return float(np.nanmax(curve.cost))
    return math.nan if outcome.cost is None else outcome.cost

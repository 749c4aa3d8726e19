"""The two-phase run against its Adam baselines: better, worse or level, and whether the costs allow a conclusion."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from convexlab.reporting.facts.run import TWO_PHASE, RunFacts
from convexlab.runs.rows import Outcome

__all__ = ["BaselineComparison", "Result", "compare", "geometric_mean", "level"]

Result = Literal["better", "worse", "equal"]

# Losses closer than this are called equal: below what another seed or another machine changes.
_SAME_WITHIN = 0.01
# Costs within one epoch equivalent count as equal; they are sums of thirds, hence a hair more for rounding.
_SLACK = 1.0 + 1e-6


@dataclass(frozen=True)
class BaselineComparison:
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
    def result(self) -> Result:
        """The result of two-phase training, by training loss."""
        if level(self.two_phase_loss, self.baseline_loss):
            return "equal"
        return "better" if self.two_phase_loss < self.baseline_loss else "worse"

    @property
    def is_conclusive(self) -> bool:
        """Whether the costs allow a conclusion: a lower loss at a higher cost is no win."""
        ours, theirs = self.costs
        ours_cheap, theirs_cheap = ours <= theirs + _SLACK, theirs <= ours + _SLACK
        return bool({"better": ours_cheap, "worse": theirs_cheap, "equal": ours_cheap and theirs_cheap}[self.result])

    @property
    def costs_known(self) -> bool:
        """Whether both costs were recorded."""
        return not any(map(math.isnan, self.costs))

    @property
    def costs_equal(self) -> bool:
        """Whether both costs are known and count as equal."""
        ours, theirs = self.costs
        return abs(ours - theirs) <= _SLACK


def level(ours: float, theirs: float) -> bool:
    """Return whether two losses are so close that neither is called better."""
    return abs(ours - theirs) <= _SAME_WITHIN * abs(theirs)


def compare(facts: RunFacts) -> BaselineComparison | None:
    """Return the comparison with the better Adam baseline, or None without both losses."""
    best, ours = facts.better_baseline, facts.two_phase
    if best is None or ours is None:
        return None
    name, theirs = best
    if ours.train_loss is None or theirs.train_loss is None:
        return None
    costs = (_total_cost(facts, TWO_PHASE, ours), _total_cost(facts, name, theirs))
    return BaselineComparison(name, ours.train_loss, theirs.train_loss, costs)


def geometric_mean(comparisons: Iterable[BaselineComparison]) -> float | None:
    """Return the geometric mean of the ratios that are defined, or None without any."""
    logs = [math.log(comparison.ratio) for comparison in comparisons if not math.isnan(comparison.ratio)]
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


def _total_cost(facts: RunFacts, run: str, outcome: Outcome) -> float:
    """Return the whole run's cost; that of the outcome may be the cost up to its best epoch."""
    curve = facts.curves.get(run)
    if curve is not None and np.isfinite(curve.cost).any():
        return float(np.nanmax(curve.cost))
    return math.nan if outcome.cost is None else outcome.cost

"""What a run's record says of each rule: too early, too late or never, and what it cost against the best switch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean

import numpy as np
import scipy.stats

from convexlab.reporting.facts.claims import pattern
from convexlab.reporting.facts.norm import first_rise, first_where
from convexlab.runs import Row
from convexlab.runs.oracle import neighbour_factor
from paper.truth import relative_kind

__all__ = [
    "Comparison",
    "Interval",
    "Score",
    "best_neighbourhood",
    "best_switch",
    "bootstrap",
    "bootstrap_geometric_mean",
    "counted",
    "curvature_peak",
    "jump",
    "outcomes",
    "run_by_run",
    "score",
    "transient",
]

_COLLAPSE = 0.9
_RESOLUTION = 2.0**-23
_WORTH = 0.1
"""A switch that ends this much lower than Adam alone was worth making."""
_NEARLY = 0.05
"""Of the largest eigenvalue: above minus this the smallest counts as nearly convex."""


def counted(loss: float) -> float:
    """Return a loss as it is compared: what lies below the resolution of float32, 2⁻²³, counts as that."""
    return max(loss, _RESOLUTION)


def transient(norms: Sequence[float]) -> int:
    """Return the epochs of the initial transient, in hindsight: as long as the gradient norm falls by a tenth an epoch.

    Of its centred median over five epochs. Norms begin with that of the start.
    """
    return first_where(norms, lambda now, after: after > _COLLAPSE * now)


def outcomes(run: Row) -> list[Row]:
    """Return where each switch ended that cost nothing beside Adam, by epoch, and Adam alone as the last."""
    price = run["budget"] / (len(run["rows"]) - 1)
    free = [one for one in run["endings"] if one["spent"] <= one["epoch"] * price + 1e-9]
    alone: Row = {"epoch": None, "spent": run["budget"], "loss": run["adam"]}
    return [*sorted(free, key=lambda one: int(one["epoch"])), alone]


def best_switch(run: Row) -> Row:
    """Return the outcome with the lowest loss.

    The oracle: it has seen them all. ``epoch`` is None where Adam alone ends lowest. Of equal ones the earliest.
    """
    return min(outcomes(run), key=lambda one: counted(one["loss"]))


def best_neighbourhood(run: Row) -> float:
    """Return the lowest geometric mean of three successive outcomes: the oracle without its luck."""
    losses = [counted(one["loss"]) for one in outcomes(run)]
    return min(geometric_mean(losses[i : i + 3]) for i in range(max(1, len(losses) - 2)))


def jump(run: Row) -> float:
    """Return the median factor between successive outcomes: how much of a final loss is chance."""
    return neighbour_factor([counted(one["loss"]) for one in outcomes(run)])


def curvature_peak(run: Row) -> int | None:
    """Return the epoch, of those measured, at which the smallest eigenvalue is most negative; None if none is."""
    known = [row for row in run["truth"] if row["smallest"] is not None and row["smallest"] < 0]
    lowest: Row | None = min(known, key=lambda row: row["smallest"], default=None)
    return None if lowest is None else int(lowest["epoch"])


@dataclass(frozen=True)
class Score:
    """One rule on one run."""

    epoch: int | None
    """Where it fired; None if it never did in time."""
    loss: float
    """Where that led within the budget."""
    regret: float
    """loss / the oracle's - 1, as `counted`; negative never."""
    smooth_regret: float
    """The same against the best neighbourhood; negative where luck was on its side."""
    early: bool
    """Fired within the initial transient."""
    before_rise: bool
    """Fired before the gradient norm had ever stopped falling."""
    missed: bool
    """Never fired though a switch would have ended at least a tenth lower than Adam alone."""
    lag: int | None
    """Epochs after the most negative curvature; negative is before."""
    transition_lag: tuple[int, int] | None
    """The same after the smallest eigenvalue came above -5 % of the largest for good: from and to, by the bracket."""


def score(run: Row, label: str) -> Score:
    """Judge a rule's decision on a run, see `validate_run`."""
    decision, best = run["decisions"][label], best_switch(run)
    epoch = decision["epoch"]
    loss = _loss(run, label)
    worth = best["epoch"] is not None and counted(best["loss"]) < (1 - _WORTH) * run["adam"]
    peak = curvature_peak(run)
    norms = [row["gradient_norm"] for row in run["rows"]]
    rows = run["truth"]
    bracket = pattern([row["epoch"] for row in rows], [relative_kind(row, _NEARLY) for row in rows]).bracket
    return Score(
        epoch=epoch,
        loss=loss,
        regret=max(counted(loss) / counted(best["loss"]) - 1.0, 0.0),
        smooth_regret=counted(loss) / best_neighbourhood(run) - 1.0,
        early=epoch is not None and epoch <= transient(norms),
        before_rise=epoch is not None and epoch <= first_rise(norms),
        missed=epoch is None and worth,
        lag=None if epoch is None or peak is None else epoch - peak,
        transition_lag=None if epoch is None or bracket is None else (int(epoch - bracket[1]), int(epoch - bracket[0])),
    )


def _loss(run: Row, label: str) -> float:
    decision = run["decisions"][label]
    if decision["epoch"] is None:
        affordable = [
            row["train_loss"] for row in run["rows"] if row["cost"] * decision["factor"] <= run["budget"] + 1e-9
        ]
        return float(min(affordable))
    found = (one for one in run["endings"] if (one["epoch"], one["spent"]) == (decision["epoch"], decision["spent"]))
    return float(next(found)["loss"])


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval."""

    value: float
    low: float
    high: float


def bootstrap(
    values: Sequence[float], statistic: Callable[..., float] = np.median, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return a statistic of independent values with its percentile bootstrap interval (Efron 1979), 9,999 samples."""
    array = np.asarray(values, dtype=np.float64)
    value = float(statistic(array))
    if len(array) < 2 or np.ptp(array) == 0:
        return Interval(value, value, value)
    found = scipy.stats.bootstrap(
        (array,), statistic, confidence_level=confidence, method="percentile", rng=np.random.default_rng(seed)
    )
    return Interval(value, float(found.confidence_interval.low), float(found.confidence_interval.high))


def bootstrap_geometric_mean(ratios: Sequence[float]) -> Interval:
    """Return the geometric mean of positive values with its interval as of `bootstrap`."""
    found = bootstrap([math.log(ratio) for ratio in ratios], np.mean)
    return Interval(*map(math.exp, (found.value, found.low, found.high)))


@dataclass(frozen=True)
class Comparison:
    """One rule beside another on the same runs."""

    ratio: Interval
    """Geometric mean of its loss over the other's."""
    lower: int
    """Runs in which its loss is the lower one."""
    higher: int

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out a ratio of 1."""
        return not self.ratio.low <= 1.0 <= self.ratio.high


def run_by_run(mine: Sequence[Score], other: Sequence[Score]) -> Comparison:
    """Compare two rules run by run: what makes some runs hard for both takes no part in it."""
    pairs = [(counted(one.loss), counted(its.loss)) for one, its in zip(mine, other, strict=True)]
    ratio = bootstrap_geometric_mean([one / its for one, its in pairs])
    return Comparison(ratio, sum(one < its for one, its in pairs), sum(one > its for one, its in pairs))

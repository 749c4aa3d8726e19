"""A default rule: the one with the least regret on half of the tasks, reported on the other half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

import numpy as np

from convexlab.runs import Row
from paper.scores import Score

__all__ = ["Choice", "Criterion", "choose", "halves", "is_rule"]

Criterion = Literal["geometric mean", "median"]


@dataclass(frozen=True)
class Choice:
    """The rule that one half of the tasks chose, and its regret on the other."""

    criterion: Criterion
    """By which it was chosen."""
    label: str
    own: float
    """Its median regret on the half that chose it."""
    regrets: list[float]
    """On the other half, one a run."""
    smooth_regrets: list[float]
    """The same against the best neighbourhood."""
    early: int
    """Runs of the other half in which it fired within the initial transient."""
    tasks: list[str]
    """The other half's."""
    chosen_on: str
    reported_on: str
    runner_up: str
    """The rule that came second on the half that chose."""


def is_rule(label: str) -> bool:
    """Whether a rule is feasible: one that gets curvature at no cost is not."""
    return not label.startswith("curvature")


def halves(runs: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the tasks in two halves, every second one in alphabetical order."""
    tasks = sorted({run["task"] for run in runs})
    return tasks[::2], tasks[1::2]


def choose(
    runs: Sequence[Row], scores: Mapping[str, Sequence[Score]], *, by: Criterion = "geometric mean"
) -> list[Choice]:
    """Return, for each half, the rule of least regret there and how it did on the other half.

    Of those that fire in no run of the half within the initial transient. The criterion is the geometric mean of the
    loss over that of the best switch, because a default must not fail badly on a few runs. Or it is the median regret,
    which does not see these runs; ties go by the geometric mean.
    """
    first, second = halves(runs)
    return [
        _choice(runs, scores, first, second, "first half", by),
        _choice(runs, scores, second, first, "second half", by),
    ]


def _choice(
    runs: Sequence[Row],
    scores: Mapping[str, Sequence[Score]],
    own: list[str],
    other: list[str],
    name: str,
    by: Criterion,
) -> Choice:
    def of(label: str, tasks: list[str]) -> list[Score]:
        return [one for run, one in zip(runs, scores[label], strict=True) if run["task"] in tasks]

    def rank(label: str) -> tuple[float, ...]:
        found = [one.regret for one in of(label, own)]
        mean = fmean(np.log1p(found))
        return (mean,) if by == "geometric mean" else (median(found), mean)

    allowed = [label for label in scores if is_rule(label) and not any(one.early for one in of(label, own))]
    first, second, *_ = sorted(allowed, key=rank)
    held_out = of(first, other)
    names = ("first half", "second half")
    return Choice(
        criterion=by,
        label=first,
        own=median(one.regret for one in of(first, own)),
        regrets=[one.regret for one in held_out],
        smooth_regrets=[one.smooth_regret for one in held_out],
        early=sum(one.early for one in held_out),
        tasks=other,
        chosen_on=name,
        reported_on=names[1 - names.index(name)],
        runner_up=second,
    )

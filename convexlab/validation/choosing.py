"""A default rule: the one with the least regret on half of the tasks, reported on the other half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from convexlab.runs import Row
from convexlab.validation.scores import Score

__all__ = ["Choice", "choose", "halves", "is_rule"]


@dataclass(frozen=True)
class Choice:
    """The rule that one half of the tasks chose, and its regret on the other."""

    label: str
    own: float
    """Its median regret on the half that chose it."""
    regrets: list[float]
    """On the other half, one a run."""
    early: int
    """Runs of the other half in which it fired within the initial transient."""
    tasks: list[str]
    """The other half's."""
    chosen_on: str
    reported_on: str
    runner_up: str
    """The rule that came second on the half that chose."""


def is_rule(label: str) -> bool:
    """Whether a rule could be had: not one that is told of curvature for nothing."""
    return not label.startswith("curvature")


def halves(runs: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Return the tasks in two halves, every second one in alphabetical order."""
    tasks = sorted({run["task"] for run in runs})
    return tasks[::2], tasks[1::2]


def choose(runs: Sequence[Row], scores: Mapping[str, Sequence[Score]]) -> list[Choice]:
    """Return, for each half, the rule of least median regret there and how it did on the other half.

    Of two equal medians the lower mean of the logarithms wins.
    """
    first, second = halves(runs)
    return [_choice(runs, scores, first, second, "first half"), _choice(runs, scores, second, first, "second half")]


def _choice(
    runs: Sequence[Row], scores: Mapping[str, Sequence[Score]], own: list[str], other: list[str], name: str
) -> Choice:
    def regrets(label: str, tasks: list[str]) -> list[float]:
        return [one.regret for run, one in zip(runs, scores[label], strict=True) if run["task"] in tasks]

    def rank(label: str) -> tuple[float, float]:
        found = regrets(label, own)
        return median(found), fmean(np.log1p(found))

    first, second, *_ = sorted(filter(is_rule, scores), key=rank)
    pairs = zip(runs, scores[first], strict=True)
    names = ("first half", "second half")
    return Choice(
        label=first,
        own=median(regrets(first, own)),
        regrets=regrets(first, other),
        early=sum(one.early for run, one in pairs if run["task"] in other),
        tasks=other,
        chosen_on=name,
        reported_on=names[1 - names.index(name)],
        runner_up=second,
    )

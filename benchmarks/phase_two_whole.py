"""Whole runs from the same start at equal total cost: Adam and then ours, against Adam all the way."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from phase_two_results import Line, Results, device_of, mean_ratio, spread_of, table
from phase_two_runs import DETECTOR, FRACTIONS, RATES, Run

from convexlab.training.phases import LARGE

__all__ = ["WholeRun", "default_runs", "switches", "whole", "whole_runs"]

Candidates = dict[str, list[str]]

_CONSTANT = [Run("adam-constant", rate).key for rate in RATES]
_COSINE = [Run("adam-cosine", rate).key for rate in RATES]
_ADAMW = [Run("adamw-constant", rate).key for rate in RATES]
_WORSE = 1.1  # A ratio above this counts as worse.
_DETAIL = [
    "problem",
    "half",
    "ours",
    "loss",
    "constant",
    "loss",
    "cosine",
    "loss",
    "over constant",
    "over cosine",
    "seeds",
    "spread",
    "reached",
    "equal seconds",
    "seconds",
    "Adam's",
    "validation loss",
    "Adam's",
    "accuracy",
    "Adam's",
]
_RATIOS = [
    "over constant",
    "min",
    "median",
    "max",
    "over cosine",
    "min",
    "median",
    "max",
    "over AdamW",
    "worse",
    "number",
]


def _ours(switch: str, rate: float | None = None) -> list[str]:
    return [Run(LARGE, one, switch).key for one in (RATES if rate is None else [rate])]


_BY_FRACTION: Candidates = {fraction: _ours(fraction) for fraction in FRACTIONS}
_BY_BOTH: Candidates = {f"{fraction}, {rate:g}": _ours(fraction, rate) for fraction in FRACTIONS for rate in RATES}


@dataclass(frozen=True)
class WholeRun:
    """Ours on one problem beside the best Adam, by the keys of the runs."""

    problem: str
    ours: str
    constant: str
    cosine: str
    adamw: str | None

    def better_adam(self, results: Results) -> str:
        """Return the better of constant and cosine."""
        best = results.best(self.problem, (self.constant, self.cosine))
        assert best is not None
        return best


def whole_runs(results: Results, choose: Callable[[str], Sequence[str]]) -> list[WholeRun]:
    """Return the problems on which everything is there; ``choose`` says which of our runs a problem may choose from."""
    found = []
    for problem in results.problems:
        ours, constant, cosine = (results.best(problem, keys) for keys in (choose(problem), _CONSTANT, _COSINE))
        if ours and constant and cosine:
            found.append(WholeRun(problem, ours, constant, cosine, results.best(problem, _ADAMW)))
    return found


def chosen_on(results: Results, problems: Sequence[str], candidates: Candidates) -> str | None:
    """Return the candidate with the lowest geometric mean loss over the problems, of those that all of them have."""
    scores = {}
    for name, keys in candidates.items():
        losses = [
            None if (best := results.best(problem, keys)) is None else results.value(problem, best)
            for problem in problems
        ]
        if losses and None not in losses and (mean := mean_ratio(losses)) is not None:
            scores[name] = mean
    return min(scores, key=lambda name: scores[name]) if scores else None


def halves(results: Results) -> tuple[list[str], list[str]]:
    """Return two halves of the problems on which everything is there.

    They are dealt out in the order of a hash of their names: fixed, and blind to model, data and loss.
    """
    everything = [key for keys in _BY_FRACTION.values() for key in keys]
    complete = [run.problem for run in whole_runs(results, lambda problem: everything)]
    complete.sort(key=lambda problem: hashlib.sha256(problem.encode()).digest())
    return complete[::2], complete[1::2]


def held_out(results: Results, candidates: Candidates) -> tuple[dict[str, str], list[WholeRun]]:
    """Return the candidate that is used on each problem, chosen on the half it is not in, and the runs."""
    first, second = halves(results)
    used: dict[str, str] = {}
    for half, other in ((first, second), (second, first)):
        choice = chosen_on(results, half, candidates)
        if choice is not None:
            used |= dict.fromkeys(other, choice)
    return used, whole_runs(results, lambda problem: candidates[used[problem]] if problem in used else [])


def default_runs(results: Results) -> list[WholeRun]:
    """Return the runs whose switch was chosen on the other half of the problems."""
    return held_out(results, _BY_FRACTION)[1] if halves(results)[1] else []


def whole(results: Results) -> str:
    """Return the section on whole runs, the switch held out."""
    first, second = halves(results)
    if not second:
        return ""
    used, runs = held_out(results, _BY_FRACTION)
    _, strict = held_out(results, _BY_BOTH)
    groups = {
        f"second half, {used.get(second[0], '–')} chosen on the first": [one for one in runs if one.problem in second],
        f"first half, {used.get(first[0], '–')} chosen on the second": [one for one in runs if one.problem in first],
        "all, each as above": runs,
        "the same, without physics": [one for one in runs if not results.physics(one.problem)],
        "the same, physics alone": [one for one in runs if results.physics(one.problem)],
        "all, rate chosen on the other half as well": strict,
    }
    summary = [_summary(results, name, group) for name, group in groups.items() if group]
    return "\n\n".join(
        [
            f"## Whole runs: Adam, then {LARGE}",
            "The fraction of the budget at which it switches is chosen on one half of the problems and reported on the "
            "other; a hash of their names deals out the halves. Ours and each kind of Adam have the best rate of "
            f"{', '.join(f'{rate:g}' for rate in RATES)} on the problem itself; in the last line ours has not. A ratio "
            "below 1 is in favour of ours. Worse: than constant or cosine, by more than 10 %.",
            table(["problems", *_RATIOS], summary),
            table(_DETAIL, [_detail(results, run) for run in runs]),
            "Spread: least and largest over seeds, against the better Adam of the two. Reached: cost at which ours has "
            "the better Adam's lowest loss, as a share of the budget, median over seeds. Seconds are of the processor, "
            "where that did the work: on an accelerator many runs shared it. Equal seconds: ratio to the constant Adam "
            "when the first of the two ends. Validation: loss (relative error of physics) and accuracy "
            "at the lowest training loss, ours and the better Adam's.",
        ]
    )


def _summary(results: Results, name: str, group: Sequence[WholeRun]) -> list[Any]:
    against = {
        kind: [results.ratio(run.problem, run.ours, getattr(run, kind)) for run in group]
        for kind in ("constant", "cosine", "adamw")
    }
    pairs = zip(against["constant"], against["cosine"], strict=True)
    worse = sum(max(mine or 0.0, theirs or 0.0) > _WORSE for mine, theirs in pairs)
    constant, cosine = (spread_of(against[kind])[:3] for kind in ("constant", "cosine"))
    means = {kind: mean_ratio(values) for kind, values in against.items()}
    return [name, means["constant"], *constant, means["cosine"], *cosine, means["adamw"], worse, len(group)]


def _detail(results: Results, run: WholeRun) -> list[Any]:
    problem, adam = run.problem, run.better_adam(results)
    spread = results.spread(problem, run.ours, adam)

    def figures(name: str) -> list[float | None]:
        return [results.value(problem, key, name) for key in (run.ours, adam)]

    return [
        problem,
        1 if problem in halves(results)[0] else 2,
        run.ours.removeprefix(f"{LARGE} "),
        results.value(problem, run.ours),
        run.constant.split()[1],
        results.value(problem, run.constant),
        run.cosine.split()[1],
        results.value(problem, run.cosine),
        results.ratio(problem, run.ours, run.constant),
        results.ratio(problem, run.ours, run.cosine),
        len(results.lines(problem, run.ours)),
        None if spread is None else f"{spread[0]:.3g} to {spread[1]:.3g}",
        _reached(results.lines(problem, run.ours), results.lines(problem, adam)),
        _equal_seconds(results.lines(problem, run.ours), results.lines(problem, run.constant)),
        *(_median_seconds(results.lines(problem, key)) for key in (run.ours, adam)),
        *figures("validation_loss"),
        *figures("validation_accuracy"),
    ]


def _reached(ours: dict[int, Line], adam: dict[int, Line]) -> float | None:
    shares = [
        next((row[0] for row in ours[seed]["curve"] if row[1] <= adam[seed]["loss"]), math.inf) / ours[seed]["budget"]
        for seed in ours.keys() & adam.keys()
    ]
    return median(shares) if shares else None


def _median_seconds(lines: dict[int, Line]) -> float | None:
    seconds = [line["seconds"] for line in lines.values() if device_of(line) == "cpu"]
    return median(seconds) if seconds else None


def _equal_seconds(ours: dict[int, Line], adam: dict[int, Line]) -> float | None:
    ratios = []
    for seed in ours.keys() & adam.keys():
        if {device_of(ours[seed]), device_of(adam[seed])} != {"cpu"}:
            continue
        end = min(ours[seed]["seconds"], adam[seed]["seconds"])
        losses = [
            min((loss for _, loss, seconds in line["curve"] if seconds <= end), default=math.nan)
            for line in (ours[seed], adam[seed])
        ]
        ratios.append(losses[0] / losses[1])
    return median(ratios) if ratios else None


def switches(results: Results) -> str:
    """Return the section on every switch, on the problems where it was tried."""
    rows = []
    for switch in (*FRACTIONS, DETECTOR):
        runs = whole_runs(results, lambda problem, switch=switch: _ours(switch))  # type: ignore[misc]
        if runs:
            rows.append(_summary(results, switch, runs))
    if not rows:
        return ""
    return "\n\n".join(
        [
            "## Every switch, nothing held out",
            "The detector's own cost is charged; its line has the problems on which it fired in time.",
            table(["switch", *_RATIOS], rows),
        ]
    )

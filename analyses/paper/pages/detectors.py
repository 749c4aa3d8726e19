"""The page of the validation study, from its runs' records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from convexlab.detection import BudgetFraction
from convexlab.reporting.facts.claims import Judgement, pattern
from convexlab.reporting.study import Part, Study
from convexlab.reporting.tables import Cell, Column, make_table
from convexlab.runs import Row
from convexlab.wording.numbers import MISSING, change, count, number, percent, short
from paper.choosing import Choice, choose
from paper.pages.claims import claims_part, is_proven_throughout, judge, kinds
from paper.pages.detector_charts import all_switches_chart, kind_of, regret_chart, run_chart
from paper.rules import fraction_label
from paper.scores import (
    Comparison,
    Interval,
    Score,
    best_switch,
    bootstrap,
    bootstrap_geometric_mean,
    jump,
    run_by_run,
    score,
)

__all__ = ["validation_study"]

PEAK, PRINTED = "gradient-norm-peak (halves)", "algorithm-1 (full)"
"""The rules that the answer speaks of."""
KNOWN_CURVATURE = "curvature, known at no cost"
DEFAULT = fraction_label(BudgetFraction(1).fraction)
"""The trainer's default."""


def validation_study(runs: Sequence[Row], settings: Mapping[str, Any], command: str) -> Study:
    """Return the page: the claims, the rules, the choice of a default, and the runs."""
    labels = list(runs[0]["decisions"])
    scores = {label: [score(run, label) for run in runs] for label in labels}
    medians = {label: bootstrap([result.regret for result in scores[label]]) for label in labels}
    choices = choose(runs, scores)
    judged = judge(runs)
    return Study(
        title="Does the gradient norm’s peak say when to switch?",
        claim="Training first passes a non-convex, then a convex region. The gradient norm’s peak marks the border, "
        "and is the moment to hand over from Adam (Hrycej et al., claims 1 to 3).",
        answer=_answer(runs, judged, scores, choices),
        command=command,
        parts=[
            claims_part(runs, judged),
            _rules_part(runs, scores, medians),
            _default_part(runs, scores, [*choices, *choose(runs, scores, by="median")]),
            _second_phase_part(runs),
            _runs_part(runs, scores, choices),
        ],
        settings=settings,
    )


def _answer(
    runs: Sequence[Row],
    judged: Mapping[str, list[Judgement]],
    scores: Mapping[str, list[Score]],
    choices: Sequence[Choice],
) -> list[str]:
    total = len(runs)
    throughout = sum(is_proven_throughout(run) for run in runs)
    peaks = Counter(judgement.outcome for judgement in judged["2"])
    places = [_place(run) for run in runs]
    lowest = Counter(run["minimum"]["verdict"] for run in runs)
    early = sum(result.early for result in scores[PRINTED])
    return [
        f"Along Adam the loss was proven non-convex at every measured point in {throughout} of {total} runs. The "
        f"gradient norm’s peak marked the entry into a region without negative curvature in {peaks['supported']}, and "
        f"provably did not in {peaks['contradicted']}.",
        f"Switching where {PEAK} fires ends {_ending(PEAK, scores)}; where Algorithm 1 as printed does, "
        f"{_ending(PRINTED, scores)}, {early} of {total} times within the initial "
        "transient.",
        f"The best moment lay anywhere from {percent(min(places), 0)} to {percent(max(places), 0)} of "
        f"the budget. The rule of least regret, chosen on one half of the tasks and used on the other: "
        f"{'; '.join(map(_held_out, choices))}.",
        f"At the lowest point that any switch reached, the loss was still proven non-convex in {lowest['non-convex']} "
        f"of {total} runs, without negative curvature in {lowest['no-negative-curvature']}.",
    ]


def _held_out(choice: Choice) -> str:
    return (
        f"{choice.label}, a median of {percent(median(choice.regrets), 1)} above the best switch there and at "
        f"worst a factor of {number(1 + max(choice.regrets))}"
    )


def _ending(label: str, scores: Mapping[str, list[Score]]) -> str:
    regrets = [result.regret for result in scores[label]]
    within = sum(regret <= 0.1 for regret in regrets)
    above = percent(median(regrets), 1)
    return f"a median {above} above the best switch of the same run ({within} of {len(regrets)} within 10 %)"


def _place(run: Row) -> float:
    epoch = best_switch(run)["epoch"]
    return 1.0 if epoch is None else float(epoch / (len(run["rows"]) - 1))


def _interval(interval: Interval) -> str:
    if interval.low == interval.high:
        return number(interval.value)
    return f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})"


def _rules_part(runs: Sequence[Row], scores: Mapping[str, list[Score]], medians: Mapping[str, Interval]) -> Part:
    total = len(runs)
    rows = []
    for label in sorted(scores, key=lambda name: medians[name].value):
        results = scores[label]
        lags = [result.lag for result in results if result.lag is not None]
        transitions = [result.transition_lag for result in results if result.transition_lag is not None]
        rows.append(
            [
                label,
                _interval(
                    Interval(*(1 + value for value in (medians[label].value, medians[label].low, medians[label].high)))
                ),
                _mean_of(label, scores),
                f"{sum(result.regret <= 0.1 for result in results)} of {total}",
                number(1 + median(result.smooth_regret for result in results)),
                str(sum(result.early for result in results)),
                str(sum(result.before_rise for result in results)),
                str(sum(result.missed for result in results)),
                str(sum(result.epoch is None for result in results)),
                _signed(lags),
                MISSING
                if not transitions
                else f"{change(median(low for low, _ in transitions))} to "
                f"{change(median(high for _, high in transitions))} ({len(transitions)})",
            ]
        )
    columns: list[Column | str] = [
        Column("Rule (gradient)", False),
        "Loss / best switch: median (95 %)",
        "Geometric mean (95 %)",
        "Within 10 %",
        "Loss / best neighbourhood: median",
        "In the transient",
        "Before the norm’s first rise",
        "Missed",
        "Never fired",
        "Lag after the most negative curvature, epochs",
        "Lag after −5 % for good, epochs (runs)",
    ]
    gradients = (
        "In brackets is the gradient that a rule uses. “full”: of the whole training set once an epoch, which doubles "
        "the cost of an epoch and is charged. “halves”: from the mini-batches’ own gradients, each computed in two "
        "halves, so that their noise can be removed at no cost. “batch”: the same with the noise. A physics-informed "
        "network trains on the whole batch, so all three are the same and free. The curvature rule has both ends of "
        "the spectrum uncharged, which no trainer has."
    )
    return Part(
        "The rules against the best switch",
        [
            "Every rule follows each run epoch by epoch. Where it fires, the second phase takes over until the end of "
            "the same budget. The best switch is the lowest of all endings that need nothing beside Adam, Adam alone "
            "among them: an oracle that knows every outcome.",
            gradients,
        ],
        [
            all_switches_chart(runs, "oracle"),
            regret_chart(
                {label: [result.regret for result in results] for label, results in scores.items()}, medians, "regret"
            ),
        ],
        [make_table("Rules by their median regret.", columns, rows)],
    )


def _signed(values: Sequence[float]) -> str:
    return MISSING if not values else f"{change(median(values))} ({change(min(values))} to {change(max(values))})"


def _default_part(runs: Sequence[Row], scores: Mapping[str, list[Score]], both: Sequence[Choice]) -> Part:
    rows: list[list[Cell | str]] = []
    choices = [choice for choice in both if choice.criterion == "geometric mean"]
    for choice in both:
        interval = bootstrap(choice.regrets)
        rows.append(
            [
                f"{choice.chosen_on}, by {choice.criterion}",
                Cell(choice.label, strong=True),
                number(1 + choice.own),
                choice.reported_on,
                _interval(Interval(*(1 + value for value in (interval.value, interval.low, interval.high)))),
                number(1 + max(choice.regrets)),
                f"{choice.early} of {len(choice.regrets)}",
                choice.runner_up,
            ]
        )
    smooth = [regret for choice in choices for regret in choice.smooth_regrets]
    compared = {
        label: run_by_run(scores[PEAK], results) for label, results in scores.items() if label.startswith("at ")
    }
    return Part(
        "A default, chosen on one half of the tasks and reported on the other",
        [
            "The aim is a median of at most 1.10 on the tasks held out, and no decision within the initial transient. "
            f"{' '.join(map(_reached, choices))}",
            f"ConvexLab’s default is a switch {DEFAULT}: over all runs {_mean_and_worst(DEFAULT, scores)}; {PEAK}: "
            f"{_mean_and_worst(PEAK, scores)}. {_distinguished(compared)}",
            "No rule can know everything: the outcome is partly chance. From one switch to the next the final loss "
            f"changes by a median factor of {_jumps(runs)}. The best switch is the luckiest of some twenty. "
            "Against the best neighbourhood, the lowest geometric mean of three successive ones, the same "
            f"decisions end at a median of {number(1 + median(smooth))}.",
            f"{PEAK} fired at a median of epoch {_fired(runs)}. On noise without any trend that rule fires as early "
            "(its docstring has the rates): it is an early switch more than a test for a peak.",
            f"Medians with their intervals: {PEAK} {_loss_of(PEAK, scores)}; at 20 % of the budget "
            f"{_loss_of(fraction_label(0.2), scores)}, at 30 % {_loss_of(fraction_label(0.3), scores)}; with "
            "both ends of the spectrum uncharged, and a switch where the region became nearly convex, "
            f"{_loss_of(KNOWN_CURVATURE, scores)}.",
        ],
        [],
        [
            make_table(
                "Halves of the tasks; all rates and seeds of a task are in the same half. Loss over that of the best "
                "switch.",
                [
                    Column("Chosen on", False),
                    Column("Rule", False),
                    "Median there",
                    Column("Reported on", False),
                    "Median (95 %)",
                    "Worst",
                    "In the transient",
                    Column("Next best", False),
                ],
                rows,
            ),
            make_table(
                "Beside a switch fixed beforehand, run by run.",
                [
                    Column("Beside", False),
                    f"Loss of {PEAK} over its: geometric mean (95 %)",
                    "Lower in",
                    "Higher in",
                    "Equal in",
                ],
                [_compared_row(label, comparison, len(runs)) for label, comparison in compared.items()],
            ),
        ],
    )


def _reached(choice: Choice) -> str:
    middle = median(choice.regrets)
    reached = "reached" if middle <= 0.1 and not choice.early else "missed"
    return (
        f"Chosen on the {choice.chosen_on}: {choice.label}, on the {choice.reported_on} {number(1 + middle)}, with "
        f"{choice.early} decisions within the transient: {reached}."
    )


def _distinguished(compared: Mapping[str, Comparison]) -> str:
    """Say which fixed switches differ from the peak, run by run."""
    shares = {label.removeprefix("at ").removesuffix(" of the budget"): result for label, result in compared.items()}
    groups = {
        f"finds no difference between {PEAK} and a switch fixed at": [
            share for share, result in shares.items() if not result.told_apart
        ],
        "finds it worse than one at": [
            share for share, result in shares.items() if result.told_apart and result.ratio.value > 1
        ],
        "better than one at": [
            share for share, result in shares.items() if result.told_apart and result.ratio.value < 1
        ],
    }
    findings = [f"{verb} {', '.join(group)}" for verb, group in groups.items() if group]
    return f"Run by run the study {', '.join(findings)} (95 %, each by itself)."


def _compared_row(label: str, comparison: Comparison, runs: int) -> list[str]:
    lower, higher = comparison.lower, comparison.higher
    return [label, _interval(comparison.ratio), str(lower), str(higher), str(runs - lower - higher)]


def _mean_of(label: str, scores: Mapping[str, list[Score]]) -> str:
    return _interval(bootstrap_geometric_mean([1 + result.regret for result in scores[label]]))


def _mean_and_worst(label: str, scores: Mapping[str, list[Score]]) -> str:
    worst = 1 + max(result.regret for result in scores[label])
    return f"a geometric mean of {_mean_of(label, scores)} and at worst {number(worst)}"


def _loss_of(label: str, scores: Mapping[str, list[Score]]) -> str:
    return _interval(bootstrap([1 + result.regret for result in scores[label]]))


def _fired(runs: Sequence[Row]) -> str:
    epochs = [run["decisions"][PEAK]["epoch"] for run in runs]
    low, middle, high = np.quantile([epoch for epoch in epochs if epoch is not None] or [math.nan], [0.25, 0.5, 0.75])
    return f"{count(middle)} of {len(runs[0]['rows']) - 1} (middle half {count(low)} to {count(high)})"


def _jumps(runs: Sequence[Row]) -> str:
    kinds: dict[str, list[float]] = {}
    for run in runs:
        kinds.setdefault(kind_of(run), []).append(jump(run))
    return ", ".join(f"{number(median(jumps))} ({kind})" for kind, jumps in kinds.items())


def _second_phase_part(runs: Sequence[Row]) -> Part:
    endings = [ending for run in runs for ending in run["endings"]]
    reasons = Counter(_reason(ending["resorted"]) for ending in endings if ending["resorted"])
    counts = ", ".join(f"{times} because {reason}" for reason, times in reasons.most_common())
    given_up = (
        f"It was given up for Adam in {reasons.total()} of {len(endings)} switches: {counts}."
        if reasons
        else f"It was given up for Adam in none of {len(endings)} switches."
    )
    return Part(
        "The second phase",
        [
            "Every switch is followed by the loop that the trainer itself runs: one budget, and one set of reasons to "
            "give the second phase up. A step is begun as long as the budget pays for it; a loss counts where a step "
            "ends.",
            f"{given_up} Before the loops were one, this study gave it up after failed steps alone, and counted the "
            "loss of every evaluation.",
        ],
    )


def _reason(sentence: str) -> str:
    """Return which of the trainer's rules a stored reason is of."""
    if "gradient norm has been above" in sentence:
        return "the gradient norm stayed above Adam’s largest"
    return "it stalled" if "steps have lowered the loss" in sentence else "steps failed"


def _runs_part(runs: Sequence[Row], scores: Mapping[str, list[Score]], choices: Sequence[Choice]) -> Part:
    chosen = {task: choice.label for choice in choices for task in choice.tasks}
    rows = []
    for index, run in enumerate(runs):
        best, last = best_switch(run), run["truth"][-1]
        result = scores[chosen[run["task"]]][index]
        rows.append(
            [
                run["task"],
                short(run["case"]["rate"]),
                str(run["case"]["seed"]),
                count(run["examples"]),
                count(run["parameters"]),
                number(run["adam"]),
                number(best["loss"]),
                MISSING if best["epoch"] is None else str(best["epoch"]),
                MISSING if result.epoch is None else str(result.epoch),
                number(1 + result.regret),
                pattern(*kinds(run)).word,
                number(last["smallest"]),
                number(last["largest"]),
                run["minimum"]["verdict"],
            ]
        )
    columns: list[Column | str] = [
        Column("Task", False),
        "Rate",
        "Seed",
        "Examples",
        "Parameters",
        "Adam alone",
        "Best switch",
        "at epoch",
        "Default’s epoch",
        "its loss / best",
        Column("Verdicts along Adam", False),
        "Smallest at the end",
        "Largest",
        Column("Where the best switch ended", False),
    ]
    rules = [name for name in (PEAK, "unimodal-norm (batch)", "loss-plateau (batch)") if name in scores]
    examples = {run["task"]: run for run in runs}
    shown = [examples[task] for task in list(examples)[:: max(1, len(examples) // 4)]][:4]
    charts = [run_chart(run, rules, f"run-{place}") for place, run in enumerate(shown)]
    return Part("The runs", [], charts, [make_table("All runs.", columns, rows)])

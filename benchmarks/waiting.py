"""Whether a switch that waits while Adam still falls fast does better than a fixed one, by the runs on record.

Run: ``python benchmarks/waiting.py``. It reads results/phase_two.jsonl and trains nothing.

How fast Adam falls is the logarithm by which its lowest loss has fallen over the last third of its epochs, times how
many such thirds are left. The rule asks at 0.3, 0.5 and 0.8 of the budget, and switches as soon as that is below a
limit; else Adam goes on to the end. A ratio is the second phase's final loss over constant Adam's, of the same rate.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from common import RESULTS, Table
from phase_two_results import read_lines

_PLACES = ("0.3", "0.5", "0.8")
_LIMITS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 6.0)
_FLOOR = 1.2e-7
_WORSE = math.log(1.1)

Switches = Mapping[str, tuple[float, float]]
"""Of one run of Adam, by the place of the switch: how far Adam would fall, and the logarithm of the ratio."""


def main() -> None:
    """Print the tables, of all problems and of either half of them."""
    runs = switches()
    problems = sorted(runs)
    for title, chosen in (("all", problems), ("every second", problems[::2]), ("the others", problems[1::2])):
        rows = [_row(f"at {place}", runs, chosen, _fixed(place)) for place in _PLACES]
        rows += [_row(f"waits until below {limit:g}", runs, chosen, _waiting(limit)) for limit in _LIMITS]
        print(Table(f"{title}: {len(chosen)} problems", rows))


def switches() -> dict[str, list[Switches]]:
    """Return what is on record, by problem."""
    grouped: dict[tuple[Any, ...], dict[str | None, dict[str, Any]]] = defaultdict(dict)
    for line in read_lines(RESULTS / "phase_two.jsonl"):
        if line["name"] in ("adam-constant", "lbfgs-adam-scaled") and "loss" in line:
            key = tuple(line[name] for name in ("problem", "train_size", "budget", "seed", "rate"))
            grouped[key][line["switch"]] = line
    runs: dict[str, list[Switches]] = defaultdict(list)
    for lines in grouped.values():
        if {None, *_PLACES} <= lines.keys():
            adam = lines[None]
            runs[adam["problem"]].append(
                {
                    place: (_fall(adam, float(place)), _log(lines[place]["loss"]) - _log(adam["loss"]))
                    for place in _PLACES
                }
            )
    return runs


def _fall(adam: Mapping[str, Any], share: float) -> float:
    """Return the logarithm by which Adam is expected to fall in what is left after this share of the budget."""
    budget = float(adam["budget"])
    at = share * budget
    return (_lowest(adam, at * 2 / 3) - _lowest(adam, at)) / (at / 3) * (budget - at)


def _lowest(adam: Mapping[str, Any], until: float) -> float:
    return _log(min(float(loss) for cost, loss, *_ in adam["curve"] if cost <= until))


def _log(loss: float) -> float:
    return math.log(max(loss, _FLOOR))


def _fixed(place: str) -> Callable[[Switches], float]:
    return lambda run: run[place][1]


def _waiting(limit: float) -> Callable[[Switches], float]:
    return lambda run: next((ratio for fall, ratio in (run[place] for place in _PLACES) if fall < limit), 0.0)


def _row(
    title: str, runs: Mapping[str, Sequence[Switches]], problems: Sequence[str], rule: Callable[[Switches], float]
) -> dict[str, Any]:
    ratios = {problem: [rule(run) for run in runs[problem]] for problem in problems}
    every = [ratio for of_problem in ratios.values() for ratio in of_problem]
    return {
        "switch": title,
        "geometric mean": math.exp(fmean(every)),
        "worst problem": math.exp(max(map(fmean, ratios.values()))),
        "worst run": math.exp(max(every)),
        "runs above 1.1": f"{100 * fmean(ratio > _WORSE for ratio in every):.0f} %",
    }


if __name__ == "__main__":
    main()

"""The tables of `phase_two.py report`: medians over seeds, geometric means over problems."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median

from phase_two_results import FLOOR, Line, Results, device_of, mean_ratio, spread_of, table
from phase_two_runs import ADAM_REST, SOLVER_FRACTIONS, SOLVER_RATE, Run
from phase_two_solvers import SOLVERS
from phase_two_whole import default_runs, switches, whole

from convexlab.training.phases import LARGE, phase_two_names

__all__ = ["report", "torch_best"]

_TORCH = ("torch-lbfgs-20", "torch-lbfgs-100")


def report(results: Results, seconds: Sequence[Line] = ()) -> str:
    """Return everything in Markdown; ``seconds`` are the lines that `phase_two.py seconds` has written."""
    parts = ["# A phase two against its peers, at equal cost", _inventory(results)]
    parts += [_solvers(results, fraction) for fraction in SOLVER_FRACTIONS]
    parts += [
        _kinds(results),
        whole(results),
        switches(results),
        _evaluations(results),
        _stopped(results),
        _seconds(seconds),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _inventory(results: Results) -> str:
    seeds: dict[str, set[int]] = {}
    for line in results.all_lines():
        seeds.setdefault(device_of(line), set()).add(line["seed"])
    where = "; ".join(f"{', '.join(map(str, sorted(mine)))} on {device}" for device, mine in sorted(seeds.items()))
    absent = sum("absent" in line for line in results.all_lines())
    return (
        f"{len(results.problems)} problems (model/data/loss, training examples or points, budget in gradient "
        f"equivalents), seeds {where}. Losses are the lowest training losses met within the budget, medians over "
        f"seeds; ratios are of such medians over the seeds that both have. One below {FLOOR:.2g}, "
        f"float32's resolution, counts as that. {absent} runs were not possible: "
        "nothing to start from, or a solver that is not for the problem."
    )


def torch_best(results: Results, problem: str, fraction: str) -> str | None:
    """Return torch's better L-BFGS from a switch."""
    return results.best(problem, [Run(name, SOLVER_RATE, fraction).key for name in _TORCH], "phase_loss")


def _solvers(results: Results, fraction: str) -> str:
    problems = [problem for problem in results.problems if torch_best(results, problem, fraction)]
    if not problems:
        return ""
    ratios = {name: [_solver_ratio(results, one, name, fraction) for one in problems] for name in (*SOLVERS, *_ADAM_ON)}
    ratios = {name: values for name, values in ratios.items() if any(value is not None for value in values)}
    summary = [
        [name, mean_ratio(values), mean_ratio(_where(values, problems, physics=False)), *spread_of(values)]
        for name, values in ratios.items()
    ]
    detail = [
        [problem, results.value(problem, best, "phase_loss"), best.split()[0], *(ratios[name][row] for name in ratios)]
        for row, problem in enumerate(problems)
        if (best := torch_best(results, problem, fraction))
    ]
    return "\n\n".join(
        [
            f"## From one point: Adam at {SOLVER_RATE:g} to {fraction} of the budget, then the solver",
            "Lowest loss of the phase over that of torch's better L-BFGS (history 20 or 100).",
            table(
                ["solver", "geometric mean", "without physics", "min", "median", "max", "above 1", "problems"], summary
            ),
            table(["problem", "torch L-BFGS", "which", *ratios], detail),
        ]
    )


def _kinds(results: Results) -> str:
    """Return the default beside torch's L-BFGS and Adam, a line for every kind of problem."""
    runs = {run.problem: run for run in default_runs(results)}
    kinds: dict[str, list[str]] = {}
    for problem in runs:
        kinds.setdefault(_kind(problem), []).append(problem)
    rows = [
        [
            kind,
            len(problems),
            *(
                mean_ratio(_solver_ratio(results, one, LARGE, fraction) for one in problems)
                for fraction in SOLVER_FRACTIONS
            ),
            mean_ratio(results.ratio(one, runs[one].ours, runs[one].constant) for one in problems),
            mean_ratio(results.ratio(one, runs[one].ours, runs[one].cosine) for one in problems),
        ]
        for kind, problems in [*kinds.items(), ("all", list(runs))]
    ]
    head = ["problems", "number", *(f"torch's better L-BFGS, from {one}" for one in SOLVER_FRACTIONS)]
    head += ["best constant Adam, whole runs", "best cosine Adam, whole runs"]
    note = f"{LARGE}: its loss over theirs, geometric means; whole runs as below, the switch held out."
    return "\n\n".join(["## By kind of problem", note, table(head, rows)]) if runs else ""


def _kind(problem: str) -> str:
    if Results.physics(problem):
        return "physics-informed networks"
    model, data, loss = problem.split(",")[0].split("/")
    if data == "friedman":
        return "a regression"
    return f"{'VGG5' if model.startswith('vgg5') else 'vision transformers'}, {loss.replace('mse', 'squared error')}"


_ADAM_ON = {"adam-constant": None, ADAM_REST: None}


def _solver_ratio(results: Results, problem: str, name: str, fraction: str) -> float | None:
    reference = torch_best(results, problem, fraction)
    if name == "adam-constant":  # It goes on as it was: the run from the start has its loss.
        return results.ratio(problem, Run(name, SOLVER_RATE).key, reference, "loss", "phase_loss")
    return results.ratio(problem, Run(name, SOLVER_RATE, fraction).key, reference, "phase_loss")


def _where(values: Sequence[float | None], problems: Sequence[str], *, physics: bool) -> list[float | None]:
    return [value for value, problem in zip(values, problems, strict=True) if Results.physics(problem) is physics]


def _evaluations(results: Results) -> str:
    rows = []
    for name in phase_two_names():
        lines = [line for line in results.all_lines() if line["name"] == name and line.get("evaluations")]
        means = [_mean(line["evaluations"]) for line in lines]
        if means:
            steps = sum((Counter({int(k): n for k, n in line["evaluations"].items()}) for line in lines), Counter())
            medians = [_median(line["evaluations"]) for line in lines]
            rows.append([name, median(medians), max(medians), median(means), max(means), steps.total(), len(lines)])
    head = ["phase two", "median", "largest median", "mean", "largest mean", "iterations", "runs"]
    note = "Of a run's iterations the median or the mean; of these the median over runs, and the largest."
    return "\n\n".join(["## Evaluations an iteration", note, table(head, rows)]) if rows else ""


def _mean(counts: dict[str, int]) -> float:
    return sum(int(count) * steps for count, steps in counts.items()) / sum(counts.values())


def _median(counts: dict[str, int]) -> float:
    return median(Counter({int(count): steps for count, steps in counts.items()}).elements())


def _stopped(results: Results) -> str:
    lines = [line for line in results.all_lines() if line["name"] in SOLVERS and "absent" not in line]
    rows = [
        [
            line["problem"],
            line["key"],
            line["seed"],
            line["cost"] / line["budget"],
            line["loss"],
            line["gradient_norm"],
            line["gradient_norm"] / line["rounding_floor"] if line["rounding_floor"] else math.inf,
            line["stopped"],
        ]
        for line in lines
        if line["stopped"] and line["name"] in phase_two_names()
    ]
    peers = Counter(line["name"] for line in lines if line["stopped"] and line["name"] not in phase_two_names())
    again = Counter(line["name"] for line in lines if line["starts"] > 1)
    not_finite = Counter(line["name"] for line in lines if line["not_finite"])
    head = ["problem", "run", "seed", "spent", "loss", "gradient norm", "over its rounding error", "reason"]
    texts = [
        "## Runs that stopped before their budget",
        table(head, rows) if rows else "None of ours.",
        f"Peers that stopped for good: {_counts(peers)}. Started again: {_counts(again)}. With an evaluation that was "
        f"infinite or NaN: {_counts(not_finite)}.",
    ]
    return "\n\n".join(texts) if lines else ""


def _seconds(lines: Sequence[Line]) -> str:
    """Return what a gradient equivalent takes on each device, of the last measurement there."""
    measured = {(line["problem"], line["device"]): line for line in lines}
    devices = sorted({device for _, device in measured})
    rows = []
    for problem in dict.fromkeys(problem for problem, _ in measured):
        row = [problem]
        for device in devices:
            line = measured.get((problem, device))
            row += [1000 * line[what] if line else None for what in ("gradient", "value", "epoch")]
            row.append(line["gradient"] / line["epoch"] if line else None)
        rows.append(row)
    what = ("gradient, ms", "value, ms", "epoch of Adam, ms", "gradient over epoch")
    head = ["problem", *(f"{device}: {one}" for device in devices for one in what)]
    note = (
        "One process, medians. A gradient is that of the objective over all examples. A step of Adam is fused, and on "
        "CUDA captured as a graph; a gradient is not."
    )
    return "\n\n".join(["## What a gradient equivalent takes", note, table(head, rows)]) if rows else ""


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"

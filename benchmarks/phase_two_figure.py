"""The curves of `phase_two.py report`: the lowest training loss so far over cost, a row of panels a problem."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from phase_two_report import torch_best
from phase_two_results import Results
from phase_two_runs import ADAM_REST, FRACTIONS, RATES, SOLVER_FRACTIONS, SOLVER_RATE, Run
from phase_two_whole import whole_runs

from convexlab.training.phases import LARGE

__all__ = ["draw"]

_COLUMNS = 2  # Problems a row, of two panels each.
_COLOURS = ("C0", "C1", "C2", "C3")


def draw(results: Results, file: Path) -> None:
    """Write whole runs (left) and solvers from one point (right) of every problem, one seed each."""
    problems = results.problems
    rows = -(-len(problems) // _COLUMNS)
    figure = Figure(figsize=(7.0 * _COLUMNS, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * _COLUMNS, squeeze=False).reshape(-1, 2)
    for problem, (left, right) in zip(problems, axes, strict=False):
        _whole(results, problem, left)
        _solvers(results, problem, right)
    for left, right in axes[len(problems) :]:
        left.remove()
        right.remove()
    with mpl.rc_context({"svg.hashsalt": "convexlab"}):  # The same file from the same results.
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _whole(results: Results, problem: str, axes: Axes) -> None:
    ours = [Run(LARGE, rate, switch).key for rate in RATES for switch in FRACTIONS]
    for run in whole_runs(results, lambda name: ours):
        if run.problem == problem:
            _lines(results, problem, {run.constant: run.constant, run.cosine: run.cosine, run.ours: run.ours}, axes)
    _dress(axes, problem)


def _solvers(results: Results, problem: str, axes: Axes) -> None:
    fraction = SOLVER_FRACTIONS[0]
    keys = {
        "Adam": Run("adam-constant", SOLVER_RATE).key,
        "Adam, cosine": Run(ADAM_REST, SOLVER_RATE, fraction).key,
        LARGE: Run(LARGE, SOLVER_RATE, fraction).key,
    }
    if best := torch_best(results, problem, fraction):
        keys[best.split()[0]] = best
    _lines(results, problem, keys, axes)
    _dress(axes, f"from Adam {SOLVER_RATE:g} at {fraction}")


def _lines(results: Results, problem: str, keys: dict[str, str], axes: Axes) -> None:
    for colour, (label, key) in zip(_COLOURS, keys.items(), strict=False):
        lines = sorted(results.lines(problem, key).values(), key=lambda line: line["loss"])
        if lines:
            # The seed whose end is the median: a median of curves would be nobody's.
            middle = median(range(len(lines) - 1 + len(lines) % 2))
            curve = lines[int(middle)]["curve"]
            axes.plot([row[0] for row in curve], [row[1] for row in curve], colour, lw=1.2, label=label)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    axes.set_xlabel("gradient equivalents", fontsize=7)
    if axes.has_data():
        axes.set_yscale("log")
        axes.set_ylabel("lowest training loss", fontsize=7)
        axes.legend(fontsize=6)

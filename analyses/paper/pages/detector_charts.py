"""The charts of the validation study: where a switch pays, what each rule's decision cost, what curvature did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

from convexlab.reporting.charts.several import Track, negative_curvature_chart
from convexlab.reporting.charts.style import INK, MUTED, PALETTE, draw, label, legend, scale_linear, scale_log
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.runs import Row
from convexlab.wording.numbers import number, percent
from paper.scores import Interval, best_switch, counted, outcomes

__all__ = ["all_switches_chart", "curvature_chart", "kind_of", "regret_chart", "run_chart"]

_KINDS = {
    "mse": (PALETTE["blue"], "-", "squared error, images"),
    "cross-entropy": (PALETTE["vermilion"], "--", "cross-entropy, images"),
    "other": (PALETTE["green"], "-.", "regression and physics"),
}
# Further right all is the same: lost.
_FAR = 1e4
_FLOOR, _NEARLY = 1e-3, 0.05


def kind_of(run: Row) -> str:
    """Return what sort of loss a run has, in words."""
    return _kind(run)[2]


def _kind(run: Row) -> tuple[str, str, str]:
    images = run["case"]["dataset"] not in {"friedman", "convection", "burgers"}
    return _KINDS[run["case"]["loss"] if images else "other"]


def oracle_curve(run: Row) -> tuple[list[float], list[float]]:
    """Return the shares of the budget at which a switch was tried for Adam's cost alone, and loss over the lowest."""
    best, last = counted(best_switch(run)["loss"]), len(run["rows"]) - 1
    endings = outcomes(run)
    shares = [1.0 if ending["epoch"] is None else ending["epoch"] / last for ending in endings]
    return shares, [counted(ending["loss"]) / best for ending in endings]


def all_switches_chart(runs: Sequence[Row], key: str) -> Chart:
    """Return the loss at the end of the budget over where in it the switch was made."""
    with draw(height=4.0) as (figure, (axes,)):
        named: set[str] = set()
        for run in runs:
            color, line, name = _kind(run)
            x, y = oracle_curve(run)
            text = "_" if name in named else name
            axes.plot(x, np.minimum(y, _FAR), color=color, linestyle=line, linewidth=1.0, alpha=0.75, label=text)
            named.add(name)
        scale_log(axes, "y")
        scale_linear(axes, "x")
        axes.set_xlabel("switch, as a share of the budget (1: Adam alone)")
        axes.set_ylabel("final loss / that of the best switch")
        legend(axes)
        places = [_share_of_best(run) for run in runs]
        return chart(
            figure,
            key=key,
            title="Every switch, followed to the end of the same budget",
            caption="One line a run; 1 is its best switch. Early is fatal for some runs and late for others.",
            description=f"The best switch lies between {percent(min(places), 0)} and {percent(max(places), 0)} of the "
            f"budget, in the median at {percent(median(places), 0)}.",
        )


def _share_of_best(run: Row) -> float:
    best = best_switch(run)
    return 1.0 if best["epoch"] is None else best["epoch"] / (len(run["rows"]) - 1)


def regret_chart(regrets: Mapping[str, Sequence[float]], medians: Mapping[str, Interval], key: str) -> Chart:
    """Return the regrets of every rule, one dot a run, rules by their medians."""
    order = sorted(regrets, key=lambda name: medians[name].value, reverse=True)
    with draw(height=1.1 + 0.27 * len(order)) as (figure, (axes,)):
        for place, name in enumerate(order):
            values = np.minimum(1.0 + np.asarray(regrets[name]), _FAR)
            spread = place + 0.5 * (np.arange(len(values)) / max(1, len(values) - 1) - 0.5)
            axes.plot(values, spread, "o", color=PALETTE["blue"], markersize=2.6, alpha=0.55)
            interval = medians[name]
            low, middle, high = (min(1.0 + value, _FAR) for value in (interval.low, interval.value, interval.high))
            axes.plot([low, high], [place, place], color=PALETTE["vermilion"], linewidth=2.4)
            axes.plot([middle], [place], "D", color=PALETTE["vermilion"], markersize=5)
        axes.set_yticks(range(len(order)), [label(name, 34) for name in order])
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.grid(False, axis="y")
        scale_log(axes, "x")
        axes.set_xlabel("final loss / that of the best switch")
        best = order[-1]
        return chart(
            figure,
            key=key,
            title="What each rule’s decision cost",
            caption="A dot a run; diamond and bar: median with its 95 % bootstrap interval. Left is better.",
            description=" ".join(f"{name}: median {number(1 + medians[name].value)}." for name in reversed(order))
            + f" The lowest is {best}.",
        )


def curvature_chart(runs: Sequence[Row], key: str) -> Chart | None:
    """Return how negative the smallest eigenvalue is beside the largest along every run, over the loss."""
    tracks = (_track(run) for run in runs)
    return negative_curvature_chart(filter(None, tracks), key, along="Adam", borders=(_FLOOR, _NEARLY))


def _track(run: Row) -> Track | None:
    color, line, name = _kind(run)
    rows = [row for row in run["truth"] if row["smallest"] is not None and row["largest"]]
    if not rows:
        return None
    start = run["rows"][0]["train_loss"]
    losses, ratios = zip(*((row["train_loss"] / start, row["smallest"] / row["largest"]) for row in rows), strict=True)
    return Track(name, color, line, losses, ratios)


def run_chart(run: Row, rules: Sequence[str], key: str) -> Chart:
    """Return one run in detail: the gradient norms, both ends of the spectrum, and where every switch ended."""
    rows, truth = run["rows"], run["truth"]
    epochs = [row["epoch"] for row in rows]
    with draw(rows=3, height=7.2) as (figure, (top, middle, bottom)):
        top.plot(epochs, [row["gradient_norm"] for row in rows], color=PALETTE["blue"], label="‖g‖, full")
        halves = np.array([_finite(row["unbiased_gradient_norm"]) for row in rows])
        noise = np.array([_finite(row["gradient_noise"]) for row in rows])
        top.plot(epochs, halves, color=PALETTE["orange"], linestyle="--", label="‖g‖ from mini-batches")
        top.fill_between(epochs, halves - noise, halves + noise, color=PALETTE["orange"], alpha=0.25, linewidth=0)
        top.set_ylabel("gradient norm")
        legend(top)
        places = [row["epoch"] for row in truth]
        middle.plot(
            places, [row["largest"] for row in truth], color=PALETTE["green"], marker="^", markersize=4, label="largest"
        )
        middle.plot(
            places,
            [row["smallest"] for row in truth],
            color=PALETTE["vermilion"],
            marker="v",
            markersize=4,
            label="smallest",
        )
        middle.plot(
            places, [row["gradient_curvature"] for row in truth], color=MUTED, linestyle=":", label="gᵀHg / gᵀg"
        )
        middle.axhline(0.0, color=INK, linewidth=0.8)
        middle.set_ylabel("curvature")
        legend(middle)
        x, y = oracle_curve(run)
        bottom.plot([share * (len(rows) - 1) for share in x], y, color=PALETTE["purple"], marker="o", markersize=4)
        scale_log(bottom, "y")
        bottom.set_ylabel("final loss / best")
        bottom.set_xlabel("epoch (of the switch, in the last panel)")
        decisions = []
        for number_of, name in enumerate(rules):
            epoch = run["decisions"][name]["epoch"]
            decisions.append(f"{name}: {'never' if epoch is None else f'epoch {epoch}'}")
            if epoch is not None:
                for axes in (top, middle, bottom):
                    axes.axvline(epoch, color=INK, linewidth=0.9, linestyle=(0, (2 + 2 * number_of, 2)))
        scale_linear(bottom, "x")
        return chart(
            figure,
            key=key,
            title=f"In detail: {label(run['task'], 60)}",
            caption=f"Upright lines, from short to long dashes: {'; '.join(decisions)}.",
            description="The gradient norm is largest at epoch "
            f"{max(rows, key=lambda row: row['gradient_norm'])['epoch']}; the best switch is at "
            f"{best_switch(run)['epoch'] or 'none'}.",
        )


def _finite(value: float | None) -> float:
    return math.nan if value is None else value

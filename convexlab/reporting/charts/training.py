"""The paper's figures 5 and 6: gradient norm over loss, and loss over cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from convexlab.reporting.charts.curves import Column, both_known, plot_phases, plot_runs
from convexlab.reporting.charts.hindsight import mark_best_point
from convexlab.reporting.charts.style import INK, draw, legend, scale_linear, scale_log, spans_far
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.run import algorithm_name
from convexlab.runs.rows import Curve
from convexlab.wording.numbers import count, number

__all__ = ["cost_charts", "norm_chart"]

Floats = npt.NDArray[np.float64]


def norm_chart(facts: RunFacts, key: str) -> Chart | None:
    """Return the gradient norm over the loss, the paper's figure 5; None where too little was recorded."""
    curve = facts.curve
    if curve is None:
        return None
    usable = both_known(curve.loss, curve.norm)
    if usable.size < 2:
        return None
    with draw() as (figure, (axes,)):
        plot_phases(axes, facts, lambda curve: curve.loss, lambda curve: curve.norm)
        start = int(usable[0])
        axes.plot(curve.loss[start], curve.norm[start], "*", color=INK, markersize=10, label="start", linestyle="")
        _mark_switch_point(axes, facts)
        mark_best_point(axes, facts)
        (scale_log if spans_far(curve.loss) else scale_linear)(axes, "x")
        (scale_log if spans_far(curve.norm) else scale_linear)(axes, "y")
        axes.set_xlabel("training loss   (training runs from right to left)")
        axes.set_ylabel("gradient norm")
        legend(axes)
        return chart(
            figure,
            key=key,
            title="Gradient norm over loss",
            caption="The paper's figure 5. Its claim: the norm rises in the non-convex part, falls in the convex one.",
            description=_describe_norm(facts, curve, usable),
            values=("training loss", "gradient norm"),
        )


def _mark_switch_point(axes: Axes, facts: RunFacts) -> None:
    switch = facts.switch
    if switch is None or switch.epoch is None or switch.train_loss is None or switch.gradient_norm is None:
        return
    axes.plot(
        switch.train_loss,
        switch.gradient_norm,
        "D",
        color="white",
        markeredgecolor=INK,
        markeredgewidth=1.6,
        markersize=8,
        zorder=5,
        label=f"switch, epoch {count(switch.epoch)}",
    )


def _describe_norm(facts: RunFacts, curve: Curve, usable: npt.NDArray[np.int64]) -> str:
    def at(index: int) -> str:
        return (
            f"epoch {count(curve.epoch[index])}, loss {number(curve.loss[index])}, "
            f"gradient norm {number(curve.norm[index])}"
        )

    top = usable[np.argmax(curve.norm[usable])]
    text = f"Starts at {at(usable[0])}. Largest gradient norm: {at(top)}. Ends at {at(usable[-1])}."
    switch = facts.switch
    if facts.oracle is not None:
        text += f" The best of the switches tried began at epoch {count(facts.oracle.best.epoch)} of Adam."
    if switch is None or switch.epoch is None:
        return text + " No switch."
    return (
        f"{text} Switch to {facts.phase_two} after epoch {count(switch.epoch)}: "
        f"loss {number(switch.train_loss)}, gradient norm {number(switch.gradient_norm)}."
    )


@dataclass(frozen=True)
class _CostAxis:
    name: str
    title: str
    axis: str
    unit: str
    caption: str
    of: Column


def _cost_axes(facts: RunFacts) -> list[_CostAxis]:
    axes = [
        _CostAxis(
            "cost",
            "Loss over cost",
            "cost in gradient equivalents",
            "gradient equivalents",
            "The paper's figure 6 with every forward pass and line-search step charged. This axis decides.",
            lambda curve: curve.cost,
        ),
        _CostAxis(
            "seconds",
            "Loss over time",
            "seconds",
            "seconds",
            "As measured on the machine named below. Seconds decide nothing.",
            lambda curve: curve.seconds,
        ),
    ]
    if facts.parameters and facts.train_size:
        scale = facts.parameters / 1e6 * facts.train_size
        paper = _CostAxis(
            "epochs",
            "Loss over the paper's axis",
            "epochs × million parameters × training examples",
            "epochs × million parameters × training examples",
            "The axis of the paper's figure 6. It charges a phase-two step like an Adam epoch, whatever it cost.",
            lambda curve: curve.epoch * scale,
        )
        axes.insert(1, paper)
    return axes


def cost_charts(facts: RunFacts, key: str, which: slice = slice(None)) -> list[Chart]:
    """Return the charts of the loss: over cost (the paper's figure 6), over the paper's own axis, and over seconds."""
    charts = (_cost_chart(facts, axis, f"{key}-{axis.name}") for axis in _cost_axes(facts)[which])
    return [made for made in charts if made is not None]


def _cost_chart(facts: RunFacts, axis: _CostAxis, key: str) -> Chart | None:
    drawn = [curve for curve in facts.curves.values() if both_known(axis.of(curve), curve.loss).size]
    if not drawn:
        return None
    with draw() as (figure, (axes,)):
        plot_runs(axes, facts, axis.of, lambda curve: curve.loss)
        scale_linear(axes, "x")
        losses = np.concatenate([curve.loss for curve in drawn])
        # Far is not asked for here: on this figure the eye compares ratios.
        (scale_log if np.nanmin(losses) > 0 else scale_linear)(axes, "y")
        axes.set_xlabel(axis.axis)
        axes.set_ylabel("training loss")
        legend(axes)
        return chart(
            figure,
            key=key,
            title=axis.title,
            caption=axis.caption,
            description=_describe_cost(facts, axis),
            values=(axis.unit, "training loss"),
        )


def _describe_cost(facts: RunFacts, axis: _CostAxis) -> str:
    parts = []
    for name, curve in facts.curves.items():
        usable = both_known(axis.of(curve), curve.loss)
        if usable.size:
            last, best = usable[-1], usable[np.argmin(curve.loss[usable])]
            parts.append(
                f"{algorithm_name(name, facts)}: loss {number(curve.loss[usable[0]])} at the start, lowest "
                f"{number(curve.loss[best])}, {number(curve.loss[last])} at the end, "
                f"after {count(axis.of(curve)[last])} {axis.unit}."
            )
    return " ".join(parts)

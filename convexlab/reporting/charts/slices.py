"""The loss along the eigenvectors of the smallest and the largest eigenvalue, beside its quadratic model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from convexlab.reporting.charts.style import INK, PALETTE, draw, label
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.run import place
from convexlab.runs.rows import LossSlice, ProbedCheckpoint
from convexlab.wording.numbers import number, percent, short, signed

__all__ = ["holds_to", "slice_chart"]

Floats = npt.NDArray[np.float64]
_ENDS = ("smallest", "largest")
# Where the loss leaves the model by more than this share of what curvature adds there, the model no longer holds.
_TOLERANCE = 0.25
# What rises above the model by more than so many times its range would press the rest flat.
_HIGHEST = 3.0
_MODEL_POINTS = 25
_HATCHED, _HATCH = "#f6d9c8", "////"


def slice_chart(facts: RunFacts, key: str) -> Chart | None:
    """Return the slices at the start, at the switch and at the end, a row each; None where none was made."""
    chosen = _chosen(facts)
    if not chosen:
        return None
    with draw(rows=len(chosen), columns=2, height=1.2 + 1.75 * len(chosen)) as (figure, panels):
        for row, (name, checkpoint) in enumerate(chosen):
            heads = (f"{name}: {label(place(checkpoint), 22)}", f"loss {number(checkpoint.train_loss)}")
            for axes, end, head in zip(panels[2 * row : 2 * row + 2], _ENDS, heads, strict=True):
                _panel(axes, checkpoint, end, head)
        for axes, end in zip(panels[-2:], _ENDS, strict=True):
            axes.set_xlabel(f"step / s, {end} eigenvalue")
        for axes in panels[:-2]:
            axes.tick_params(labelbottom=False)
        figure.supylabel("change of the loss (%)", fontsize=9.5, color=INK)
        figure.legend(handles=_handles([c for _, c in chosen]), loc="outside upper left", ncols=2, columnspacing=1.2)
        return chart(
            figure,
            key=key,
            title="Slices along the extreme eigenvectors",
            caption="The loss on the line through a checkpoint along an eigenvector, and what its slope and curvature "
            "there predict. λ: eigenvalue; s: the step at which its curvature alone changes the loss by a quarter. "
            "Hatched: negative curvature, the model below its tangent.",
            description=" ".join(_describe(name, checkpoint) for name, checkpoint in chosen),
        )


def _panel(axes: Axes, checkpoint: ProbedCheckpoint, end: str, head: str) -> None:
    drawn = checkpoint.slices.get(end)
    if drawn is None:
        axes.set_axis_off()
        axes.set_title(head, loc="left", fontsize=9.0, color=INK)
        return
    reach, percents = float(drawn.steps[-1]), 100 / abs(drawn.loss)
    fine = np.linspace(drawn.steps[0], drawn.steps[-1], _MODEL_POINTS)
    losses, model = (percents * (values - drawn.loss) for values in (drawn.losses, drawn.model(fine)))
    if drawn.curvature < -checkpoint.rounding_floor:
        tangent = percents * drawn.slope * fine
        look: dict[str, Any] = {
            "facecolor": _HATCHED,
            "edgecolor": PALETTE["vermilion"],
            "hatch": _HATCH,
            "linewidth": 0,
        }
        axes.fill_between(fine / reach, model, tangent, **look)
    axes.plot(fine / reach, model, "--", color=PALETTE["vermilion"], linewidth=1.4)
    axes.plot(drawn.steps / reach, losses, "o-", color=PALETTE["blue"], linewidth=1.4, markersize=3)
    axes.plot(0.0, 0.0, "D", color="white", markeredgecolor=INK, markersize=5, zorder=5)
    axes.set_ylim(*_limits(losses, model))
    sign = signed(drawn.curvature, checkpoint.rounding_floor)
    axes.set_title(f"{head}\nλ = {sign}, s = {number(reach, 2)}", loc="left", fontsize=9.0, color=INK)
    _ticks(axes)


def _limits(losses: Floats, model: Floats) -> tuple[float, float]:
    low, top = min(float(np.nanmin(losses)), float(model.min())), float(model.max())
    high = max(top, min(float(np.nanmax(losses)), top + _HIGHEST * float(np.ptp(model))))
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(FixedLocator([-1, 0, 1]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _handles(checkpoints: Sequence[ProbedCheckpoint]) -> list[Line2D | Patch]:
    blue, vermilion = PALETTE["blue"], PALETTE["vermilion"]
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=blue, linewidth=1.4, marker="o", markersize=3, label="loss"),
        Line2D([], [], color=vermilion, linewidth=1.4, linestyle="--", label="quadratic model"),
        Line2D([], [], color="white", marker="D", markeredgecolor=INK, markersize=5, label="checkpoint"),
    ]
    if any(drawn.curvature < -c.rounding_floor for c in checkpoints for drawn in c.slices.values()):
        hatched = Patch(facecolor=_HATCHED, edgecolor=vermilion, hatch=_HATCH, linewidth=0, label="negative curvature")
        handles.append(hatched)
    return handles


def holds_to(drawn: LossSlice) -> float:
    """Return up to which measured step, on both sides, the quadratic model holds.

    It holds where the loss is off by at most a quarter of what curvature adds to the tangent. 0 where it fails at the
    first step.
    """
    allowed = _TOLERANCE * 0.5 * abs(drawn.curvature) * drawn.steps**2
    fails = ~(np.abs(drawn.losses - drawn.model(drawn.steps)) <= allowed) & (drawn.steps != 0)
    sizes = np.abs(drawn.steps)
    # Both sides have the same steps up to rounding.
    first = float(sizes[fails].min()) * (1 - 1e-9) if fails.any() else math.inf
    return float(sizes[sizes < first].max(initial=0.0))


def _describe(name: str, checkpoint: ProbedCheckpoint) -> str:
    slices = [_describe_slice(end, drawn, checkpoint.rounding_floor) for end, drawn in checkpoint.slices.items()]
    return f"{name}, {place(checkpoint)}: {'; '.join(slices)}."


def _describe_slice(end: str, drawn: LossSlice, floor: float) -> str:
    reach = float(drawn.steps[-1])
    held = percent(holds_to(drawn) / reach, 0)
    losses = ", ".join(number(float(drawn.losses[index])) for index in (0, drawn.losses.size // 2, -1))
    return (
        f"along the eigenvector of the {end} eigenvalue, {signed(drawn.curvature, floor)}, the loss is {losses} at "
        f"−{number(reach)}, 0 and {number(reach)}; the quadratic model holds to {held} of that"
    )


def _chosen(facts: RunFacts) -> list[tuple[str, ProbedCheckpoint]]:
    """Up to three checkpoints that have slices: first, nearest the switch, last."""
    probe = [checkpoint for checkpoint in facts.probe if checkpoint.slices]
    if not probe:
        return []
    chosen = {0: "first", len(probe) - 1: "last"} if len(probe) > 1 else {0: "only one"}
    switch = facts.switch.epoch if facts.switch else None
    if switch is None:
        chosen.setdefault(len(probe) // 2, "middle")
    else:
        gaps = [math.inf if c.epoch is None else abs(c.epoch - switch) for c in probe]
        nearest = int(np.argmin(gaps))
        name = "switch" if gaps[nearest] == 0 else "nearest the switch"
        chosen[nearest] = f"{chosen[nearest]}, {name}" if nearest in chosen else name
    return [(chosen[index], probe[index]) for index in sorted(chosen)]

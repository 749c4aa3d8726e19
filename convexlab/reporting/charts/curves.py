"""Curves of training runs, drawn alike in all charts: each phase and each baseline by its own line and marker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from convexlab.reporting.charts.style import MUTED, PALETTE, label, thinned
from convexlab.reporting.facts.run import TWO_PHASE, RunFacts, value_at
from convexlab.reporting.words.run import algorithm_name
from convexlab.runs.rows import Curve

__all__ = ["Column", "both_known", "plot_phases", "plot_runs"]

# A line of more points is marked at some of them.
_FEW, _MARKERS = 150, 15

Floats = npt.NDArray[np.float64]
Column = Callable[[Curve], Floats]


@dataclass(frozen=True)
class _Stroke:
    """How a phase or a run is drawn: runs differ by line and marker, not by colour alone."""

    color: str
    line: str
    marker: str
    width: float = 1.8


_ADAM = _Stroke(PALETTE["blue"], "-", "o")
_PHASE_TWO = _Stroke(PALETTE["vermilion"], "-", "^", 2.2)
_BASELINES = (
    _Stroke("#6f7785", "--", "", 1.5),
    _Stroke(PALETTE["green"], ":", "", 1.9),
    _Stroke(PALETTE["purple"], "-.", "", 1.5),
)


def both_known(x: Floats, y: Floats) -> npt.NDArray[np.int64]:
    """Return the rows in which two columns of a curve are finite."""
    return np.flatnonzero(np.isfinite(x) & np.isfinite(y))


def plot_runs(axes: Axes, facts: RunFacts, x: Column, y: Column) -> None:
    """Draw one column over another for every training run, the two-phase run on top, and a line at its switch."""
    baselines = [(name, curve) for name, curve in facts.curves.items() if name != TWO_PHASE]
    for index, (name, curve) in enumerate(baselines):
        rows = both_known(x(curve), y(curve))
        if rows.size:
            stroke = _BASELINES[index % len(_BASELINES)]
            _plot(axes, x(curve)[rows], y(curve)[rows], stroke, algorithm_name(name, facts))
    if facts.curve is not None:
        plot_phases(axes, facts, x, y)
        _mark_switch(axes, facts, x(facts.curve))


def plot_phases(axes: Axes, facts: RunFacts, x: Column, y: Column) -> None:
    """Draw one column of the two-phase run over another, phase by phase."""
    if facts.curve is None:
        return
    # Where a number is recorded in some rows only, the line goes from one of these to the next.
    curve = _only(facts.curve, both_known(x(facts.curve), y(facts.curve)))
    named = set()
    for phase, rows in curve.segments():
        is_adam = phase == "adam"
        name = "Adam (phase one)" if is_adam else (phase or facts.phase_two)
        # A name given twice would stand twice in the legend.
        shown = f"_{name}" if name in named else name
        _plot(axes, x(curve)[rows], y(curve)[rows], _ADAM if is_adam else _PHASE_TWO, shown)
        named.add(name)


def _only(curve: Curve, rows: npt.NDArray[np.int64]) -> Curve:
    return Curve(
        phases=tuple(curve.phases[row] for row in rows),
        epoch=curve.epoch[rows],
        cost=curve.cost[rows],
        seconds=curve.seconds[rows],
        loss=curve.loss[rows],
        norm=curve.norm[rows],
        measures={name: column[rows] for name, column in curve.measures.items()},
    )


def _plot(axes: Axes, x: Floats, y: Floats, stroke: _Stroke, name: str) -> None:
    x, y = thinned(x, y)
    axes.plot(
        x,
        y,
        color=stroke.color,
        linestyle=stroke.line,
        linewidth=stroke.width,
        marker=stroke.marker or None,
        markersize=4.5,
        markevery=_marked(x.size),
        label=label(name),
    )


def _marked(points: int) -> float | list[int]:
    """Return the places of a line's markers."""
    if points <= _FEW:
        # As a share of the figure's diagonal along the line: evenly spaced to the eye.
        return 0.06
    # The noise of a long line makes it longer, and would crowd the markers.
    return [round(place) for place in np.linspace(0, points - 1, _MARKERS)]


def _mark_switch(axes: Axes, facts: RunFacts, x: Floats) -> None:
    if facts.switch is None or facts.switch.epoch is None or facts.curve is None:
        return
    position = value_at(facts.curve.epoch, x, facts.switch.epoch)
    if position is None:
        return
    axes.axvline(position, color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), zorder=0.5)
    axes.annotate(
        "switch",
        (position, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, -2),
        textcoords="offset points",
        va="top",
        fontsize=10,
        color=MUTED,
    )

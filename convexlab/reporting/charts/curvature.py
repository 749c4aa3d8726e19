"""The curvature of the training loss along training: both ends of the spectrum, and its negative share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from convexlab.reporting.charts.density import linear_width
from convexlab.reporting.charts.hindsight import mark_best_epoch
from convexlab.reporting.charts.style import MUTED, PALETTE, draw, legend, scale_asinh, scale_linear
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.run import axis_of, place, verdict_name
from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import lower_bound, percent, signed, with_interval

__all__ = ["eigenvalue_chart", "mass_chart"]

Floats = npt.NDArray[np.float64]
_VERDICT_MARKERS = {"non-convex": "v", "no-negative-curvature": "o", "unresolved": "X"}


def _positions(probe: Sequence[ProbedCheckpoint]) -> tuple[Floats, bool]:
    """Return where checkpoints stand on the x axis, and whether that is by epoch, or by step."""
    epochs = [checkpoint.epoch for checkpoint in probe]
    known = [epoch for epoch in epochs if epoch is not None]
    if len(known) < len(epochs) or len(set(known)) < len(known):
        return np.arange(1.0, len(epochs) + 1), False
    return np.array(known), True


def _without_sign(value: float | None, floor: float) -> float:
    """A value to draw: zero inside the rounding floor, where its sign means nothing."""
    if value is None:
        return math.nan
    return 0.0 if abs(value) <= floor else value


def _column(probe: Sequence[ProbedCheckpoint], values: Iterable[float | None]) -> Floats:
    return np.array([_without_sign(value, c.rounding_floor) for c, value in zip(probe, values, strict=True)])


def _mark_switch(axes: Axes, facts: RunFacts, by_epoch: bool) -> None:
    if by_epoch and facts.switch is not None and facts.switch.epoch is not None:
        axes.axvline(facts.switch.epoch, color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), zorder=0.5, label="switch")
    if by_epoch:
        mark_best_epoch(axes, facts)


def _epoch_axis(axes: Axes, probe: Sequence[ProbedCheckpoint], by_epoch: bool) -> None:
    scale_linear(axes, "x")
    axes.set_xlabel(axis_of(probe) if by_epoch else "checkpoint, in order")


def _placed(probe: Iterable[ProbedCheckpoint]) -> list[ProbedCheckpoint]:
    """Return the checkpoints whose epoch or step is known, if there are several; a line cannot show others."""
    every = list(probe)
    known = [checkpoint for checkpoint in every if checkpoint.epoch is not None]
    return known if len(known) > 1 else every


def eigenvalue_chart(facts: RunFacts, key: str) -> Chart | None:
    """Return both ends of the spectrum and the curvature along the gradient, by epoch; None without any of them."""
    probe = _placed(facts.probe)
    largest = _column(probe, (checkpoint.largest for checkpoint in probe))
    smallest = _column(probe, (checkpoint.smallest for checkpoint in probe))
    along = _column(probe, (checkpoint.gradient_curvature for checkpoint in probe))
    if not any(np.isfinite(column).any() for column in (largest, smallest, along)):
        return None
    x, by_epoch = _positions(probe)
    with draw(height=3.9) as (figure, (axes,)):
        axes.axhline(0.0, color="#aab1bd", linewidth=1.0, zorder=0.6)
        axes.plot(x, largest, "s-", color=PALETTE["green"], markersize=4, label="largest eigenvalue")
        axes.plot(x, along, "D--", color=PALETTE["purple"], markersize=3.5, label="gᵀHg / gᵀg")
        _plot_smallest(axes, x, smallest, probe)
        _mark_switch(axes, facts, by_epoch)
        _epoch_axis(axes, probe, by_epoch)
        scale_asinh(axes, "y", linear_width(probe))
        axes.set_ylabel("curvature")
        legend(axes)
        return chart(
            figure,
            key=key,
            title="Both ends of the spectrum",
            caption="Band: from the smallest eigenvalue found down to its lower bound. The axis is linear around zero.",
            description=" ".join(map(_describe, probe)),
            values=(axis_of(probe) if by_epoch else "checkpoint", "curvature"),
        )


def _plot_smallest(axes: Axes, x: Floats, smallest: Floats, probe: Sequence[ProbedCheckpoint]) -> None:
    bound = np.array(
        [math.nan if c.smallest_lower_bound is None else c.smallest_lower_bound for c in probe], dtype=np.float64
    )
    floors = np.array([c.rounding_floor for c in probe])
    bound = np.where(np.abs(bound) <= floors, -floors, bound)
    color, name = PALETTE["vermilion"], "smallest eigenvalue"
    if x.size == 1:
        axes.vlines(x, bound, smallest, color=color, alpha=0.35, linewidth=6, label=f"_{name}")
    else:
        axes.fill_between(x, bound, smallest, color=color, alpha=0.22, linewidth=0, label=f"_{name}")
    axes.plot(x, smallest, "-", color=color, label=name)
    for verdict, marker in _VERDICT_MARKERS.items():
        here = np.array([c.verdict == verdict for c in probe]) & np.isfinite(smallest)
        if here.any():
            axes.plot(
                x[here],
                smallest[here],
                marker,
                color="white" if marker == "o" else color,
                markeredgecolor=color,
                markersize=6,
                label=verdict_name(verdict).removesuffix(" found"),
            )


def _describe(checkpoint: ProbedCheckpoint) -> str:
    floor = checkpoint.rounding_floor
    return (
        f"{place(checkpoint)}: smallest {signed(checkpoint.smallest, floor)}, "
        f"lower bound {lower_bound(checkpoint.smallest_lower_bound, floor)}, "
        f"largest {signed(checkpoint.largest, floor)}, "
        f"gᵀHg / gᵀg {signed(checkpoint.gradient_curvature, floor)}, {verdict_name(checkpoint.verdict)}."
    )


def mass_chart(facts: RunFacts, key: str) -> Chart | None:
    """Return the negative spectral mass by epoch with its interval; None where it was not measured."""
    probe = _placed(checkpoint for checkpoint in facts.probe if checkpoint.negative_mass is not None)
    if not probe:
        return None
    x, by_epoch = _positions(probe)
    mass = np.array([checkpoint.negative_mass for checkpoint in probe], dtype=np.float64)
    ends = [(c.negative_mass_low, c.negative_mass_high) for c in probe]
    bars = np.array([[math.nan if end is None else end for end in pair] for pair in ends], dtype=np.float64).T
    top = float(np.nanmax([mass, bars[1]]))
    with draw() as (figure, (axes,)):
        axes.errorbar(
            x,
            mass,
            yerr=np.abs(bars - mass),
            fmt="o-",
            color=PALETTE["blue"],
            markersize=4.5,
            capsize=2.5,
            elinewidth=1,
        )
        _mark_switch(axes, facts, by_epoch)
        _epoch_axis(axes, probe, by_epoch)
        axes.set_ylim(0.0, 1.08 * top if top > 0 else 1.0)
        scale_linear(axes, "y")
        axes.set_ylabel("share below −floor × largest")
        if facts.oracle is not None:  # Two lines need names.
            legend(axes)
        return chart(
            figure,
            key=key,
            title="Negative spectral mass",
            caption="Share of all eigenvalues below −floor × largest (the verdict's floor), by stochastic Lanczos "
            f"quadrature{_bars(probe)}.",
            description=" ".join(
                f"{place(c)}: {with_interval(c.negative_mass, c.negative_mass_low, c.negative_mass_high)}."
                for c in probe
            ),
            values=(axis_of(probe) if by_epoch else "checkpoint", "share"),
        )


def _bars(probe: Sequence[ProbedCheckpoint]) -> str:
    levels = {checkpoint.interval_level for checkpoint in probe if checkpoint.interval_level is not None}
    return f"; bars: {percent(levels.pop())} intervals" if len(levels) == 1 else ""

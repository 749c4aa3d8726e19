"""The loss on the plane that holds most of the training path, with the path on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.interpolate import RectBivariateSpline

from convexlab.reporting.charts.style import INK, PALETTE, draw, label, scale_linear
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.run import RunFacts
from convexlab.runs.plane import PathPlane, Waypoint
from convexlab.wording.numbers import count, number, percent

__all__ = ["contour_levels", "plane_chart"]

Floats = npt.NDArray[np.float64]
# Points a side of what is drawn; between those measured the logarithm of the loss is interpolated by cubic splines.
_FINE = 37
_MOST_LEVELS = 18
_MOST_TICKS = 7
# Levels within a decade, from fine to coarse: the preferred numbers of ISO 3, about evenly spaced by logarithm.
_FINEST: tuple[float, ...] = (
    1,
    1.06,
    1.12,
    1.18,
    1.25,
    1.32,
    1.4,
    1.5,
    1.6,
    1.7,
    1.8,
    1.9,
    2,
    2.12,
    2.24,
    2.36,
    2.5,
    2.65,
    2.8,
    3,
)
_FINEST += (3.15, 3.35, 3.55, 3.75, 4, 4.25, 4.5, 4.75, 5, 5.3, 5.6, 6, 6.3, 6.7, 7.1, 7.5, 8, 8.5, 9, 9.5)
_SERIES = (*(_FINEST[::step] for step in (1, 2, 4, 8)), (1, 2, 5), (1, 3), (1,))


def plane_chart(facts: RunFacts, key: str) -> Chart | None:
    """Return the contours of the loss with the checkpoints on them; None where the plane was not measured."""
    plane = facts.plane
    if plane is None:
        return None
    losses = np.array(plane.losses, dtype=np.float64)
    known = losses[np.isfinite(losses)]
    if known.size < losses.size / 2 or not known.max() > known.min():
        return None
    levels, logarithmic = contour_levels(known)
    x, y = np.array(plane.x), np.array(plane.y)
    with draw(height=1.65 + 3.95 * float(np.ptp(y) / np.ptp(x))) as (figure, (axes,)):
        surface = _surface(axes, x, y, losses, levels, logarithmic=logarithmic)
        _draw_path(axes, plane, facts)
        _finish(axes, plane)
        _colour_bar(figure, axes, surface, levels)
        return chart(
            figure,
            key=key,
            title="The training path and the loss around it",
            caption=_caption(plane, logarithmic=logarithmic),
            description=_describe(plane, facts, losses),
        )


def contour_levels(losses: Floats) -> tuple[Floats, bool]:
    """Return at most 20 rising levels around finite losses, and whether they are evenly spaced by logarithm."""
    low, high = float(losses.min()), float(losses.max())
    if low > 0:
        powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for digits in _SERIES:
            every = np.array([digit * 10.0**power for power in powers for digit in digits])
            inside = np.flatnonzero((every > low) & (every < high))
            if 3 <= inside.size <= _MOST_LEVELS:
                return every[inside[0] - 1 : inside[-1] + 2], True
        if inside.size > _MOST_LEVELS:
            step = math.ceil(inside.size / _MOST_LEVELS)
            return every[inside[0] - 1 : inside[-1] + step + 1 : step], True
    # So narrow, or not positive, that even levels do.
    return np.asarray(MaxNLocator(_MOST_LEVELS).tick_values(low, high), dtype=np.float64), False


def _surface(axes: Axes, x: Floats, y: Floats, losses: Floats, levels: Floats, *, logarithmic: bool) -> QuadContourSet:
    norm = (LogNorm if logarithmic else Normalize)(levels[0], levels[-1])
    colours = sns.color_palette("crest", as_cmap=True)
    if np.isfinite(losses).all():
        x, y, losses = _finer(x, y, losses, logarithmic=logarithmic)
        # Between the points a spline may swing a little beyond the values.
        losses = losses.clip(levels[0], levels[-1])
    filled = axes.contourf(x, y, losses, levels=levels, norm=norm, cmap=colours)
    # The outlines of the bands are the contours: half the bytes of drawing these as well.
    filled.set(edgecolor=(1, 1, 1, 0.6), linewidth=0.6)
    return filled


def _finer(x: Floats, y: Floats, losses: Floats, *, logarithmic: bool) -> tuple[Floats, Floats, Floats]:
    values = np.log(losses) if logarithmic else losses
    spline = RectBivariateSpline(y, x, values, kx=min(3, y.size - 1), ky=min(3, x.size - 1))
    x, y = (np.linspace(axis[0], axis[-1], _FINE) for axis in (x, y))
    finer = np.asarray(spline(y, x), dtype=np.float64)
    return x, y, np.exp(finer) if logarithmic else finer


def _draw_path(axes: Axes, plane: PathPlane, facts: RunFacts) -> None:
    points = plane.checkpoints
    x, y = ([getattr(point, name) for point in points] for name in ("x", "y"))
    axes.plot(x, y, color="white", linewidth=3.4, solid_joinstyle="round")
    axes.plot(x, y, color=INK, linewidth=1.4, solid_joinstyle="round")
    look: dict[str, Any] = {"linestyle": "", "markeredgecolor": "white", "markeredgewidth": 0.9, "clip_on": False}
    for name, marker, colour, size in (
        ("Adam", "o", PALETTE["blue"], 7.0),
        (facts.phase_two, "^", PALETTE["vermilion"], 8.0),
        ("checkpoint", "o", PALETTE["blue"], 7.0),
    ):
        here = [point for point in points if _phase(point, facts) == name]
        if here:
            places = [p.x for p in here], [p.y for p in here]
            axes.plot(*places, marker, color=colour, markersize=size, label=label(name, 24), **look)
    axes.plot(x[0], y[0], "*", color=INK, markersize=13, label="first", **look)
    switch = _switch(plane, facts)
    if switch is not None:
        axes.plot(
            switch.x,
            switch.y,
            "D",
            color="white",
            markeredgecolor=INK,
            markeredgewidth=1.6,
            markersize=7.5,
            linestyle="",
            label=f"switch, epoch {count(switch.epoch)}",
        )


def _phase(point: Waypoint, facts: RunFacts) -> str:
    if not point.phase:
        return "checkpoint"
    return "Adam" if point.phase in ("start", "adam") else facts.phase_two


def _switch(plane: PathPlane, facts: RunFacts) -> Waypoint | None:
    epoch = facts.switch.epoch if facts.switch else None
    return next((point for point in plane.checkpoints if point.epoch == epoch), None)


def _finish(axes: Axes, plane: PathPlane) -> None:
    axes.grid(visible=False)
    axes.set_aspect("equal")
    axes.set(xlim=(plane.x[0], plane.x[-1]), ylim=(plane.y[0], plane.y[-1]))
    for which in ("x", "y"):
        scale_linear(axes, which)
    first, second = map(_share, plane.explained_variance)
    axes.set_xlabel(f"1st principal direction ({first} of the variance)")
    axes.set_ylabel(f"2nd ({second})")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1, columnspacing=1.0)


def _colour_bar(figure: Figure, axes: Axes, surface: QuadContourSet, levels: Floats) -> None:
    bar = figure.colorbar(surface, ax=axes, location="bottom", aspect=28, pad=0.03)
    ticks = levels[:: math.ceil(levels.size / _MOST_TICKS)]
    bar.ax.xaxis.set_major_locator(FixedLocator(ticks.tolist()))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 2)))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.set_label("training loss")


def _share(value: float) -> str:
    return percent(value, 1 if value < 0.1 or value > 0.9 else 0)


def _caption(plane: PathPlane, *, logarithmic: bool) -> str:
    spacing = ", contours evenly spaced by logarithm" if logarithmic else ""
    off = max(point.off_plane for point in plane.checkpoints)
    return (
        "The plane through the last checkpoint along the first two principal directions of all (Li et al. 2018): "
        f"{len(plane.x)} × {len(plane.y)} points{_examples(plane)}{spacing}. "
        f"The other checkpoints lie up to {number(off, 2)} off it. Cost: {count(plane.gradient_equivalents)} gradient "
        "equivalents."
    )


def _examples(plane: PathPlane) -> str:
    if plane.examples is None or plane.train_size is None:
        return ""
    of = "all" if plane.examples >= plane.train_size else f"{count(plane.examples)} of the"
    return f", loss of {of} {count(plane.train_size)} training examples"


def _describe(plane: PathPlane, facts: RunFacts, losses: Floats) -> str:
    first, second = map(_share, plane.explained_variance)
    places = "; ".join(
        f"epoch {count(p.epoch)}{f' ({p.phase})' if p.phase else ''} at {number(p.x, 2)}, {number(p.y, 2)}"
        for p in plane.checkpoints
    )
    switch = _switch(plane, facts)
    switched = f" Switch after epoch {count(switch.epoch)}." if switch else ""
    low, high = (number(float(end(losses))) for end in (np.nanmin, np.nanmax))
    return (
        f"Two directions with {first} and {second} of the variance of {len(plane.checkpoints)} checkpoints. On the "
        f"plane the loss is between {low} and {high}. Checkpoints: {places}.{switched}"
    )

"""The numbers behind a chart, in its SVG: the page's script shows and hides them, and draws them on another scale.

A curve is a group with its name in ``data-name`` and its points in ``data-points``, in the coordinates of its axes. The
group of the axes has four attributes. ``data-box`` is their place in the picture, and ``data-x`` and ``data-y`` map
numbers to places in it. ``data-linear`` has the ticks of the vertical axis on a linear scale.
"""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from convexlab.wording.numbers import short

__all__ = ["mark", "name_artists"]

Floats = npt.NDArray[np.float64]
_POINTS_PER_INCH = 72
_MOST_POINTS = 200


def name_artists(figure: Figure) -> None:
    """Give everything that is drawn in coordinates of axes an id in the SVG."""
    for index, artist in enumerate(artist for axes in figure.axes for artist in _drawn(axes)):
        artist.set_gid(f"drawn-{index}")


def mark(root: ElementTree.Element, figure: Figure, values: tuple[str, str]) -> None:
    """Write the curves and axes of a figure into its SVG; call `name_artists` before the figure is saved."""
    by_id = {element.get("id"): element for element in root.iter() if element.get("id")}
    width, height = (_POINTS_PER_INCH * inches for inches in figure.get_size_inches())
    for index, axes in enumerate(figure.axes, start=1):
        group = by_id.get(f"axes_{index}")
        if group is None:
            continue
        box = axes.get_position()
        corners = (box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height)
        group.set("data-box", " ".join(f"{corner:.2f}" for corner in corners))
        group.set("data-names", json.dumps(values, ensure_ascii=False))
        group.set("data-x", _scale(axes.xaxis))
        group.set("data-y", _scale(axes.yaxis))
        if axes.get_yscale() != "linear":
            group.set("data-linear", json.dumps(_linear_ticks(axes.yaxis), ensure_ascii=False))
        _mark_ticks(group)
        for artist in _drawn(axes):
            element = by_id.get(artist.get_gid())
            if element is not None:
                _mark_artist(element, artist, axes)


def _drawn(axes: Axes) -> list[Artist]:
    return [*axes.lines, *axes.collections]


def _mark_artist(element: ElementTree.Element, artist: Artist, axes: Axes) -> None:
    element.set("data-drawn", "line" if isinstance(artist, Line2D) else "area")
    # A label with an underscore is one that the legend does not repeat; matplotlib's own begin with _child.
    label = str(artist.get_label()).removeprefix("_")
    if not label.startswith(("child", "nolegend")):
        element.set("data-name", label)
    # A line across the axes, as at a switch, stands at no point of a curve.
    if isinstance(artist, Line2D) and all(artist.get_transform().contains_branch_seperately(axes.transData)):
        element.set("data-points", _points(np.asarray(artist.get_xydata(), dtype=np.float64)))


def _points(points: Floats) -> str:
    """Return the points of a line: for a long line only some, with the last one, because they take many bytes."""
    known = points[np.isfinite(points).all(axis=1)]
    step = max(1, math.ceil((len(known) - 1) / _MOST_POINTS))
    kept = known[sorted({*range(0, len(known), step), *range(len(known))[-1:]})]
    return " ".join(f"{x:.6g},{y:.6g}" for x, y in kept)


def _scale(axis: Axis) -> str:
    """Return the scale's name, both ends, and the width of the linear part where it has one."""
    low, high = axis.get_view_interval()
    width = getattr(axis.get_transform(), "linear_width", None)
    return " ".join([axis.get_scale(), f"{low:.9g}", f"{high:.9g}", *([] if width is None else [f"{width:.9g}"])])


def _linear_ticks(axis: Axis) -> list[tuple[float, str]]:
    low, high = axis.get_view_interval()
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [(float(f"{tick:.9g}"), short(float(f"{tick:.9g}"))) for tick in ticks if low <= tick <= high]


def _mark_ticks(group: ElementTree.Element) -> None:
    for element in group.iter():
        name = element.get("id") or ""
        if name.startswith("ytick_"):
            element.set("data-tick", "")
        elif name.startswith("legend_"):
            element.set("data-legend", "")

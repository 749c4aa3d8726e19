"""Drawing: one look for all charts, and axes that can be read.

Figures are matplotlib's `Figure`, never pyplot's: nothing global changes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator, NullLocator

from convexlab.wording.numbers import decade, short

__all__ = [
    "INK",
    "MUTED",
    "PALETTE",
    "draw",
    "draw_blank",
    "label",
    "legend",
    "scale_asinh",
    "scale_linear",
    "scale_log",
    "spans_far",
    "thinned",
]

PALETTE: dict[str, str] = dict(
    zip(
        ("blue", "orange", "green", "vermilion", "purple", "brown", "pink", "grey", "yellow", "sky"),
        sns.color_palette("colorblind").as_hex(),
        strict=True,
    )
)
INK = "#1d2430"
MUTED = "#5d6675"
# Narrow on purpose: at 390 pixels the text of a wide figure would shrink below what can be read.
WIDTH, HEIGHT = 4.7, 3.6
# More than a factor of 20 on one axis squeezes most of a linear one into a corner.
FAR = 20.0
# Two names of so many characters fit beside each other.
LONG_NAME = 30
# Of a longer line so many points look the same, and a page of thousands of epochs stays small.
MOST_POINTS = 600
# How far apart two ticks of three or four digits must be, as a share of the axis.
_APART = {"x": 0.1, "y": 0.06}

Which = Literal["x", "y"]
Floats = npt.NDArray[np.float64]


def _look() -> Any:  # matplotlib's stubs want a type that names every setting
    look = {**sns.axes_style("ticks"), **sns.plotting_context("paper")}
    return look | {
        "axes.edgecolor": "#aab1bd",
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.unicode_minus": True,
        "font.family": ["DejaVu Sans"],
        "font.size": 10.5,
        "axes.labelsize": 10.5,
        "xtick.labelsize": 10.0,
        "ytick.labelsize": 10.0,
        "legend.fontsize": 9.5,
        "legend.handlelength": 1.6,
        "legend.frameon": False,
        "grid.color": "#e9ecf1",
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.8,
        "text.color": INK,
        # Names come from users: a "$" in one is a dollar sign.
        "text.parse_math": False,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "svg.fonttype": "none",
        "svg.hashsalt": "convexlab",
        "path.simplify": True,
        "hatch.linewidth": 0.6,
    }


@contextlib.contextmanager
def draw(rows: int = 1, height: float = HEIGHT, columns: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """Return a figure and its axes, row by row, in the report's look; the axes of one column share the x axis."""
    # Restores the settings afterwards; seaborn's own set_theme would not.
    with mpl.rc_context(_look()):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=columns == 1, squeeze=False)
        yield figure, [axis for row in axes for axis in row]


@contextlib.contextmanager
def draw_blank(width: float, height: float) -> Iterator[Figure]:
    """Return an empty figure of that size in inches, in the report's look."""
    with mpl.rc_context(_look()):
        yield Figure(figsize=(width, height), facecolor="white")


def label(text: str, longest: int = 36) -> str:
    """Return a user's name fit for a figure: printable, and not longer than ``longest``."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def legend(axes: Axes, handles: Sequence[Artist] | None = None) -> None:
    """Put the legend above the axes, where it hides no data: in two columns where the names are short enough."""
    shown = axes.get_legend_handles_labels()[0] if handles is None else handles
    longest = max((len(str(handle.get_label())) for handle in shown), default=0)
    axes.legend(
        handles=shown,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=2 if longest <= LONG_NAME else 1,
        borderaxespad=0.1,
        columnspacing=1.0,
    )


def spans_far(values: Iterable[float] | Floats) -> bool:
    """Return whether values are all positive and cover a range that calls for a logarithmic axis."""
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return bool(array.size and array.min() > 0 and array.max() > FAR * array.min())


def thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return the points of a line to draw: for a long line, the extremes of each stretch in both directions."""
    if x.size <= MOST_POINTS:
        return x, y
    kept = {0, x.size - 1}
    for stretch in np.array_split(np.arange(x.size), MOST_POINTS // 4):
        for values in (x[stretch], y[stretch]):
            kept |= {int(stretch[values.argmin()]), int(stretch[values.argmax()])}
    rows = sorted(kept)
    return x[rows], y[rows]


def _form(ticks: Sequence[float]) -> Callable[[float], str]:
    """Write all decades of an axis alike: plainly where none is far from 1."""
    return short if all(tick == 0 or 0.01 <= abs(tick) <= 1000 for tick in ticks) else decade


def _thin(ticks: Sequence[float], most: int) -> list[float]:
    return list(ticks[:: math.ceil(len(ticks) / most)]) if ticks else []


def _axis(axes: Axes, which: Which) -> Axis:
    return axes.xaxis if which == "x" else axes.yaxis


def _set_scale(axes: Axes, which: Which, scale: str, **options: Any) -> None:
    (axes.set_xscale if which == "x" else axes.set_yscale)(scale, **options)
    # Margins are shares of the drawn axis: limits that were set for a linear one no longer fit.
    axes.autoscale_view()


def _set_ticks(axis: Axis, locator: Locator, form: Callable[[float], str]) -> None:
    axis.set_major_locator(locator)
    # Ours throughout: matplotlib's own formatters write mathematical markup, which is off here.
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_locator(NullLocator())


def scale_linear(axes: Axes, which: Which) -> None:
    """Give an axis a few round ticks."""
    _set_ticks(_axis(axes, which), MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]), short)


def scale_log(axes: Axes, which: Which, most: int = 6) -> None:
    """Make an axis logarithmic; its ticks are decades, or rounder digits where fewer than two are in view."""
    _set_scale(axes, which, "log")
    low, high = _axis(axes, which).get_view_interval()
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(decades) >= 2:
        decades = _thin(decades, most)
        _set_ticks(_axis(axes, which), FixedLocator(decades), _form(decades))
        return
    for digits in ((1, 2, 5), range(1, 10)):
        steps = [step * 10.0**power for power in powers for step in digits if low <= step * 10.0**power <= high]
        if len(steps) >= 3:
            _set_ticks(_axis(axes, which), FixedLocator(_thin(steps, most)), short)
            return
    # So narrow that it is as good as linear.
    scale_linear(axes, which)


def scale_asinh(axes: Axes, which: Which, linear_width: float, most: int = 4) -> None:
    """Make an axis linear within ±``linear_width`` and logarithmic beyond, on both sides of zero."""
    _set_scale(axes, which, "asinh", linear_width=linear_width)
    low, high = _axis(axes, which).get_view_interval()
    first, last = math.ceil(math.log10(linear_width)), math.floor(math.log10(max(-low, high, linear_width)))
    # The sparse end of a side is the one near zero, where decades crowd together.
    decades = _thin([10.0**power for power in range(last, first - 1, -1)], most)
    # What is left must not run into the zero either, as drawn: a line of text is less high than wide.
    apart = _APART[which] * (math.asinh(high / linear_width) - math.asinh(low / linear_width))
    decades = [tick for tick in decades if math.asinh(tick / linear_width) >= apart]
    ticks = [-tick for tick in decades if -tick >= low] + [0.0] + [tick for tick in decades if tick <= high]
    _set_ticks(_axis(axes, which), FixedLocator(sorted(ticks)), _form(ticks))

"""Several runs in one picture: how negative the smallest eigenvalue is beside the largest while the loss falls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from convexlab.reporting.charts.style import INK, PALETTE, draw, label, legend, scale_log
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.run import RunFacts
from convexlab.wording.numbers import number, percent, power_of_ten

__all__ = ["Track", "negative_curvature_chart", "track_of"]

# What is positive, or so near zero, is drawn there.
_LEAST = -5
_FLOOR = 1e-3
_LINES = ("-", "--", "-.", ":")
_COLORS = tuple(PALETTE[name] for name in ("blue", "vermilion", "green", "purple", "orange", "brown", "sky", "grey"))
# More names than this are no legend but a list.
_MOST_NAMES = 8


@dataclass(frozen=True)
class Track:
    """Negative curvature along a run."""

    name: str
    """The name in the legend, where equal names appear once."""
    color: str
    line: str
    losses: tuple[float, ...]
    """Loss at each measured point over that at the start."""
    ratios: tuple[float, ...]
    """Smallest over largest eigenvalue at each of these points."""


def track_of(facts: RunFacts, place: int) -> Track | None:
    """Return the track of a run, the ``place``-th of several; None where no curvature was measured."""
    start = next((c.train_loss for c in facts.probe if c.train_loss is not None), None)
    if start is None or start <= 0:
        return None
    pairs = [
        (c.train_loss / start, c.smallest / c.largest)
        for c in facts.probe
        if c.train_loss is not None and c.smallest is not None and c.largest
    ]
    # A quotient of numbers far apart may be none.
    known = [(loss, ratio) for loss, ratio in pairs if 0 < loss < math.inf and math.isfinite(ratio)]
    if not known:
        return None
    losses, ratios = zip(*known, strict=True)
    line = _LINES[place // len(_COLORS) % len(_LINES)]
    return Track(label(facts.label, 24), _COLORS[place % len(_COLORS)], line, losses, ratios)


def negative_curvature_chart(
    tracks: Iterable[Track], key: str, *, along: str = "training", borders: Sequence[float] = (_FLOOR,)
) -> Chart | None:
    """Return the negative curvature of runs over their loss; None without any.

    Args:
        tracks: of the runs.
        key: unique on the page.
        along: what the runs are measured along.
        borders: shares of the largest eigenvalue that get a line, the verdict's floor first.
    """
    drawn = list(tracks)
    if not drawn:
        return None
    with draw(height=4.0) as (figure, (axes,)):
        named: set[str] = set()
        for track in drawn:
            heights = np.clip(-np.array(track.ratios), 10.0**_LEAST, None)
            axes.plot(
                track.losses,
                heights,
                color=track.color,
                linestyle=track.line,
                linewidth=0.9 if len(drawn) > _MOST_NAMES else 1.5,
                alpha=0.7,
                marker=".",
                markersize=4,
                label=f"_{track.name}" if track.name in named else track.name,
            )
            named.add(track.name)
        for share in borders:
            axes.axhline(share, color=INK, linewidth=0.9, linestyle=":")
        scale_log(axes, "x")
        scale_log(axes, "y")
        axes.invert_xaxis()
        axes.set_xlabel("training loss / that at the start (training goes right)")
        axes.set_ylabel("−smallest / largest eigenvalue")
        if len(named) <= _MOST_NAMES:
            legend(axes)
        return chart(
            figure,
            key=key,
            title=f"Negative curvature along {along}",
            caption=_caption(borders),
            description="At the last point the smallest eigenvalue is, in the median, "
            f"{number(median(track.ratios[-1] for track in drawn))} of the largest.",
            values=("training loss over that at the start", "−smallest / largest eigenvalue"),
        )


def _caption(borders: Sequence[float]) -> str:
    floor, *others = map(percent, borders)
    which = "lower dotted line" if others else "dotted line"
    rest = "".join(f"; the upper is {other}" for other in others)
    least = power_of_ten(_LEAST)
    return (
        f"Above the {which}, {floor} of the largest eigenvalue, the loss is non-convex by the verdict’s usual "
        f"floor{rest}. What is positive or below {least} lies at {least}."
    )

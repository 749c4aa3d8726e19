"""Ratios of many cases at a glance: one line each, on a logarithmic axis with 1 marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convexlab.reporting.charts.style import INK, PALETTE, draw, label, scale_log
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.wording.numbers import number

__all__ = ["Ratios", "ratio_chart"]

# Shapes as well as colours tell the series apart.
_MARKERS = ("s", "o", "D", "^", "v", "P")


@dataclass(frozen=True)
class Ratios:
    """A series."""

    name: str
    values: Sequence[float | None]
    """One a case; None draws nothing."""
    color: str
    """Of `PALETTE`."""


def ratio_chart(
    names: Sequence[str], series: Sequence[Ratios], *, key: str, title: str, axis: str, caption: str
) -> Chart:
    """Draw a line a case, with a mark for each series that has a value there."""
    shown = [ratios for ratios in series if any(value is not None for value in ratios.values)]
    with draw(height=1.4 + 0.22 * len(shown) + 0.27 * len(names)) as (figure, (axes,)):
        places = np.arange(len(names), dtype=np.float64)[::-1]
        axes.axvline(1.0, color=INK, linewidth=1.0, zorder=1)
        for ratios, marker in zip(shown, _MARKERS, strict=False):
            values = [np.nan if value is None else value for value in ratios.values]
            axes.plot(values, places, marker, color=PALETTE[ratios.color], markersize=6, label=ratios.name)
        axes.set_yticks(places, [label(name, 30) for name in names])
        axes.set_ylim(-0.6, len(names) - 0.4)
        scale_log(axes, "x")
        axes.set_xlabel(axis, loc="right")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=1, borderaxespad=0.1)
        return chart(
            figure,
            key=key,
            title=title,
            caption=caption,
            description=" ".join(
                f"{name}: "
                + ", ".join(
                    f"{ratios.name} {number(ratios.values[place])}"
                    for ratios in shown
                    if ratios.values[place] is not None
                )
                + "."
                for place, name in enumerate(names)
            ),
        )

"""Charts of losses of one parameter: convex parts solid, the rest dotted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from convexlab.reporting.charts.style import INK, PALETTE, draw, legend, scale_linear
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.wording.numbers import number
from paper.scalar_landscape import Branch, ScalarLandscape

__all__ = ["COLOURS", "loss_chart", "scalar_norm_chart"]

COLOURS = [*(PALETTE[name] for name in ("blue", "orange", "green", "purple")), INK, PALETTE["sky"]]


def loss_chart(
    landscapes: Mapping[str, ScalarLandscape],
    *,
    key: str,
    title: str,
    caption: str,
    top: float | None = None,
    sides: tuple[float, float] | None = None,
) -> Chart:
    """Draw losses over their parameter, by name, minima as points; all of it, or up to ``top`` between ``sides``."""
    with draw() as (figure, (axes,)):
        for (name, landscape), colour in zip(landscapes.items(), COLOURS, strict=False):
            _draw_loss(axes, name, landscape, colour)
        axes.set(xlabel="parameter p", ylabel="loss", ylim=(None if top is None else -0.04 * top, top), xlim=sides)
        _finish(axes)
        return chart(figure, key=key, title=title, caption=caption, description=_describe(landscapes))


def scalar_norm_chart(
    landscapes: Mapping[str, ScalarLandscape], *, key: str, title: str, caption: str, side: int
) -> Chart:
    """Draw the gradient norm over the loss, by name, within the basin of the minimum left (0) or right (1) of it.

    The loss is drawn as a share of its whole decrease, and the norm as a share of its largest value, because tasks
    differ by orders of magnitude.
    """
    with draw() as (figure, (axes,)):
        texts = []
        for (name, landscape), colour in zip(landscapes.items(), COLOURS, strict=False):
            if landscape.basin:
                texts.append(f"{name}: {_draw_norm(axes, name, landscape, landscape.basin[side], colour)}")
        axes.set(xlabel="loss, share of what there is to lose", ylabel="gradient norm, share of its largest")
        _finish(axes)
        return chart(figure, key=key, title=title, caption=caption, description="; ".join(texts) + ".")


def _finish(axes: Axes) -> None:
    scale_linear(axes, "x")
    scale_linear(axes, "y")
    legend(axes)


def _draw_loss(axes: Axes, name: str, landscape: ScalarLandscape, colour: str) -> None:
    grid, value = landscape.grid, landscape.value
    axes.plot([], [], color=colour, label=name)
    for region in landscape.regions:
        points = np.concatenate(([region.low], grid[(grid > region.low) & (grid < region.high)], [region.high]))
        axes.plot(points, np.interp(points, grid, value), color=colour, linestyle="-" if region.convex else ":")
    axes.plot(landscape.minima, np.interp(landscape.minima, grid, value), "o", color=colour, markersize=4)


def _draw_norm(axes: Axes, name: str, landscape: ScalarLandscape, branch: Branch, colour: str) -> str:
    low, high = sorted((branch.start, branch.minimum))
    grid = landscape.grid
    inside = (grid > low) & (grid < high)
    loss, norm, convex = landscape.value[inside], abs(landscape.slope[inside]), landscape.curvature[inside] > 0
    least, span, largest = loss.min(), np.ptp(loss), norm.max()
    share, height = (loss - least) / span, norm / largest
    axes.plot([], [], color=colour, label=name)
    axes.plot(share, np.where(convex, height, np.nan), color=colour)
    axes.plot(share, np.where(convex, np.nan, height), color=colour, linestyle=":")
    entries = np.array(branch.entries)
    at = np.interp(entries, grid, landscape.value), np.interp(entries, grid, abs(landscape.slope))
    axes.plot(
        (at[0] - least) / span,
        at[1] / largest,
        "o",
        markerfacecolor="white",
        markeredgecolor=INK,
        markersize=4.5,
        zorder=3,
    )
    peaks = [f"{number(peak)} at loss {number(value)}" for value, peak in zip(*at, strict=True)]
    return f"norm peaks {' and '.join(peaks)}" if peaks else "norm falls all the way"


def _describe(landscapes: Mapping[str, ScalarLandscape]) -> str:
    return "; ".join(f"{name}: {_regions(landscape)}" for name, landscape in landscapes.items()) + "."


def _regions(landscape: ScalarLandscape) -> str:
    convex = " and ".join(f"[{number(region.low)}, {number(region.high)}]" for region in landscape.convex_regions)
    minima = " and ".join(number(p) for p in landscape.minima)
    return f"convex in {convex or 'no part'}, minima at {minima or 'no point'}"

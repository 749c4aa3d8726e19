"""The spectral density of the Hessian, a row for a checkpoint, and the axis on which eigenvalues are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from convexlab.reporting.charts.style import MUTED, PALETTE, draw, label, legend, scale_asinh
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.run import axis_of, place
from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import number, power_of_ten, signed

__all__ = ["density_chart", "linear_width", "shown_checkpoints"]

Floats = npt.NDArray[np.float64]
# Below this share of the largest eigenvalue the axes are linear: the default floor of a verdict.
LINEAR_SHARE = 1e-3
# Width of the Gaussian that broadens a spectral line, as a share of the axis.
BROADENING = 0.012
# So many rows are still distinct on a phone's screen, and weigh 150 kB.
MOST_ROWS = 16
# How far a row reaches into the next one, in distances of rows.
REACH = 1.55


def linear_width(probe: Sequence[ProbedCheckpoint]) -> float:
    """Return half the width of the linear part of an eigenvalue axis: never below the rounding floor."""
    sizes = [abs(value) for c in probe for value in (c.largest, c.smallest, c.gradient_curvature) if value is not None]
    largest = max([*sizes, *(float(np.abs(c.nodes).max()) for c in probe if c.nodes.size)], default=0.0)
    width = max(LINEAR_SHARE * largest, *(c.rounding_floor for c in probe), 0.0)
    # Where all is zero, as of a constant model, any width will do but one whose inverse is no number.
    return width if width > np.finfo(np.float64).tiny * 1e3 else 1.0


def shown_checkpoints(facts: RunFacts) -> list[ProbedCheckpoint]:
    """Return the checkpoints that have a density, in order; if they are many, a few with both ends and the switch."""
    probe = [checkpoint for checkpoint in facts.probe if checkpoint.nodes.size]
    if len(probe) <= MOST_ROWS:
        return probe
    kept = {round(place) for place in np.linspace(0, len(probe) - 1, MOST_ROWS)}
    switch = facts.switch.epoch if facts.switch else None
    if switch is not None:
        at = int(np.argmin([math.inf if c.epoch is None else abs(c.epoch - switch) for c in probe]))
        # It takes the place of its neighbour, unless that is an end.
        kept -= {min(kept - {0, len(probe) - 1}, key=lambda index: abs(index - at))}
        kept |= {at}
    return [probe[index] for index in sorted(kept)]


@dataclass(frozen=True)
class _Look:
    """How a phase is drawn: phases differ by the line as well as by colour."""

    name: str
    line: str
    fill: str
    style: Literal["-"] | tuple[float, tuple[float, float]]


def _look(checkpoint: ProbedCheckpoint, phase_two: str) -> _Look:
    if checkpoint.phase == "adam":
        return _Look("Adam (phase one)", PALETTE["blue"], "#cfe2f2", "-")
    if checkpoint.phase in ("", "start"):
        return _Look("start" if checkpoint.phase else "checkpoint", "#454e5c", "#dfe3e9", "-")
    return _Look(checkpoint.phase or phase_two, PALETTE["vermilion"], "#fbe3d6", (0, (4, 1)))


def density_chart(facts: RunFacts, key: str) -> Chart | None:
    """Return the spectral densities of the probed checkpoints, row above row; None where none was measured."""
    probe = shown_checkpoints(facts)
    if not probe:
        return None
    width = linear_width(probe)
    grid, sigma = _grid(probe, width)
    bottom, top = _decades(probe, sigma)
    with draw(height=1.5 + max(1.4, 0.36 * len(probe))) as (figure, (axes,)):
        _draw_ground(axes, width, len(probe))
        for row, checkpoint in enumerate(probe):
            decades = np.log10(np.maximum(_density(checkpoint, grid, width, sigma), 10.0**bottom)) - bottom
            _draw_row(
                axes,
                row,
                width * np.sinh(grid),
                REACH * decades / (top - bottom),
                _look(checkpoint, facts.phase_two),
                width,
            )
        axes.set_xlim(*(width * np.sinh(grid[[0, -1]])))
        scale_asinh(axes, "x", width, most=4)
        axes.set_xlabel("eigenvalue")
        _name_rows(axes, facts, probe)
        _ridge_legend(axes, probe, facts.phase_two)
        return chart(
            figure,
            key=key,
            title="Spectral density, checkpoint by checkpoint",
            caption=f"Training runs upwards{_left_out(facts, probe)}. A row's height is the logarithm of the density "
            f"per unit of the drawn axis, from {power_of_ten(bottom)} to {power_of_ten(top)}, broadened by a Gaussian. "
            f"The axis is linear in the grey part (±{number(width, 2)}), logarithmic beyond; hatched: below it.",
            description=" ".join(map(_describe_density, probe)),
        )


def _left_out(facts: RunFacts, shown: Sequence[ProbedCheckpoint]) -> str:
    measured = sum(1 for checkpoint in facts.probe if checkpoint.nodes.size)
    return f" ({len(shown)} of {measured} checkpoints)" if len(shown) < measured else ""


def _grid(checkpoints: Sequence[ProbedCheckpoint], width: float) -> tuple[Floats, float]:
    """Return points equidistant on the drawn axis, in its coordinate asinh(λ / width), and the broadening there."""
    nodes = np.arcsinh(np.concatenate([checkpoint.nodes for checkpoint in checkpoints]) / width)
    low, high = min(nodes.min(), -1.0), max(nodes.max(), 1.0)
    sigma = BROADENING * (high - low)
    return np.linspace(low - 4 * sigma, high + 4 * sigma, 181), sigma


def _density(checkpoint: ProbedCheckpoint, grid: Floats, width: float, sigma: float) -> Floats:
    centres = np.arcsinh(checkpoint.nodes / width)
    bells = np.exp(-0.5 * ((grid[:, None] - centres) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    return np.asarray(bells @ (checkpoint.weights / checkpoint.weights.sum()), dtype=np.float64)


def _decades(probe: Sequence[ProbedCheckpoint], sigma: float) -> tuple[int, int]:
    """Return the powers of ten between which all rows are drawn, low enough for the faintest line of the spectrum."""
    bell = sigma * math.sqrt(2 * math.pi)
    lightest = min(float(c.weights[c.weights > 1e-7 * c.weights.sum()].min() / c.weights.sum()) for c in probe)
    return math.floor(math.log10(lightest / bell / 3)), math.ceil(math.log10(1.0 / bell))


def _draw_ground(axes: Axes, width: float, rows: int) -> None:
    """Zero, and the linear part around it."""
    axes.axvspan(-width, width, color="#e6e9ef", linewidth=0, zorder=-rows - 2)
    axes.axvline(0.0, color="#8d95a3", linewidth=1.0, zorder=rows + 2)
    axes.grid(False, axis="y")


def _draw_row(axes: Axes, row: int, eigenvalues: Floats, height: Floats, look: _Look, width: float) -> None:
    # Rows below stand in front: what they hide of the row behind is its foot, which is empty.
    order = float(-row)
    # Only where there is anything: a line along the ground would be taken for density.
    there = height > 0
    axes.fill_between(
        eigenvalues, row, row + height, where=there, color=look.fill, linewidth=0, zorder=order, alpha=0.92
    )
    # Around zero the broadening spills over to the other side, so no side is claimed there.
    below = there & (eigenvalues <= -width)
    axes.fill_between(
        eigenvalues,
        row,
        row + height,
        where=below,
        facecolor="none",
        edgecolor=look.line,
        hatch="//////",
        linewidth=0,
        zorder=order,
    )
    axes.plot(
        eigenvalues,
        np.where(there, row + height, np.nan),
        color=look.line,
        linestyle=look.style,
        linewidth=1.2,
        zorder=order,
    )
    axes.plot(eigenvalues[[0, -1]], [row, row], color="#c3c9d3", linewidth=0.7, zorder=order - 0.5)


def _name_rows(axes: Axes, facts: RunFacts, probe: Sequence[ProbedCheckpoint]) -> None:
    switch = facts.switch.epoch if facts.switch else None
    by_epoch = all(checkpoint.epoch is not None for checkpoint in probe)
    names = [place(c).removeprefix(f"{axis_of(probe)} ") if by_epoch else label(place(c), 18) for c in probe]
    marks = ["switch, " if c.epoch is not None and c.epoch == switch else "" for c in probe]
    axes.set_yticks(range(len(probe)), [mark + name for mark, name in zip(marks, names, strict=True)])
    axes.set_ylabel(axis_of(probe) if by_epoch else "checkpoint")
    axes.set_ylim(-0.15, len(probe) - 1 + REACH + 0.1)


def _ridge_legend(axes: Axes, probe: Sequence[ProbedCheckpoint], phase_two: str) -> None:
    looks = dict.fromkeys(_look(checkpoint, phase_two) for checkpoint in probe)
    patches = [
        Patch(facecolor=k.fill, edgecolor=k.line, linestyle=k.style, linewidth=1.2, label=label(k.name)) for k in looks
    ]
    patches.append(Patch(facecolor="none", edgecolor=MUTED, hatch="//////", linewidth=0, label="below the grey part"))
    legend(axes, patches)


def _describe_density(checkpoint: ProbedCheckpoint) -> str:
    total = checkpoint.weights.sum()
    below = checkpoint.weights[checkpoint.nodes < -checkpoint.rounding_floor].sum() / total
    near = checkpoint.weights[np.abs(checkpoint.nodes) <= checkpoint.rounding_floor].sum() / total
    low, high = (
        signed(float(end), checkpoint.rounding_floor) for end in (checkpoint.nodes.min(), checkpoint.nodes.max())
    )
    text = f"{place(checkpoint)}: from {low} to {high}, {number(float(below))} of the weight below zero"
    return text + (f", {number(float(near))} within rounding of zero." if near > 0 else ".")

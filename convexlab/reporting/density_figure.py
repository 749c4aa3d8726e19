"""The spectral density of the Hessian at chosen checkpoints, and the axis on which eigenvalues are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from convexlab.reporting.digest import Digest
from convexlab.reporting.figures import INK, PALETTE, draw, label, scale_asinh, scale_log
from convexlab.reporting.numbers import number, signed
from convexlab.reporting.records import ProbedCheckpoint
from convexlab.reporting.svg import Chart, chart
from convexlab.reporting.wording import place

__all__ = ["chosen_checkpoints", "density_chart", "linear_width"]

Floats = npt.NDArray[np.float64]
# Below this share of the largest eigenvalue the axes are linear: the default floor of a verdict.
LINEAR_SHARE = 1e-3
# Width of the Gaussian that broadens a spectral line, as a share of the axis.
BROADENING = 0.012


def linear_width(probe: Sequence[ProbedCheckpoint]) -> float:
    """Return half the width of the linear part of an eigenvalue axis: never below the rounding floor."""
    sizes = [abs(value) for c in probe for value in (c.largest, c.smallest, c.gradient_curvature) if value is not None]
    largest = max([*sizes, *(float(np.abs(c.nodes).max()) for c in probe if c.nodes.size)], default=0.0)
    return max(LINEAR_SHARE * largest, *(c.rounding_floor for c in probe), np.finfo(np.float64).tiny * 1e3)


def _has_density(checkpoint: ProbedCheckpoint) -> bool:
    return checkpoint.nodes.size > 0


def chosen_checkpoints(
    digest: Digest, usable: Callable[[ProbedCheckpoint], bool] = _has_density
) -> list[tuple[str, ProbedCheckpoint]]:
    """Return up to three checkpoints that are usable, by default with a density: first, nearest the switch, last."""
    probe = [checkpoint for checkpoint in digest.probe if usable(checkpoint)]
    if not probe:
        return []
    chosen = {0: "first", len(probe) - 1: "last"} if len(probe) > 1 else {0: "only one"}
    switch = digest.switch.epoch if digest.switch else None
    if switch is None:
        chosen.setdefault(len(probe) // 2, "middle")
    else:
        gaps = [math.inf if c.epoch is None else abs(c.epoch - switch) for c in probe]
        nearest = int(np.argmin(gaps))
        name = "switch" if gaps[nearest] == 0 else "nearest the switch"
        chosen[nearest] = f"{chosen[nearest]}, {name}" if nearest in chosen else name
    return [(chosen[index], probe[index]) for index in sorted(chosen)]


def density_chart(digest: Digest, key: str) -> Chart | None:
    """Return the spectral density at the start, at the switch and at the end; None where it was not measured."""
    chosen = chosen_checkpoints(digest)
    if not chosen:
        return None
    checkpoints = [checkpoint for _, checkpoint in chosen]
    width = linear_width(checkpoints)
    grid, sigma = _grid(checkpoints, width)
    with draw(rows=len(chosen), height=0.8 + 2.65 * len(chosen)) as (figure, panels):
        for axes, (name, checkpoint) in zip(panels, chosen, strict=True):
            _density_panel(axes, grid, _density(checkpoint, grid, width, sigma), width)
            axes.set_title(f"{name}: {label(place(checkpoint))}", loc="left", fontsize=9.5, color=INK)
            scale_asinh(axes, "x", width)
        _share_heights(panels, checkpoints, sigma)
        panels[-1].set_xlabel("eigenvalue")
        panels[len(panels) // 2].set_ylabel("density")
        return chart(
            figure,
            key=key,
            title="Spectral density",
            caption="Density per unit of the drawn axis, broadened by a Gaussian. The axis is linear in the grey part "
            f"(±{number(width, 2)}); hatched: what lies below it.",
            description=" ".join(_describe_density(name, checkpoint) for name, checkpoint in chosen),
        )


def _grid(checkpoints: Sequence[ProbedCheckpoint], width: float) -> tuple[Floats, float]:
    """Return points equidistant on the drawn axis, in its coordinate asinh(λ / width), and the broadening there."""
    nodes = np.arcsinh(np.concatenate([checkpoint.nodes for checkpoint in checkpoints]) / width)
    low, high = min(nodes.min(), -1.0), max(nodes.max(), 1.0)
    sigma = BROADENING * (high - low)
    return np.linspace(low - 4 * sigma, high + 4 * sigma, 301), sigma


def _density(checkpoint: ProbedCheckpoint, grid: Floats, width: float, sigma: float) -> Floats:
    centres = np.arcsinh(checkpoint.nodes / width)
    bells = np.exp(-0.5 * ((grid[:, None] - centres) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    return np.asarray(bells @ (checkpoint.weights / checkpoint.weights.sum()), dtype=np.float64)


def _density_panel(axes: Axes, grid: Floats, density: Floats, width: float) -> None:
    eigenvalues = width * np.sinh(grid)
    axes.axvspan(-width, width, color="#e6e9ef", linewidth=0, zorder=0)
    axes.axvline(0.0, color="#aab1bd", linewidth=1.0, zorder=0.6)
    # The logarithmic axis is cut far above this; points below only cost bytes.
    bottom = 1e-9
    density = np.maximum(density, bottom)
    # Around zero the broadening spills over to the other side, so no side is claimed there.
    below = eigenvalues <= -width
    axes.fill_between(eigenvalues[~below], density[~below], bottom, color="#d3e3f1", linewidth=0)
    axes.fill_between(
        eigenvalues[below],
        density[below],
        bottom,
        facecolor="#f6d9c8",
        edgecolor=PALETTE["vermilion"],
        hatch="////",
        linewidth=0,
    )
    axes.plot(eigenvalues, density, color=INK, linewidth=1.1)


def _share_heights(panels: Sequence[Axes], checkpoints: Sequence[ProbedCheckpoint], sigma: float) -> None:
    """Give all panels one logarithmic height, low enough for the lightest line of the spectrum."""
    bell = sigma * math.sqrt(2 * math.pi)
    lightest = min(float(c.weights[c.weights > 1e-7 * c.weights.sum()].min() / c.weights.sum()) for c in checkpoints)
    bottom = 10.0 ** math.floor(math.log10(lightest / bell / 3))
    for axes in panels:
        axes.set_ylim(bottom, 3.0 / bell)
        scale_log(axes, "y", most=4)


def _describe_density(name: str, checkpoint: ProbedCheckpoint) -> str:
    total = checkpoint.weights.sum()
    below = checkpoint.weights[checkpoint.nodes < -checkpoint.rounding_floor].sum() / total
    near = checkpoint.weights[np.abs(checkpoint.nodes) <= checkpoint.rounding_floor].sum() / total
    low, high = (
        signed(float(end), checkpoint.rounding_floor) for end in (checkpoint.nodes.min(), checkpoint.nodes.max())
    )
    text = f"{name}, {place(checkpoint)}: from {low} to {high}, {number(float(below))} of the weight below zero"
    return text + (f", {number(float(near))} within rounding of zero." if near > 0 else ".")

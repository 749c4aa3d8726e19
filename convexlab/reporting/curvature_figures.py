"""The curvature of the training loss along training, and its spectral density at chosen checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from convexlab.reporting.digest import Digest, ProbedCheckpoint
from convexlab.reporting.figures import (
    INK,
    MUTED,
    PALETTE,
    Chart,
    chart,
    draw,
    label,
    scale_asinh,
    scale_linear,
    scale_log,
)
from convexlab.reporting.numbers import lower_bound, number, plus_minus, signed
from convexlab.reporting.wording import place, verdict_name

__all__ = ["chosen_checkpoints", "density_chart", "eigenvalue_chart", "mass_chart"]

Floats = npt.NDArray[np.float64]
# Below this share of the largest eigenvalue the axes are linear: the default floor of a verdict.
LINEAR_SHARE = 1e-3
# Width of the Gaussian that broadens a spectral line, as a share of the axis.
BROADENING = 0.012

_VERDICT_MARKERS = {"non-convex": "v", "no-negative-curvature": "o", "unresolved": "X"}


def _positions(probe: Sequence[ProbedCheckpoint]) -> tuple[Floats, bool]:
    """Return where checkpoints stand on the x axis, and whether that is by epoch."""
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


def _column(probe: Sequence[ProbedCheckpoint], name: str) -> Floats:
    return np.array([_without_sign(getattr(checkpoint, name), checkpoint.rounding_floor) for checkpoint in probe])


def _linear_width(probe: Sequence[ProbedCheckpoint]) -> float:
    """Half the width of the linear part of an eigenvalue axis: never below the rounding floor."""
    sizes = [abs(value) for c in probe for value in (c.largest, c.smallest, c.gradient_curvature) if value is not None]
    largest = max([*sizes, *(float(np.abs(c.nodes).max()) for c in probe if c.nodes.size)], default=0.0)
    return max(LINEAR_SHARE * largest, *(c.rounding_floor for c in probe), np.finfo(np.float64).tiny * 1e3)


def _mark_switch(axes: Axes, digest: Digest, by_epoch: bool) -> None:
    if by_epoch and digest.switch is not None and digest.switch.epoch is not None:
        axes.axvline(digest.switch.epoch, color=MUTED, linewidth=1.0, linestyle=(0, (2, 2)), zorder=0.5, label="switch")


def _epoch_axis(axes: Axes, by_epoch: bool) -> None:
    scale_linear(axes, "x")
    axes.set_xlabel("epoch" if by_epoch else "checkpoint, in order")


def eigenvalue_chart(digest: Digest, key: str) -> Chart | None:
    """Return both ends of the spectrum and the curvature along the gradient, by epoch; None without any of them."""
    probe = digest.probe
    columns = {name: _column(probe, name) for name in ("largest", "smallest", "gradient_curvature")}
    if not any(np.isfinite(column).any() for column in columns.values()):
        return None
    x, by_epoch = _positions(probe)
    with draw(height=3.9) as (figure, (axes,)):
        axes.axhline(0.0, color="#aab1bd", linewidth=1.0, zorder=0.6)
        axes.plot(x, columns["largest"], "s-", color=PALETTE["green"], markersize=4, label="largest eigenvalue")
        axes.plot(x, columns["gradient_curvature"], "D--", color=PALETTE["purple"], markersize=3.5, label="gᵀHg / gᵀg")
        _plot_smallest(axes, x, columns["smallest"], probe)
        _mark_switch(axes, digest, by_epoch)
        _epoch_axis(axes, by_epoch)
        scale_asinh(axes, "y", _linear_width(probe))
        axes.set_ylabel("curvature")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1, columnspacing=1.2)
        return chart(
            figure,
            key=key,
            title="Both ends of the spectrum",
            caption="Band: from the smallest eigenvalue found down to its lower bound. The axis is linear around zero.",
            description=" ".join(map(_describe, probe)),
        )


def _plot_smallest(axes: Axes, x: Floats, smallest: Floats, probe: Sequence[ProbedCheckpoint]) -> None:
    bound = np.array(
        [math.nan if c.smallest_lower_bound is None else c.smallest_lower_bound for c in probe], dtype=np.float64
    )
    floors = np.array([c.rounding_floor for c in probe])
    bound = np.where(np.abs(bound) <= floors, -floors, bound)
    color = PALETTE["vermilion"]
    if x.size == 1:
        axes.vlines(x, bound, smallest, color=color, alpha=0.35, linewidth=6)
    else:
        axes.fill_between(x, bound, smallest, color=color, alpha=0.22, linewidth=0)
    axes.plot(x, smallest, "-", color=color, label="smallest eigenvalue")
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
                label=verdict_name(verdict),
            )


def _describe(checkpoint: ProbedCheckpoint) -> str:
    floor = checkpoint.rounding_floor
    return (
        f"{place(checkpoint)}: smallest {signed(checkpoint.smallest, floor)}, "
        f"lower bound {lower_bound(checkpoint.smallest_lower_bound, floor)}, "
        f"largest {signed(checkpoint.largest, floor)}, "
        f"gᵀHg / gᵀg {signed(checkpoint.gradient_curvature, floor)}, {verdict_name(checkpoint.verdict)}."
    )


def mass_chart(digest: Digest, key: str) -> Chart | None:
    """Return the negative spectral mass by epoch with its standard error; None where it was not measured."""
    probe = [checkpoint for checkpoint in digest.probe if checkpoint.negative_mass is not None]
    if not probe:
        return None
    x, by_epoch = _positions(probe)
    mass = np.array([checkpoint.negative_mass for checkpoint in probe], dtype=np.float64)
    error = np.array([checkpoint.negative_mass_standard_error or 0.0 for checkpoint in probe])
    with draw() as (figure, (axes,)):
        axes.errorbar(x, mass, yerr=error, fmt="o-", color=PALETTE["blue"], markersize=4.5, capsize=2.5, elinewidth=1)
        _mark_switch(axes, digest, by_epoch)
        _epoch_axis(axes, by_epoch)
        axes.set_ylim(bottom=min(0.0, float((mass - error).min())))
        scale_linear(axes, "y")
        axes.set_ylabel("share of the spectrum below zero")
        return chart(
            figure,
            key=key,
            title="Negative spectral mass",
            caption="Share of all eigenvalues below zero, by stochastic Lanczos quadrature; bars are one standard error.",
            description=" ".join(
                f"{place(c)}: {plus_minus(c.negative_mass, c.negative_mass_standard_error)}." for c in probe
            ),
        )


def chosen_checkpoints(digest: Digest) -> list[tuple[str, ProbedCheckpoint]]:
    """Return up to three checkpoints that have a density: first, the one nearest the switch, last."""
    probe = [checkpoint for checkpoint in digest.probe if checkpoint.nodes.size]
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
    width = _linear_width(checkpoints)
    grid, sigma = _grid(checkpoints, width)
    with draw(rows=len(chosen), height=0.8 + 2.2 * len(chosen)) as (figure, panels):
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
    return np.linspace(low - 4 * sigma, high + 4 * sigma, 501), sigma


def _density(checkpoint: ProbedCheckpoint, grid: Floats, width: float, sigma: float) -> Floats:
    centres = np.arcsinh(checkpoint.nodes / width)
    bells = np.exp(-0.5 * ((grid[:, None] - centres) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    return np.asarray(bells @ (checkpoint.weights / checkpoint.weights.sum()), dtype=np.float64)


def _density_panel(axes: Axes, grid: Floats, density: Floats, width: float) -> None:
    eigenvalues = width * np.sinh(grid)
    axes.axvspan(-width, width, color="#eef0f4", linewidth=0, zorder=0)
    axes.axvline(0.0, color="#aab1bd", linewidth=1.0, zorder=0.6)
    bottom = np.finfo(np.float64).tiny
    # Around zero the broadening spills over to the other side, so no side is claimed there.
    below = eigenvalues <= -width
    axes.fill_between(eigenvalues[~below], density[~below], bottom, color="#d3e3f1", linewidth=0)
    negative = {"facecolor": "#f6d9c8", "edgecolor": PALETTE["vermilion"], "hatch": "////"}
    axes.fill_between(eigenvalues[below], density[below], bottom, linewidth=0, **negative)
    axes.plot(eigenvalues, density, color=INK, linewidth=1.1)


def _share_heights(panels: Sequence[Axes], checkpoints: Sequence[ProbedCheckpoint], sigma: float) -> None:
    """Give all panels one logarithmic height, low enough for the lightest line of the spectrum."""
    bell = sigma * math.sqrt(2 * math.pi)
    lightest = min(float(c.weights[c.weights > 1e-7 * c.weights.sum()].min() / c.weights.sum()) for c in checkpoints)
    bottom = 10.0 ** math.floor(math.log10(lightest / bell))
    for axes in panels:
        axes.set_ylim(bottom, 3.0 / bell)
        scale_log(axes, "y", most=4)


def _describe_density(name: str, checkpoint: ProbedCheckpoint) -> str:
    total = checkpoint.weights.sum()
    below = checkpoint.weights[checkpoint.nodes < -checkpoint.rounding_floor].sum() / total
    near = checkpoint.weights[np.abs(checkpoint.nodes) <= checkpoint.rounding_floor].sum() / total
    low, high = (signed(float(end), checkpoint.rounding_floor) for end in (checkpoint.nodes.min(), checkpoint.nodes.max()))
    text = f"{name}, {place(checkpoint)}: from {low} to {high}, {number(float(below))} of the weight below zero"
    return text + (f", {number(float(near))} within rounding of zero." if near > 0 else ".")

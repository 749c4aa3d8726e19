"""Figure 3 of the paper: does the gradient norm's peak mark the entry into a convex region with two parameters?

Claim: along steepest descent the gradient norm rises in the non-convex region, peaks at its boundary, and falls in the
convex region. Command: ``python analyses/figure_3.py --scale desk`` Run time: toy and paper seconds; desk under a
minute on one core. Expected outcome: the page ``reports/figure-3.html``. The paper does not name its function; here it
is the squared error of tanh(p·x) on 100 random examples. Every path goes from non-convex to convex with a single swap
of the smallest eigenvalue. The norm's last peak never comes after the swap, as theory demands. But on most paths it
comes well before it. There the norm falls long before the region is convex, and Algorithm 1 fires at a non-convex
point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from paper.gradient_flow import FlowPath, curvature_at, descend
from paper.pages.landscape_charts import COLOURS
from torch import Tensor

from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.charts.style import INK, PALETTE, draw, legend, scale_linear
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.tables import Column, make_table
from convexlab.wording.numbers import number, percent
from convexlab.wording.proportion import Proportion

# Frozen settings. The paper names no function: this is its one-layer model with two parameters in place of one.
SEED = 0
EXAMPLES = 100
TEACHER = 2.0  # length of the weights that made the targets, halfway to the margin
NOISE = 0.1  # of the targets: the fit is not perfect, as in practice
MARGIN = 4.0  # starts lie on this circle: there most outputs are saturated
DRAWN = 5
LENGTH, SAMPLES, TOLERANCE = 12.0, 600, 1e-3
FACTOR = 0.9  # of Algorithm 1
SCALES = {"toy": {"paths": 12}, "desk": {"paths": 200}, "paper": {"paths": DRAWN}}

Floats = npt.NDArray[np.float64]


def make_tasks(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs (count, examples, 2), uniform on (-1, 1), and targets tanh(w·x) + noise (count, examples)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.rand(count, EXAMPLES, 2, generator=generator, dtype=torch.float64) - 1
    teachers = TEACHER * circle(count, generator)
    noise = NOISE * torch.randn(count, EXAMPLES, generator=generator, dtype=torch.float64)
    return inputs, torch.tanh(torch.einsum("mi,mki->mk", teachers, inputs)) + noise


def circle(count: int, generator: torch.Generator) -> Tensor:
    """Return uniform directions (count, 2)."""
    angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1)


def squared_error(inputs: Tensor, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the mean squared error of tanh(p·x), row by row; a single task serves all rows."""
    return lambda p: ((torch.tanh((p[:, None] * inputs).sum(2)) - targets) ** 2).mean(1)


def algorithm_1(path: FlowPath) -> int:
    """Return the first sample at which the norm is at most 0.9 times its largest so far."""
    return int((path.norm <= FACTOR * np.maximum.accumulate(path.norm)).argmax())


def lag(path: FlowPath, value: float) -> float:
    """Return which share of the loss still to be lost at ``value`` is lost before the region is convex for good."""
    return (value - path.smallest_changes[-1].value) / (value - float(path.value[-1]))


def coincidence(path: FlowPath) -> float:
    """Return how far the norm's peaks are from the changes of gᵀHg to plus, in loss, relative."""
    entries = path.along_changes[1 if path.along_gradient[0] > 0 else 0 :: 2]
    if len(entries) != len(path.norm_peaks):
        return math.inf
    gaps = [abs(p.value - e.value) / e.value for p, e in zip(path.norm_peaks, entries, strict=True)]
    return max(gaps, default=0.0)


def quartiles(values: Sequence[float]) -> str:
    """Return the median with the quartiles."""
    low, middle, high = (percent(round(share, 3)) for share in np.quantile(values, [0.25, 0.5, 0.75]))
    return f"{middle} (middle half {low} to {high})"


def map_chart(loss: Callable[[Tensor], Tensor], paths: Sequence[FlowPath]) -> Chart:
    """Draw level curves, the non-convex part shaded, and the paths with their moments."""
    axis = np.linspace(-1.25 * MARGIN, 1.25 * MARGIN, 121)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    found = curvature_at(loss, points)
    value, smallest = (array.reshape(len(axis), -1) for array in (found.value, found.smallest))
    with draw(height=4.9) as (figure, (axes,)):
        axes.contourf(axis, axis, smallest, levels=[-np.inf, 0], colors=["#eceff4"])
        axes.contour(axis, axis, value, levels=14, colors="#9aa3b2", linewidths=0.7)
        for path, colour in zip(paths, COLOURS, strict=False):
            axes.plot(*path.position.T, color=colour, linewidth=1.5)
            axes.plot(*path.position[0], "s", color=colour, markersize=4)
        axes.plot(*path_points(paths, "norm_peaks"), "^", color=PALETTE["vermilion"], markersize=6, label="norm peaks")
        axes.plot(*path_points(paths, "along_changes"), "o", markerfacecolor="none", markeredgecolor=INK, markersize=9,
                  label="gᵀHg = 0")  # fmt: skip
        axes.plot(*path_points(paths, "smallest_changes"), "D", color=PALETTE["green"], markersize=4.5,
                  label="smallest eigenvalue = 0")  # fmt: skip
        axes.set(xlabel="p₁", ylabel="p₂", aspect="equal")
        scale_linear(axes, "x")
        scale_linear(axes, "y")
        legend(axes)
        return chart(
            figure,
            key="map",
            title="Level curves and steepest descent with two parameters",
            caption="Shaded: the Hessian has a negative eigenvalue; squares: starts. Every triangle lies in a ring: "
            "the norm peaks where gᵀHg changes sign to plus. The diamonds, where it becomes convex, come later.",
            description="; ".join(f"path {i + 1} {describe(path)}" for i, path in enumerate(paths)) + ".",
        )


def path_points(paths: Sequence[FlowPath], kind: str) -> Floats:
    """Return the positions (2, m) of one kind of moment on all paths."""
    return np.array([moment.position for path in paths for moment in getattr(path, kind)]).reshape(-1, 2).T


def describe(path: FlowPath) -> str:
    """Say a path in words."""
    peaks = " and ".join(number(moment.value) for moment in path.norm_peaks) or "none"
    entry = " and ".join(number(moment.value) for moment in path.smallest_changes) or "none"
    return f"from loss {number(path.value[0])}: norm peaks at loss {peaks}, convex from loss {entry} on"


def norm_chart(paths: Sequence[FlowPath]) -> Chart:
    """Draw the gradient norm over the loss along the paths."""
    with draw() as (figure, (axes,)):
        for i, (path, colour) in enumerate(zip(paths, COLOURS, strict=False)):
            convex = path.smallest > 0
            axes.plot([], [], color=colour, label=f"path {i + 1}")
            axes.plot(path.value, np.where(convex, path.norm, np.nan), color=colour)
            axes.plot(path.value, np.where(convex, np.nan, path.norm), color=colour, linestyle=":")
            peaks = path.norm_peaks
            axes.plot([m.value for m in peaks], [m.norm for m in peaks], "^", color=colour, markersize=6)
        axes.set(xlabel="loss (falls from right to left)", ylabel="gradient norm")
        scale_linear(axes, "x")
        scale_linear(axes, "y")
        legend(axes)
        return chart(
            figure,
            key="norm",
            title="Gradient norm over loss along the same paths",
            caption="Dotted where the Hessian has a negative eigenvalue, solid where it has none; triangles: peaks.",
            description="; ".join(f"path {i + 1} {describe(path)}" for i, path in enumerate(paths)) + ".",
        )


def lag_chart(lags: Sequence[float]) -> Chart:
    """Draw how the lags are spread."""
    with draw(height=2.9) as (figure, (axes,)):
        axes.hist(np.array(lags) * 100, bins=np.linspace(0, 100, 21).tolist(), color=PALETTE["blue"], ec="white")
        axes.set(xlabel="loss lost between peak and convexity, % of what was left", ylabel="paths")
        axes.grid(False)
        scale_linear(axes, "x")
        scale_linear(axes, "y")
        return chart(
            figure,
            key="lag",
            title="How far the norm's last peak comes before the region is convex",
            caption="At 0 the peak would be the swap, as the paper expects.",
            description=f"Lags of {len(lags)} paths: median {quartiles(lags)}, largest {percent(round(max(lags), 3))}.",
        )


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/figure-3.html"), show_default=True)
def main(scale: str, out: Path) -> None:
    """Follow the paths and write the page."""
    count = SCALES[scale]["paths"]
    inputs, targets = make_tasks(count, SEED)
    starts = MARGIN * circle(count, torch.Generator().manual_seed(SEED + 1))
    follow = {"length": LENGTH, "samples": SAMPLES, "tolerance": TOLERANCE}
    paths = descend(squared_error(inputs, targets), starts.numpy(), **follow)  # type: ignore[arg-type]
    one = squared_error(inputs[:1], targets[:1])
    angles = 2 * np.pi * np.arange(DRAWN) / DRAWN
    evenly = MARGIN * np.stack([np.cos(angles), np.sin(angles)], 1)
    drawn = descend(one, evenly, **follow)  # type: ignore[arg-type]
    write(scale, out, paths, [map_chart(one, drawn), norm_chart(drawn)])


def write(scale: str, out: Path, paths: Sequence[FlowPath], charts: Sequence[Chart]) -> None:
    """Count and write the page."""
    settled = [path for path in paths if path.is_simple and path.arrived]
    peaked = [path for path in settled if path.norm_peaks]
    lags = [lag(path, path.norm_peaks[-1].value) for path in peaked]
    fired = [(path, algorithm_1(path)) for path in settled]
    early = Proportion.of(bool(path.smallest[i] < 0) for path, i in fired)
    early_lags = [lag(path, float(path.value[i])) for path, i in fired if path.smallest[i] < 0]
    simple = Proportion.of(path.is_simple for path in paths)
    after = sum(path.norm_peaks[-1].value < path.smallest_changes[-1].value for path in peaked)
    once = Proportion.of(len(path.norm_peaks) == 1 and bool(path.along_gradient[0] < 0) for path in settled)
    worst = max(map(coincidence, settled))
    counts = make_table(
        f"{len(paths):,} random tasks, one random start each; in brackets the share and its 95 % interval "
        "(Clopper-Pearson). Below the first two lines: of the paths with one swap that arrived.",
        [Column("What holds", False), Column("Paths", False)],
        [
            ("arrives: gradient norm below the tolerance", str(Proportion.of(path.arrived for path in paths))),
            ("first non-convex, then convex, one swap of the smallest eigenvalue", str(simple)),
            ("norm rises, then falls, exactly once", str(once)),
            (
                "norm falls from the start, though non-convex there",
                str(Proportion.of(bool(path.along_gradient[0] > 0) for path in settled)),
            ),
            ("norm has more than one peak", str(Proportion.of(len(path.norm_peaks) > 1 for path in settled))),
            ("norm has no peak", str(Proportion.of(not path.norm_peaks for path in settled))),
            (
                "norm's last peak after the entry into the convex region (must be none)",
                str(Proportion(after, len(peaked))),
            ),
            ("last peak less than 5 % of the loss left before the entry", str(Proportion.of(x < 0.05 for x in lags))),
            ("Algorithm 1 fires where the Hessian has a negative eigenvalue", str(early)),
        ],
    )
    study = Study(
        title="Figure 3: is the gradient norm's peak the entry into the convex region, with two parameters?",
        claim="Along steepest descent the gradient norm rises in the non-convex region and falls in the convex one.",
        answer=[
            f"The peak is necessary, not sufficient: on {after} of {len(peaked)} paths does the norm still peak after "
            f"the region has become convex, but of the loss left at the last peak, a median of {quartiles(lags)} is "
            "lost before it has.",
            f"The region pattern is as the paper says: {simple} paths go from non-convex to convex with one swap.",
            f"Algorithm 1, norm at most {FACTOR} of its largest, fires before the loss is convex on {early} paths.",
        ],
        command=f"python analyses/figure_3.py --scale {scale}",
        parts=[
            Part(
                "Five starts on one task",
                [
                    "Agrees with the paper: level curves grow less dense near the minimum, the margin is non-convex, "
                    "and within the convex region the norm falls.",
                    "Does not agree: the norm's fall does not say that the region is convex. Along the flow "
                    "d‖g‖²/dt = −2gᵀHg, so the peak tells the sign of the curvature along the gradient only; across "
                    "it, the Hessian can stay negative. Every peak found from the norm alone lies at a sign change of "
                    f"gᵀHg, to a relative {number(worst, 2)} of the loss.",
                ],
                charts,
            ),
            Part(
                "How many",
                [
                    "The lag compares two decreases of the loss after the norm's last peak: that before the smallest "
                    "eigenvalue is positive for good, over the whole remaining one.",
                    f"Where Algorithm 1 fires too early, that share is {quartiles(early_lags)}." if early_lags else "",
                    "The paper names no function. This one is its one-layer model with two parameters in place of one. "
                    "Another would give other shares, but in none can the peak come after the entry.",
                ],
                [lag_chart(lags)],
                [counts],
            ),
        ],
        settings={
            "seed": SEED,
            "model": "y = tanh(p₁x₁ + p₂x₂), mean squared error",
            "examples": EXAMPLES,
            "inputs": "uniform on (−1, 1)²",
            "targets": f"tanh(w·x) + noise, |w| = {TEACHER:g}, standard deviation {NOISE:g}",
            "starts": f"uniform on the circle of radius {MARGIN:g}; those drawn evenly",
            "paths": len(paths),
            "flow": "SciPy's RK45, relative tolerance 10⁻⁹",
            "arrived_at_gradient_norm": TOLERANCE,
            "samples": SAMPLES,
        },
        dtype="float64",
    )
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()

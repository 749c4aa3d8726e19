"""Loss, gradient and curvature at one point."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.curvature.bounds import check_confidence
from convexlab.curvature.density import density_of
from convexlab.curvature.effort import Meter
from convexlab.curvature.lanczos import Lanczos, random_run, random_unit_vector
from convexlab.curvature.slices import check_points, extreme_slices
from convexlab.curvature.verdict import Verdict, judge, steps_to_resolve
from convexlab.errors import FailureError, MisuseError
from convexlab.linalg.operators import MatrixVectorProduct
from convexlab.linalg.vectors import dot, norm
from convexlab.objective import Objective
from convexlab.probing.fresh_examples import sampling_error
from convexlab.problems import ImageProblem
from convexlab.runs import Row

__all__ = ["ProbeOptions", "probe_objective", "probe_point"]

# Both ends are bounded to this part of the range, even where the verdict is clear before.
_TOLERANCE = 1e-2
# Nodes with less weight than this are not seen in any picture.
_NEGLIGIBLE_WEIGHT = 1e-12


@dataclass(frozen=True)
class ProbeOptions:
    """How a checkpoint is measured."""

    floor: float = 1e-3
    """Negative curvature below this fraction of the largest is not searched for."""
    confidence: float = 0.999
    """Of the bounds, over the random start."""
    max_steps: int | None = None
    """Products of the first Krylov run at most; None is what a verdict needs."""
    density_probes: int = 2
    """Krylov runs that the density, its negative mass and the trace are averaged over."""
    density_steps: int = 32
    """Products of each of these but the first."""
    seed: int = 0
    """Of the Krylov runs' starts."""
    slice_points: int = 13
    """Of the loss along either extreme eigenvector, an odd number; 0 is no slice."""

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        check_confidence(self.confidence)
        if self.density_probes < 1 or self.density_steps < 1:
            raise MisuseError(
                f"expected at least one density probe and step, got {self.density_probes!r} and {self.density_steps!r}."
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise MisuseError(f"expected max_steps of at least 1, got {self.max_steps!r}.")
        if self.slice_points:
            check_points(self.slice_points)


def probe_point(problem: ImageProblem, options: ProbeOptions) -> tuple[Row, Verdict | None]:
    """Measure loss, gradient and curvature at the model's present parameters.

    The first Krylov run serves the ends of the spectrum, the verdict, and as the first probe of the density.

    Returns:
        The numbers of a row of ``probe.jsonl``, and the verdict they contain; None where the loss, its gradient or a
        product with its Hessian is not finite.
    """
    with Meter(problem.objective) as meter:
        row, verdict = _measured(problem.objective, options, meter)
        row |= sampling_error(problem, verdict)
        row |= _slices(problem.objective, verdict, row, options)
        return row | _effort(meter, verdict), verdict


def probe_objective(objective: Objective, options: ProbeOptions, *, sliced: bool = True) -> tuple[Row, Verdict | None]:
    """Measure the same of any objective, with or without slices, but nothing on fresh examples: it knows of none."""
    with Meter(objective) as meter:
        row, verdict = _measured(objective, options, meter)
        if sliced:
            row |= _slices(objective, verdict, row, options)
        return row | _effort(meter, verdict), verdict


def _slices(objective: Objective, verdict: Verdict | None, row: Row, options: ProbeOptions) -> Row:
    return {"slices": extreme_slices(objective, verdict, row["train_loss"], options.slice_points)}


def _effort(meter: Meter, verdict: Verdict | None) -> Row:
    effort = meter.effort(products=verdict.effort.products if verdict else 0)
    return {name: getattr(effort, name) for name in ("gradient_equivalents", "seconds", "peak_memory")}


def _measured(objective: Objective, options: ProbeOptions, meter: Meter) -> tuple[Row, Verdict | None]:
    value, gradient = objective.value_and_gradient()
    gradient_norm = float(norm(gradient))
    row: Row = {"train_loss": value, "gradient_norm": gradient_norm}
    if not (math.isfinite(value) and math.isfinite(gradient_norm)):
        reason = f"The loss is {value} here, its gradient's norm {gradient_norm}: curvature has no meaning."
        return row | _nothing(reason), None
    try:
        measured, verdict = _curvature(objective, gradient, options, meter)
    except FailureError as error:
        return row | _nothing(f"Nothing can be said about curvature here: {error}"), None
    return row | measured, verdict


def _curvature(objective: Objective, gradient: Tensor, options: ProbeOptions, meter: Meter) -> tuple[Row, Verdict]:
    operator = objective.hessian()
    generator = torch.Generator().manual_seed(options.seed)
    steps = steps_to_resolve(operator.shape[0], options.floor, options.confidence)
    first = Lanczos(operator, random_unit_vector(operator, generator), min(steps, options.max_steps or steps))
    verdict = judge(first, floor=options.floor, confidence=options.confidence, tolerance=_TOLERANCE, meter=meter)
    others = (random_run(operator, generator, options.density_steps) for _ in range(options.density_probes - 1))
    density = density_of(itertools.chain([first], others), meter)
    trace, trace_error = density.moment(1)
    # What is nearer to zero than the verdict looks, the density does not resolve either.
    mass, mass_error = density.mass_below(-max(density.zero_width, options.floor * verdict.scale))
    seen = density.weights > _NEGLIGIBLE_WEIGHT
    ends = verdict.extremes
    return {
        "gradient_curvature": _along(gradient, operator),
        "smallest": ends.smallest,
        "smallest_lower_bound": ends.smallest_lower_bound,
        "smallest_residual": ends.smallest_residual,
        "smallest_slope": float(dot(gradient, ends.smallest_vector)),
        "largest": ends.largest,
        "largest_residual": ends.largest_residual,
        "largest_slope": float(dot(gradient, ends.largest_vector)),
        "negative_mass": mass,
        "negative_mass_standard_error": mass_error,
        "trace": trace,
        "trace_standard_error": trace_error,
        "second_difference": verdict.second_difference,
        "verdict": verdict.kind,
        "verdict_summary": verdict.summary(),
        "rounding_floor": verdict.rounding_floor,
        "confidence": options.confidence,
        "floor": options.floor,
        "steps": verdict.steps,
        "density": {"nodes": density.nodes[seen].tolist(), "weights": density.weights[seen].tolist()},
    }, verdict


def _along(gradient: Tensor, operator: MatrixVectorProduct) -> float | None:
    """Return gᵀHg / gᵀg; None where the gradient is zero."""
    square = float(dot(gradient, gradient))
    return float(dot(gradient, operator.matvec(gradient))) / square if square else None


def _nothing(reason: str) -> Row:
    names = (
        "gradient_curvature smallest smallest_lower_bound smallest_residual smallest_slope largest largest_residual "
        "largest_slope negative_mass negative_mass_standard_error trace trace_standard_error second_difference "
        "rounding_floor confidence floor density"
    )
    return dict.fromkeys(names.split()) | {
        "verdict": "unresolved",
        "verdict_summary": reason,
        "steps": 0,
    }

"""Loss, gradient and curvature at one point."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexlab.curvature.adam_metric import AdamMetric, sharpness_in
from convexlab.curvature.bounds import check_confidence
from convexlab.curvature.density import density_of
from convexlab.curvature.effort import Meter
from convexlab.curvature.extremes import FIRST_LOOK
from convexlab.curvature.inexact import norm_of_deviation
from convexlab.curvature.intervals import LEVEL, student_interval
from convexlab.curvature.lanczos import Lanczos, random_run, random_unit_vector
from convexlab.curvature.slices import check_points, extreme_slices
from convexlab.curvature.top import pairs_of
from convexlab.curvature.trace import trace_beside
from convexlab.curvature.verdict import Verdict, judge, steps_to_resolve
from convexlab.errors import FailureError, MisuseError, unknown_name
from convexlab.linalg.operators import MatrixVectorProduct, SymmetricOperator
from convexlab.linalg.vectors import dot, norm
from convexlab.machine.precision import PRECISIONS, Precision
from convexlab.objective import PRODUCTS, Objective, Products
from convexlab.objective.narrow import NarrowHessian
from convexlab.probing.fresh_examples import sampling_error
from convexlab.probing.loss import ProbedLoss
from convexlab.probing.teller import Teller
from convexlab.runs.rows import LossSlice, PointMeasurement, ProbedCheckpoint, Sampling

__all__ = ["ProbeOptions", "probe_objective", "probe_point"]

# Both ends are bounded to this part of the range, even where the verdict is clear before.
_TOLERANCE = 1e-2
# Products at a checkpoint; a verdict takes hundreds.
_MOST_PRODUCTS = 100_000
# Nodes with less weight than this are not seen in any picture.
_NEGLIGIBLE_WEIGHT = 1e-12


@dataclass(frozen=True)
class ProbeOptions:
    """How a checkpoint is measured."""

    floor: float = 1e-3
    """Negative curvature below this fraction of the largest is not searched for."""
    confidence: float = 0.999
    """Confidence of the bounds, over the random start."""
    max_steps: int | None = None
    """Products of the first Krylov run at most; None is what a verdict needs."""
    density_probes: int = 1
    """Krylov runs that the density and its negative mass are averaged over."""
    density_steps: int = 32
    """Products of each of these but the first."""
    trace_samples: int = 8
    """Products beside the first run that estimate the part of the trace outside of its space."""
    products: Products = "auto"
    """How the Hessian multiplies, see `Objective.hessian`; by ``"differences"`` nothing is said of fresh examples."""
    precision: Precision = "full"
    """Precision of the Krylov runs' products, see `Objective.hessian`. All other products are in full precision."""
    seed: int = 0
    """Seed of the Krylov runs' starts, and of these products' vectors."""
    top: int = 0
    """Largest eigenpairs to measure too, on the first run; 0 is none."""
    slice_points: int = 13
    """Points of the loss along each extreme eigenvector, an odd number; 0 makes no slice."""

    def __post_init__(self) -> None:
        """Refuse fields of another type, or out of range."""
        for name in ("floor", "confidence", "density_probes", "density_steps", "trace_samples", "seed", "slice_points"):
            value = getattr(self, name)
            kind: Any = (int, float) if name in ("floor", "confidence") else int
            if isinstance(value, bool) or not isinstance(value, kind):
                raise MisuseError(f"expected {name} to be a {'whole ' * (kind is int)}number, got {value!r}.")
        if not 0 <= self.floor < math.inf:
            raise MisuseError(f"expected floor to be a number from 0, got {self.floor!r}.")
        check_confidence(self.confidence)
        if self.density_probes < 1 or self.density_steps < 1:
            raise MisuseError(
                f"expected at least one density probe and step, got {self.density_probes!r} and {self.density_steps!r}."
            )
        if isinstance(self.top, bool) or not isinstance(self.top, int) or self.top < 0:
            raise MisuseError(f"expected top to be a whole number of eigenpairs from 0, got {self.top!r}.")
        if self.trace_samples < 2:
            raise MisuseError(f"expected at least two samples of the trace, got {self.trace_samples!r}.")
        if self.max_steps is not None and (not isinstance(self.max_steps, int) or self.max_steps < 1):
            raise MisuseError(f"expected max_steps of at least 1, got {self.max_steps!r}.")
        products = self.density_probes * self.density_steps
        if max(products, self.max_steps or 0) > _MOST_PRODUCTS:
            raise MisuseError(
                f"expected at most {_MOST_PRODUCTS:,} products with the Hessian at a checkpoint, got "
                f"{products + (self.max_steps or 0):,}. Each costs two epochs. They are for {self.density_probes:,} "
                f"density probes of {self.density_steps:,} steps, and max_steps {self.max_steps}. Ask for fewer."
            )
        if self.products not in PRODUCTS:
            raise unknown_name("kind of products", self.products, PRODUCTS)
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        if self.slice_points:
            check_points(self.slice_points)

    def most_steps(self, size: int) -> int:
        """Return the products of the first Krylov run at most, for so many parameters."""
        steps = steps_to_resolve(size, self.floor, self.confidence)
        return min(steps, self.max_steps or steps, size)


def probe_point(
    loss: ProbedLoss, options: ProbeOptions, metric: AdamMetric | None = None, teller: Teller | None = None
) -> tuple[ProbedCheckpoint, Verdict | None]:
    """Measure loss, gradient and curvature at the model's present parameters.

    The first Krylov run serves the ends of the spectrum, the verdict, and as the first probe of the density. With the
    metric of an Adam there is one more, for the largest curvature in that. ``teller`` reports the numbers as they come.

    Returns:
        A row of ``probe.jsonl``, without the checkpoint's name, and the verdict in it. The verdict is None where the
        loss, its gradient or a product with its Hessian is not finite.
    """
    objective = loss.objective
    with Meter(objective) as meter:
        point, verdict = _measured(objective, options, meter, metric, teller or Teller())
        exact = options.products != "differences"
        sampling = sampling_error(loss.problem, verdict) if loss.problem is not None and exact else Sampling()
        slices = _slices(objective, verdict, point, options)
        row = ProbedCheckpoint(
            **vars(_charged(point, meter, verdict)),
            **vars(sampling),
            slices=slices,
            examples=loss.examples,
            train_size=loss.train_size,
        )
        return row, verdict


def probe_objective(objective: Objective, options: ProbeOptions) -> tuple[PointMeasurement, Verdict | None]:
    """Measure an objective as `probe_point` does, without slices and fresh examples."""
    with Meter(objective) as meter:
        point, verdict = _measured(objective, options, meter, None, Teller())
        return _charged(point, meter, verdict), verdict


def _slices(
    objective: Objective, verdict: Verdict | None, point: PointMeasurement, options: ProbeOptions
) -> dict[str, LossSlice]:
    if verdict is None or point.train_loss is None:
        return {}
    drawn = extreme_slices(objective, verdict, point.train_loss, options.slice_points)
    slices = {end: LossSlice.along(end, point, np.array(s.steps), np.array(s.losses)) for end, s in drawn.items()}
    return {end: line for end, line in slices.items() if line is not None}


def _charged(point: PointMeasurement, meter: Meter, verdict: Verdict | None) -> PointMeasurement:
    effort = meter.effort(products=verdict.effort.products if verdict else 0)
    return replace(
        point,
        gradient_equivalents=effort.gradient_equivalents,
        seconds=effort.seconds,
        peak_memory=effort.peak_memory,
    )


def _measured(
    objective: Objective, options: ProbeOptions, meter: Meter, metric: AdamMetric | None, teller: Teller
) -> tuple[PointMeasurement, Verdict | None]:
    value, gradient = objective.value_and_gradient()
    gradient_norm = float(norm(gradient))
    teller.loss(value, gradient_norm)
    nothing = PointMeasurement(train_loss=value, gradient_norm=gradient_norm, verdict="unresolved", steps=0)
    if not (math.isfinite(value) and math.isfinite(gradient_norm)):
        return nothing, None
    try:
        return _curvature(objective, value, gradient, options, meter, metric, teller)
    except FailureError as error:
        return replace(nothing, failure=str(error)), None


def _curvature(
    objective: Objective,
    value: float,
    gradient: Tensor,
    options: ProbeOptions,
    meter: Meter,
    metric: AdamMetric | None,
    teller: Teller,
) -> tuple[PointMeasurement, Verdict]:
    operator = objective.hessian(options.products, options.precision)
    exact = operator.reference() if isinstance(operator, NarrowHessian) else operator
    generator = torch.Generator().manual_seed(options.seed)
    first = Lanczos(operator, random_unit_vector(operator, generator), options.most_steps(operator.shape[0]))
    _forecast(first, options, teller)
    verdict = judge(
        first,
        floor=options.floor,
        confidence=options.confidence,
        tolerance=_TOLERANCE,
        meter=meter,
        watch=teller.steps,
    )
    teller.verdict(verdict.kind, verdict.extremes.smallest, verdict.extremes.largest)
    top = _top(first, gradient, options.top) if options.top else {}
    first.operator = exact
    trace, trace_error, degrees = trace_beside(first, options.trace_samples, generator)
    trace_low, trace_high = student_interval(trace, trace_error, degrees, LEVEL)
    deviation = _deviation(first, verdict) if exact is not operator else 0.0
    # Of narrow products |tr T - tr VᵀAV| = |tr VᵀF| is at most k ‖F‖, and an eigenvalue is ‖F‖ off at most.
    reach = first.steps * deviation
    others = (random_run(operator, generator, options.density_steps) for _ in range(options.density_probes - 1))
    density = density_of(itertools.chain([first], others), meter)
    # What is nearer to zero than the verdict looks, the density does not resolve either.
    threshold = -max(density.zero_width, options.floor * verdict.scale, deviation)
    mass, mass_error = density.mass_below(threshold)
    mass_low, mass_high = density.mass_interval(threshold, LEVEL)
    visible = density.weights > _NEGLIGIBLE_WEIGHT
    ends = verdict.extremes
    point = PointMeasurement(
        train_loss=value,
        gradient_norm=float(norm(gradient)),
        gradient_curvature=_along(gradient, exact),
        smallest=ends.smallest,
        smallest_lower_bound=ends.smallest_lower_bound,
        smallest_residual=ends.smallest_residual,
        smallest_slope=float(dot(gradient, ends.smallest_vector)),
        largest=ends.largest,
        largest_residual=ends.largest_residual,
        largest_slope=float(dot(gradient, ends.largest_vector)),
        negative_mass=mass,
        negative_mass_standard_error=mass_error,
        negative_mass_low=mass_low,
        negative_mass_high=mass_high,
        trace=trace,
        trace_standard_error=trace_error,
        trace_low=trace_low - reach,
        trace_high=trace_high + reach,
        interval_level=LEVEL,
        **top,
        **_in_metric(exact, metric, options.seed),
        second_difference=verdict.second_difference,
        verdict=verdict.kind,
        rounding_floor=verdict.rounding_floor,
        confidence=options.confidence,
        floor=options.floor,
        steps=verdict.steps,
        precision=options.precision if exact is not operator else "",
        deviation=ends.deviation if exact is not operator else None,
        nodes=density.nodes[visible].numpy(),
        weights=density.weights[visible].numpy(),
    )
    return point, verdict


def _deviation(process: Lanczos, verdict: Verdict) -> float:
    """Return the bound on the error of a run on narrow products, whose operator is exact again, as long as it is now.

    For the largest eigenpairs it was extended after the verdict.
    """
    known = verdict.extremes.deviation
    return known if process.steps == verdict.steps else norm_of_deviation(process, 1 - LEVEL)


def _forecast(process: Lanczos, options: ProbeOptions, teller: Teller) -> None:
    """Take the steps before the first look at a run, and report the expected time; the first step builds graphs."""
    process.extend(1)
    begin = time.perf_counter()
    process.extend(1)
    seconds = time.perf_counter() - begin
    teller.forecast(seconds, process, tolerance=_TOLERANCE, confidence=options.confidence)
    while process.steps < FIRST_LOOK - 1 and not process.exhausted:
        process.extend(1)
        teller.steps(process)


def _top(process: Lanczos, gradient: Tensor, count: int) -> dict[str, Any]:
    """Return the fields of a row on the largest eigenpairs; the run is extended for them as far as it may be."""
    values, vectors, residuals = pairs_of(process, min(count, process.operator.shape[0]), tolerance=_TOLERANCE)
    inside, whole = float(norm(vectors.T @ gradient.to(vectors))), float(norm(gradient))
    return {
        "top_values": values.numpy(),
        "top_residuals": residuals.numpy(),
        "top_gradient_share": (inside / whole) ** 2 if whole else None,
    }


def _in_metric(operator: SymmetricOperator, metric: AdamMetric | None, seed: int) -> dict[str, Any]:
    """Return the fields of a row on curvature in Adam's metric."""
    if metric is None:
        return {}
    try:
        sharpness = sharpness_in(operator, metric, tolerance=_TOLERANCE, seed=seed)
    except FailureError:  # Moments that are not finite, or no memory; the rest of the row holds.
        return {}
    return {
        "adam_sharpness": sharpness.value,
        "adam_sharpness_residual": sharpness.residual,
        "adam_threshold": sharpness.threshold,
    }


def _along(gradient: Tensor, operator: MatrixVectorProduct) -> float | None:
    """Return gᵀHg / gᵀg; None where the gradient is zero."""
    square = float(dot(gradient, gradient))
    return float(dot(gradient, operator.matvec(gradient))) / square if square else None

"""Both ends of a spectrum from one Krylov run, with residuals and a bound that holds with a stated confidence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlab.curvature.bounds import check_confidence, least_overlaps, margins, steps_for
from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.inexact import Inexact, cheapest_operator, deviation, error_of
from convexlab.curvature.lanczos import Lanczos, random_unit_vector
from convexlab.curvature.soundness import require_operator
from convexlab.errors import MisuseError
from convexlab.linalg.operators import MatrixVectorProduct

__all__ = [
    "FIRST_LOOK",
    "Ends",
    "ExtremeEigenvalues",
    "ends_of",
    "error_of_products",
    "extreme_eigenvalues",
    "extremes_of",
    "margins_of",
    "stages",
    "start_confidence_of",
]

FIRST_LOOK = 10
"""Steps after which a run is looked at first."""
# Share of the tolerance that a run on cheap products leaves to their error.
_DEVIATION_SHARE = 0.25
# Above this share the run is made again with exact products.
_LARGEST_DEVIATION = 0.7
# Share that their bound has of what may fail; the rest is the start's.
_DEVIATION_FAILURE = 0.2
# Steps from which a run may be long enough to repay what cheap products cost to check.
_LONG_RUN = 20


@dataclass(frozen=True)
class ExtremeEigenvalues:
    """The ends of a spectrum. The true smallest eigenvalue lies in [smallest_lower_bound, smallest]."""

    smallest: float
    """vᵀA v of the smallest Ritz vector v, by a fresh product: up to rounding, never below the smallest eigenvalue."""
    largest: float
    """Likewise of the largest Ritz vector: up to rounding, never above the largest eigenvalue."""
    smallest_vector: Tensor
    """(n,), unit length, float64."""
    largest_vector: Tensor
    """(n,), unit length, float64."""
    smallest_residual: float
    """‖A v - θ v‖ by a fresh product. It proves that *some* eigenvalue is this near, not that it is the smallest."""
    largest_residual: float
    """Likewise for the largest."""
    smallest_lower_bound: float
    """Holds with probability ``confidence`` over the random start."""
    largest_upper_bound: float
    """Holds together with the lower bound."""
    confidence: float
    """Probability that both bounds hold together."""
    steps: int
    """Dimension of the Krylov space."""
    converged: bool
    """Whether both bounds are, up to rounding, within ``tolerance`` times the range of the Ritz values.

    Where the Krylov space ended early: within ``tolerance`` times the largest absolute Ritz value.
    """
    deviation: float
    """Bound on the error of the run's cheaper products, included in the bounds; 0 for exact products."""
    effort: Effort


def extreme_eigenvalues(
    operator: MatrixVectorProduct,
    *,
    tolerance: float = 1e-2,
    confidence: float = 0.999,
    max_steps: int | None = None,
    seed: int = 0,
) -> ExtremeEigenvalues:
    """Return the smallest and the largest eigenvalue of a symmetric operator.

    The run ends when both bounds are within ``tolerance`` (`bounds.margins`), or after as many steps as are enough for
    any spectrum of n eigenvalues (`bounds.steps_for`). On the Hessian of an objective it uses differences of gradients
    where these prove accurate enough, see `inexact`. Values, residuals and the error of the differences then come from
    exact products. The same holds for products in fewer bits. Where there are no exact products, they come from
    differences with another step.

    Args:
        operator: anything with ``matvec``, ``shape``, ``dtype`` and ``device``.
        tolerance: wanted distance of a bound from its Ritz value, relative to λ_max - λ_min.
        confidence: probability over the random start with which both bounds hold.
        max_steps: steps at most. With too few, ``converged`` is False and the bounds, still valid, are wide.
        seed: of the random start.

    Raises:
        MisuseError: a tolerance, confidence or number of steps out of range.
        FailureError: the run does not fit into memory, see `forecast_memory`; or a product is not finite.
    """
    require_operator(operator)
    if not 0 < tolerance < 1:
        raise MisuseError(f"expected a tolerance between 0 and 1, got {tolerance!r}.")
    check_confidence(confidence)
    if max_steps is not None and max_steps < 1:
        raise MisuseError(f"expected max_steps of at least 1, got {max_steps!r}.")
    start_confidence = start_confidence_of(confidence)
    limit = steps_for(operator.shape[0], (1 - _DEVIATION_SHARE) * tolerance, start_confidence)
    limit = limit if max_steps is None else min(limit, max_steps)
    with Meter(operator) as meter:
        start = random_unit_vector(operator, torch.Generator().manual_seed(seed))
        process = Lanczos(operator, start, limit)
        del start  # The run has a copy.
        if isinstance(operator, Inexact):
            _extend_until(process, (1 - _DEVIATION_SHARE) * tolerance, start_confidence)
            error = error_of_products(process, confidence)
        else:
            error = _run_cheaply(process, tolerance, confidence) if limit >= _LONG_RUN else 0.0
            # With exact products from here on no deviation is added.
            _extend_until(process, tolerance, start_confidence if error else confidence, error)
        at_start = start_confidence if error else confidence
        extremes = extremes_of(
            process, ends_of(process), tolerance=tolerance, confidence=at_start, meter=meter, deviation=error
        )
    return replace(extremes, confidence=confidence)


def _run_cheaply(process: Lanczos, tolerance: float, confidence: float) -> float:
    """Run on differences of gradients where these are accurate enough, and return the bound on their error.

    The run's operator is exact again afterwards. Where the error turns out too large, the run is reset to its start and
    the result is 0. It is also 0 where no difference was used.
    """
    operator = process.operator
    process.operator = cheapest_operator(process, tolerance)
    if process.operator is operator:
        return 0.0
    _extend_until(process, (1 - _DEVIATION_SHARE) * tolerance, start_confidence_of(confidence))
    process.operator = operator
    error = deviation(process, failure=_DEVIATION_FAILURE * (1 - confidence))
    if error <= _LARGEST_DEVIATION * tolerance * _spread(process):
        return error
    process.restart()
    return 0.0


def error_of_products(process: Lanczos, confidence: float) -> float:
    """Return a bound on the error of a run on `Inexact` products, which goes on with others, see `error_of`."""
    return error_of(process, failure=_DEVIATION_FAILURE * (1 - confidence))


def start_confidence_of(confidence: float) -> float:
    """Return the confidence over the start that leaves room for what the bound on the products' error may fail."""
    return 1 - (1 - _DEVIATION_FAILURE) * (1 - confidence)


def _spread(process: Lanczos) -> float:
    values, _ = process.ritz()
    return float(values[-1] - values[0])


def _extend_until(process: Lanczos, tolerance: float, confidence: float, deviation: float = 0.0) -> None:
    """Take steps until both margins are within ``tolerance`` times the range, or as many as there may be."""
    for steps in stages(process.steps, process.max_steps):
        process.extend(steps - process.steps)
        if process.exhausted or max(margins_of(process, confidence)) + deviation <= tolerance * _spread(process):
            return


def stages(least: int, most: int) -> Iterator[int]:
    """Yield numbers of steps at which to look at a run, a twentieth apart, up to ``most``."""
    steps = max(least, FIRST_LOOK)
    while steps < most:
        yield steps
        steps += max(1, steps // 20)
    yield most


@dataclass(frozen=True)
class Ends:
    """The outermost Ritz pairs of a Krylov run, with fresh products: row 0 the smallest, row 1 the largest."""

    ritz: tuple[float, float]
    """Ritz values of the run."""
    values: tuple[float, float]
    """vᵀA v by the fresh products."""
    vectors: Tensor
    """(2, n), unit length."""
    products: Tensor
    """(2, n), A v, made anew and not taken from the Krylov run."""


def ends_of(process: Lanczos) -> Ends:
    """Return the outermost Ritz pairs; makes two products."""
    values, coefficients = process.ritz()
    vectors = process.ritz_vectors(coefficients[:, [0, -1]]).T.contiguous()
    products = process.multiply(vectors)
    smallest, largest = (vectors * products).sum(dim=1).tolist()
    return Ends((float(values[0]), float(values[-1])), (smallest, largest), vectors, products)


def extremes_of(
    process: Lanczos, ends: Ends, *, tolerance: float, confidence: float, meter: Meter, deviation: float = 0.0
) -> ExtremeEigenvalues:
    """Return the extreme eigenvalues by a Krylov run from a random start; ``deviation`` is that of its products."""
    smallest, largest = ends.values
    pairs = zip(ends.products, ends.vectors, ends.values, strict=True)
    residuals = [float(torch.linalg.vector_norm(product - value * vector)) for product, vector, value in pairs]
    scale = max(abs(smallest), abs(largest))
    unit = scale if process.invariant else largest - smallest
    below, above = margins_of(process, confidence)
    # What rounding, which the theory leaves out, may add: √n ε times the scale, or the residuals.
    rounding = math.sqrt(process.operator.shape[0]) * torch.finfo(process.operator.dtype).eps * scale
    if process.steps == process.operator.shape[0]:
        rounding = max(rounding, *residuals)
    return ExtremeEigenvalues(
        smallest=smallest,
        largest=largest,
        smallest_vector=ends.vectors[0],
        largest_vector=ends.vectors[1],
        smallest_residual=residuals[0],
        largest_residual=residuals[1],
        smallest_lower_bound=min(smallest, ends.ritz[0] - below - deviation) - rounding,
        largest_upper_bound=max(largest, ends.ritz[1] + above + deviation) + rounding,
        confidence=confidence,
        steps=process.steps,
        converged=max(below, above) + deviation <= max(tolerance * unit * (1 + 1e-9), rounding),
        deviation=deviation,
        effort=meter.effort(process.products, process.plan),
    )


def margins_of(process: Lanczos, confidence: float) -> tuple[float, float]:
    """Return how far, in exact arithmetic, the spectrum may reach beyond the Ritz values."""
    size = process.operator.shape[0]
    if process.steps == size:
        return 0.0, 0.0
    return margins(*process.coefficients(), least_overlaps(size, confidence), precision=process.precision)

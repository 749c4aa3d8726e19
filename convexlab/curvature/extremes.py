"""Both ends of a spectrum from one Krylov run, with residuals and a bound that holds with a stated confidence."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.curvature.lanczos import Lanczos, random_run
from convexlab.errors import MisuseError
from convexlab.operators import MatrixVectorProduct

__all__ = [
    "Ends",
    "ExtremeEigenvalues",
    "check_confidence",
    "ends_of",
    "extreme_eigenvalues",
    "extremes_of",
    "fresh_products",
    "relative_gap",
    "steps_for_gap",
]


@dataclass(frozen=True)
class ExtremeEigenvalues:
    """The ends of a spectrum. The true smallest eigenvalue lies in [smallest_lower_bound, smallest]."""

    smallest: float
    """Smallest Ritz value: never below the true smallest eigenvalue but for rounding."""
    largest: float
    """Largest Ritz value: never above the true largest eigenvalue but for rounding."""
    smallest_vector: Tensor
    """(n,), unit length, float64."""
    largest_vector: Tensor
    """(n,), unit length, float64."""
    smallest_residual: float
    """‖A v - θ v‖ by a fresh product. It proves that *some* eigenvalue is this near, not that it is the smallest."""
    largest_residual: float
    """Likewise at the other end."""
    smallest_lower_bound: float
    """Holds with probability ``confidence`` over the random start; -inf after too few steps to say anything."""
    largest_upper_bound: float
    """Holds together with the lower bound."""
    confidence: float
    """Of both bounds together."""
    steps: int
    """Dimension of the Krylov space."""
    converged: bool
    """Whether both bounds are within ``tolerance`` times the range of the Ritz values, but for rounding.

    Where the Krylov space ended early, within ``tolerance`` times the largest of them in size.
    """
    seconds: float
    """Wall-clock time."""


def extreme_eigenvalues(
    operator: MatrixVectorProduct,
    *,
    tolerance: float = 1e-2,
    confidence: float = 0.999,
    max_steps: int | None = None,
    seed: int = 0,
) -> ExtremeEigenvalues:
    """Return the smallest and the largest eigenvalue of a symmetric operator.

    The number of steps follows from n, ``tolerance`` and ``confidence`` (Kuczyński & Woźniakowski 1992); see
    `relative_gap`.

    Args:
        operator: anything with ``matvec``, ``shape``, ``dtype`` and ``device``.
        tolerance: wanted distance of a bound from its Ritz value, relative to λ_max - λ_min.
        confidence: probability over the random start with which both bounds hold.
        max_steps: products at most; with too few, ``converged`` is False and the bound is as wide as it must be.
        seed: of the random start.

    Raises:
        MisuseError: a tolerance, confidence or number of steps out of range.
    """
    if not 0 < tolerance < 1:
        raise MisuseError(f"expected a tolerance between 0 and 1, got {tolerance!r}.")
    check_confidence(confidence)
    if max_steps is not None and max_steps < 1:
        raise MisuseError(f"expected max_steps of at least 1, got {max_steps!r}.")
    begin = time.perf_counter()
    size = operator.shape[0]
    # A bound is wider than its gap by 1 / (1 - 2 gap), for the range is an estimate too: see `_bounds`.
    gap = tolerance / (1 + 2 * tolerance)
    steps = steps_for_gap(size, gap, confidence)
    steps = steps if max_steps is None else min(steps, max_steps)
    process = random_run(operator, torch.Generator().manual_seed(seed), steps)
    return extremes_of(process, ends_of(process), tolerance=tolerance, confidence=confidence, begin=begin)


@dataclass(frozen=True)
class Ends:
    """The outermost Ritz pairs of a Krylov run, with fresh products: row 0 the smallest, row 1 the largest."""

    values: tuple[float, float]
    vectors: Tensor
    """(2, n), unit length."""
    products: Tensor
    """(2, n), A v, made anew and not taken from the Krylov run."""


def ends_of(process: Lanczos) -> Ends:
    """Return the outermost Ritz pairs; makes two products."""
    values, coefficients = process.ritz()
    vectors = process.ritz_vectors(coefficients[:, [0, -1]]).T.contiguous()
    return Ends((float(values[0]), float(values[-1])), vectors, fresh_products(process.operator, vectors))


def fresh_products(operator: MatrixVectorProduct, vectors: Tensor) -> Tensor:
    """Return A v for every row v of ``vectors`` (m, n), in the vectors' dtype."""
    return torch.stack([operator.matvec(vector.to(operator.dtype)).to(vector.dtype) for vector in vectors])


def extremes_of(
    process: Lanczos, ends: Ends, *, tolerance: float, confidence: float, begin: float
) -> ExtremeEigenvalues:
    """Return what the ends of a Krylov run from a random start tell."""
    smallest, largest = ends.values
    offsets = ends.products - ends.vectors * ends.vectors.new_tensor(ends.values)[:, None]
    residuals = torch.linalg.vector_norm(offsets, dim=1).tolist()
    scale = max(abs(smallest), abs(largest))
    unit = scale if process.invariant else largest - smallest
    margin = _margin(process, largest - smallest, scale, confidence)
    # What rounding, which the theory leaves out, may add: √n ε times the scale, or what the residuals show.
    rounding = math.sqrt(process.operator.shape[0]) * torch.finfo(process.operator.dtype).eps * scale
    if margin == 0:
        rounding = max(rounding, *residuals)
    return ExtremeEigenvalues(
        smallest=smallest,
        largest=largest,
        smallest_vector=ends.vectors[0],
        largest_vector=ends.vectors[1],
        smallest_residual=residuals[0],
        largest_residual=residuals[1],
        smallest_lower_bound=smallest - margin - rounding,
        largest_upper_bound=largest + margin + rounding,
        confidence=confidence,
        steps=process.steps,
        converged=margin <= max(tolerance * unit * (1 + 1e-9), rounding),
        seconds=time.perf_counter() - begin,
    )


def relative_gap(size: int, steps: int, confidence: float) -> float:
    """Return ε such that Ritz value - eigenvalue <= ε (λ_max - λ_min) at both ends together with ``confidence``.

    Kuczyński & Woźniakowski 1992 (doi 10.1137/0613066), theorem 4.2, for a start uniform on the sphere and exact
    arithmetic: P[θ_min - λ_min > ε (λ_max - λ_min)] <= 1.648 √n exp(-(2k - 1) √ε) after k steps. Each end may fail
    with half of 1 - confidence.
    """
    failure = (1 - confidence) / 2
    return (math.log(1.648 * math.sqrt(size) / failure) / (2 * steps - 1)) ** 2


def steps_for_gap(size: int, gap: float, confidence: float) -> int:
    """Return the least number of steps for which `relative_gap` is at most ``gap``; never more than n."""
    failure = (1 - confidence) / 2
    steps = math.ceil((1 + math.log(1.648 * math.sqrt(size) / failure) / math.sqrt(gap)) / 2)
    return min(steps, size)


def check_confidence(confidence: float) -> None:
    """Raise a MisuseError unless ``confidence`` is a probability below 1."""
    if not 0 < confidence < 1:
        raise MisuseError(f"expected a confidence between 0 and 1, got {confidence!r}.")


def _margin(process: Lanczos, spread: float, scale: float, confidence: float) -> float:
    """Return how far, in exact arithmetic, an end of the spectrum may lie beyond its Ritz value."""
    size = process.operator.shape[0]
    if process.steps == size:
        return 0.0
    gap = relative_gap(size, process.steps, confidence)
    # λ_max - λ_min <= (θ_max - θ_min) + 2 ε (λ_max - λ_min), since both ends are within ε of the range.
    margin = gap * spread / (1 - 2 * gap) if gap < 0.5 else math.inf
    if process.invariant:
        # Let A u = λ u. From VᵀA = T Vᵀ + β e wᵀ follows ‖(T - λ) Vᵀu‖ <= β, so that λ is within β / ‖Vᵀu‖ of a Ritz
        # value; and ‖Vᵀu‖ is at least the start's component along u, whose density is at most √(n / 2π).
        overlap = (1 - confidence) / 2 * math.sqrt(math.pi / (2 * size))
        margin = min(margin, (process.remainder + process.precision * scale) / overlap)
    return margin

"""Krylov runs on products that are cheaper than the operator's own, and the error of such runs.

With inexact products A V = V T + β v eᵀ + F. There is a symmetric E with ‖E‖ = ‖F‖ for which the run is an exact one of
A - E. Source: Davis, Kahan & Weinberger 1982, doi 10.1137/0719029. By Weyl's theorem no eigenvalue of A is further than
‖F‖ from one of A - E. Exact new products with random vectors of the Krylov space bound ‖F‖, rounding included. The
errors are assumed not to depend on the random start, as rounding errors are everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from convexlab.curvature.bounds import least_overlaps, margins
from convexlab.curvature.lanczos import Lanczos, random_run
from convexlab.linalg.operators import MatrixVectorProduct, SymmetricOperator
from convexlab.linalg.vectors import accumulation_dtype
from convexlab.objective.differences import CentralDifferences, GradientDifferences
from convexlab.objective.narrow import NarrowHessian
from convexlab.objective.products import HessianOperator

__all__ = ["SAMPLES", "SQUARED_STEPS", "Inexact", "cheapest_operator", "deviation", "error_of", "norm_of_deviation"]

Inexact = CentralDifferences | NarrowHessian
"""Operators with inexact products; `reference` has products that show the error."""

SAMPLES = 4
"""Exact products from which ‖F‖ is bounded."""
SQUARED_STEPS = 8
"""Steps with FᵀF that bound ‖F‖ more narrowly, each of two exact products. Of 100 columns by four spare digits of
confidence: at most 1.4 times ‖F‖, where `SAMPLES` vectors give some 50 times as much."""
# A run on cheap products is begun where one of them is off by at most this share of the tolerance. The bound on the
# error of some fifty products is about ten times the error of a single one. Then it takes a fifth of the tolerance.
_SHARE = 1 / 50
# Steps of the differences to try, times √ε. The first is where smooth networks have the least error.
_STEPS = (0.5, 1.0, 0.25)
# If a difference is off by this many times what is allowed, no other step is tried.
_FAR = 10
# Exact steps before the change: differences are compared along a vector of theirs, as H almost maps a random one to 0.
_EXACT_STEPS = 2


def cheapest_operator(process: Lanczos, tolerance: float) -> MatrixVectorProduct:
    """Return what a new Krylov run should go on with: differences of gradients, or its own operator if they are worse.

    Differences are compared with exact products, for which the run takes its first steps.

    Args:
        process: a run that has taken no step yet.
        tolerance: relative to the range of the spectrum.
    """
    operator = process.operator
    if not isinstance(operator, HessianOperator) or operator.exact or _too_coarse(operator, tolerance):
        return operator
    process.extend(_EXACT_STEPS)
    if process.exhausted:
        return operator
    differences = operator.differences()
    values, _ = process.ritz()
    allowed = _SHARE * tolerance * max(abs(values[0]), abs(values[-1]))
    for error in _errors(process, differences):
        if error <= allowed:
            return differences
        if error > _FAR * allowed:  # Kinks: no other step mends that.
            break
    return operator


def deviation(process: Lanczos, failure: float, seed: int = 0) -> float:
    """Return a bound on ‖F‖ that fails with probability ``failure``; makes `SAMPLES` products with the run's operator.

    ‖F‖ <= α √(2/π) max ‖F ω‖ over r standard normal vectors ω, with probability at least 1 - α^-r. Source: Halko,
    Martinsson & Tropp 2011, doi 10.1137/090771806, lemma 4.1.

    Args:
        process: a run whose operator makes exact products again.
        failure: probability.
        seed: of the random vectors.
    """
    generator, lengths = torch.Generator().manual_seed(seed), []
    for _ in range(SAMPLES):  # In turn, because each takes several vectors of size n.
        combination = torch.randn((process.steps, 1), generator=generator, dtype=torch.float64)
        product = process.multiply(process.combined(combination))
        lengths.append(float(torch.linalg.vector_norm(product - process.image(combination))))
    return math.exp(-math.log(failure) / SAMPLES) * math.sqrt(2 / math.pi) * max(lengths)


def norm_of_deviation(process: Lanczos, failure: float, seed: int = 0) -> float:
    """Return a narrower bound on ‖F‖ that fails with probability ``failure``, by a Krylov run with FᵀF (k, k).

    Its largest eigenvalue is ‖F‖², bounded as that of any operator (`bounds.margins`). It makes 2 `SQUARED_STEPS`
    products with the run's operator, or 2 k where that is less.

    Args:
        process: a run, not compressed, whose operator makes exact products again.
        failure: probability.
        seed: of the random start.
    """
    squared = _Squared(process)
    run = random_run(squared, torch.Generator().manual_seed(seed), SQUARED_STEPS)
    largest = float(run.ritz()[0][-1])
    if run.steps < squared.shape[0]:
        overlaps = least_overlaps(squared.shape[0], 1 - failure)
        largest += margins(*run.coefficients(), overlaps, precision=run.precision)[1]
    return math.sqrt(max(0.0, largest))


class _Squared(SymmetricOperator):
    """FᵀF for F = A V - (V T + β v eᵀ), with exact products of A."""

    def __init__(self, process: Lanczos) -> None:
        device = process.operator.device
        super().__init__(process.steps, dtype=accumulation_dtype(device), device=device)
        self._process = process

    def _multiply(self, v: Tensor) -> Tensor:
        process = self._process
        images = process.multiply(process.combined(v)) - process.image(v)
        # A is symmetric: FᵀW = Vᵀ(A W) - (V T + β v eᵀ)ᵀW.
        return process.coordinates(process.multiply(images)) - process.image_transposed(images)


def error_of(process: Lanczos, failure: float) -> float:
    """Return a bound on ‖F‖ of a run on `Inexact` products that fails with probability ``failure``.

    The run goes on with the products that show it, so that the values and residuals of its ends are from them.
    """
    operator = process.operator
    assert isinstance(operator, Inexact)
    process.operator = operator.reference()
    return norm_of_deviation(process, failure) if isinstance(operator, NarrowHessian) else deviation(process, failure)


def _too_coarse(operator: MatrixVectorProduct, tolerance: float) -> bool:
    """Return whether differences in the operator's precision are never accurate enough."""
    return _SHARE * tolerance < math.sqrt(torch.finfo(operator.dtype).eps) / 4


def _errors(process: Lanczos, differences: GradientDifferences) -> Iterator[float]:
    """Yield the error of a difference along the last basis vector whose product is known, for each step to try."""
    unit = torch.eye(process.steps, dtype=torch.float64)[:, -1:]
    vector, product = process.combined(unit)[0], process.image(unit)[0]
    for step in _STEPS:
        differences.step = step * torch.finfo(differences.dtype).eps ** 0.5
        difference = differences.matvec(vector.to(differences.dtype)).to(product.dtype)
        process.products += 1
        yield float(torch.linalg.vector_norm(difference - product))

"""Trace of a symmetric operator from products with random vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.curvature.density import standard_error
from convexlab.curvature.effort import Effort, Meter
from convexlab.errors import MisuseError, unknown_name
from convexlab.linalg.operators import MatrixVectorProduct, SymmetricOperator
from convexlab.linalg.vectors import accumulation_dtype

__all__ = ["TraceEstimate", "trace"]

Estimate = tuple[float, float, int]
"""Value, standard error, products."""


@dataclass(frozen=True)
class TraceEstimate:
    """An unbiased estimate of a trace."""

    value: float
    standard_error: float
    """Over the random vectors; NaN with fewer than two, 0 where the trace was computed exactly.

    For XTrace it is the authors' formula, which takes the leave-one-out estimates as uncorrelated. They are not: on
    test spectra the true error was 1 to 2 times as large.
    """
    effort: Effort


def trace(operator: MatrixVectorProduct, *, method: str = "hutch++", samples: int = 48, seed: int = 0) -> TraceEstimate:
    """Estimate the trace of a symmetric operator.

    Args:
        operator: anything with ``matvec``, ``shape``, ``dtype`` and ``device``.
        method: ``"hutchinson"`` (Hutchinson 1990, doi 10.1080/03610919008812866); ``"hutch++"`` (Meyer, Musco,
            Musco & Woodruff 2021, doi 10.1137/1.9781611976496.16, algorithm 1), which takes the part in a sketched
            range exactly; or ``"xtrace"`` (Epperly, Tropp & Webber 2024, doi 10.1137/23M1548323), which does so with
            every random vector in turn left out of the sketch and used for the rest.
        samples: products to make at most; Hutch++ spends a third on each of sketch, exact part and remainder, XTrace
            a half on each of sketch and exact part. XTrace takes the trace itself if n products are allowed.
        seed: of the random vectors.

    Raises:
        MisuseError: an unknown method, or too few samples for it.
    """
    if method not in _METHODS:
        raise unknown_name("trace method", method, _METHODS)
    least, estimate = _METHODS[method]
    if samples < least:
        raise MisuseError(f"expected at least {least} samples for {method!r}, got {samples!r}.")
    with Meter(operator) as meter:
        value, error, products = estimate(operator, samples, torch.Generator().manual_seed(seed))
        return TraceEstimate(value, error, meter.effort(products))


def _hutchinson(operator: MatrixVectorProduct, samples: int, generator: torch.Generator) -> Estimate:
    signs = _signs(operator, samples, generator)
    values = (signs * _multiply(operator, signs)).sum(dim=0).cpu()
    return float(values.mean()), standard_error(values), samples


def _hutch_plus_plus(operator: MatrixVectorProduct, samples: int, generator: torch.Generator) -> Estimate:
    third = min(samples // 3, operator.shape[0])
    basis, _ = torch.linalg.qr(_multiply(operator, _signs(operator, third, generator)))
    exact = (basis * _multiply(operator, basis)).sum()
    if third == operator.shape[0]:
        return float(exact), 0.0, 2 * third
    signs = _signs(operator, third, generator)
    rest = signs - basis @ (basis.T @ signs)
    values = (rest * _multiply(operator, rest)).sum(dim=0).cpu()
    return float(exact) + float(values.mean()), standard_error(values), 3 * third


def _xtrace(operator: MatrixVectorProduct, samples: int, generator: torch.Generator) -> Estimate:
    """Return the mean of the estimates tr_i with test vector ω_i left out of the sketch (algorithm 1.2).

    tr_i = tr(P_i A P_i) + (n - k + 1) v_iᵀA v_i / v_iᵀv_i, where P_i projects onto the range of A times the other k - 1
    test vectors and v_i = ω_i - P_i ω_i; the ratio is their normalisation for rotationally invariant test vectors
    (section 2.3). The error is the authors' too: ε² = Σ (tr_i - mean)² / (k (k - 1)).
    """
    size, count = operator.shape[0], samples // 2
    if size <= samples:
        identity = torch.eye(size, dtype=accumulation_dtype(operator.device), device=operator.device)
        return float(_multiply(operator, identity).trace()), 0.0, size
    vectors = _sphere(operator, count, generator)
    basis, triangle = torch.linalg.qr(_multiply(operator, vectors))
    inner = basis.T @ _multiply(operator, basis)
    # In the basis Q, P_i is I - s_i s_iᵀ and P_i ω_i is x_i.
    left_out = _left_out_directions(triangle, size)
    coordinates = basis.T @ vectors
    along = (left_out * coordinates).sum(dim=0)
    kept = coordinates - left_out * along
    exact = inner.trace() - (left_out * (inner @ left_out)).sum(dim=0)
    # v_iᵀA v_i, with ω_iᵀA Q = r_iᵀ, as A is symmetric, and ω_iᵀA ω_i = w_iᵀr_i, as A ω_i is in the range of Q.
    rest = ((coordinates - 2 * kept) * triangle + kept * (inner @ kept)).sum(dim=0)
    scale = (size - count + 1) / (size - kept.square().sum(dim=0))
    values = (exact + scale * rest).cpu()
    return float(values.mean()), standard_error(values), 2 * count


def _left_out_directions(triangle: Tensor, size: int) -> Tensor:
    """Return the columns s_i of R⁻ᵀ, normalised: Q s_i is orthogonal to every column of the sketch Q R but the i-th.

    A sketch of lower rank than width contains the range of A without any one column too. Every s_i that is orthogonal
    to the others up to rounding is then as good. So pivots are kept from zero by as much as rounding moves them.
    """
    precision = torch.finfo(triangle.dtype)
    noise = (math.sqrt(size) * precision.eps * triangle.abs().max()).clamp_min(precision.tiny)
    pivots = triangle.diagonal()
    safe = torch.where(pivots.abs() < noise, noise, pivots)
    # Columns scaled by the pivots: 1 on the diagonal, whatever the scale of A.
    factor = triangle + torch.diag(safe - pivots)
    columns: Tensor = torch.linalg.solve_triangular(factor.T, torch.diag(safe), upper=False)
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0)
    return columns / lengths


_METHODS: dict[str, tuple[int, Callable[[MatrixVectorProduct, int, torch.Generator], Estimate]]] = {
    "hutchinson": (1, _hutchinson),
    "hutch++": (3, _hutch_plus_plus),
    "xtrace": (2, _xtrace),
}


def _signs(operator: MatrixVectorProduct, count: int, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, (operator.shape[0], count), generator=generator) * 2 - 1
    return signs.to(device=operator.device, dtype=accumulation_dtype(operator.device))


def _sphere(operator: MatrixVectorProduct, count: int, generator: torch.Generator) -> Tensor:
    """Return columns distributed uniformly on the sphere of radius √n."""
    columns = torch.randn(operator.shape[0], count, generator=generator, dtype=torch.float64)
    columns *= math.sqrt(operator.shape[0]) / torch.linalg.vector_norm(columns, dim=0)
    return columns.to(device=operator.device, dtype=accumulation_dtype(operator.device))


def _multiply(operator: MatrixVectorProduct, matrix: Tensor) -> Tensor:
    """Return A times a matrix (n, m): at once if the operator can, as it may build a graph once for all columns."""
    if isinstance(operator, SymmetricOperator):
        return operator.matmat(matrix.to(operator.dtype)).to(matrix.dtype)
    columns = [operator.matvec(column.to(operator.dtype)).to(matrix.dtype) for column in matrix.unbind(dim=1)]
    return torch.stack(columns, dim=1)

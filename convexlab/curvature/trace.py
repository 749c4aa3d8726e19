"""Trace of a symmetric operator from products with random vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.curvature.density import standard_error
from convexlab.errors import MisuseError, unknown_name
from convexlab.operators import MatrixVectorProduct
from convexlab.parameters import accumulation_dtype

__all__ = ["TraceEstimate", "trace"]


@dataclass(frozen=True)
class TraceEstimate:
    """An unbiased estimate of a trace."""

    value: float
    standard_error: float
    """Over the random vectors; NaN with fewer than two, 0 where the trace was computed exactly."""
    products: int
    """Products made."""


def trace(operator: MatrixVectorProduct, *, method: str = "hutch++", samples: int = 48, seed: int = 0) -> TraceEstimate:
    """Estimate the trace of a symmetric operator.

    Args:
        operator: anything with ``matvec``, ``shape``, ``dtype`` and ``device``.
        method: ``"hutchinson"`` (Hutchinson 1990, doi 10.1080/03610919008812866) or ``"hutch++"`` (Meyer, Musco,
            Musco & Woodruff 2021, doi 10.1137/1.9781611976496.16, algorithm 1), which takes the part in a sketched
            range exactly.
        samples: products to make; Hutch++ spends a third on each of sketch, exact part and remainder.
        seed: of the random signs.

    Raises:
        MisuseError: an unknown method, or too few samples for it.
    """
    if method not in _METHODS:
        raise unknown_name("trace method", method, _METHODS)
    least, estimate = _METHODS[method]
    if samples < least:
        raise MisuseError(f"expected at least {least} samples for {method!r}, got {samples!r}.")
    return estimate(operator, samples, torch.Generator().manual_seed(seed))


def _hutchinson(operator: MatrixVectorProduct, samples: int, generator: torch.Generator) -> TraceEstimate:
    signs = _signs(operator, samples, generator)
    values = (signs * _multiply(operator, signs)).sum(dim=0).cpu()
    return TraceEstimate(float(values.mean()), standard_error(values), samples)


def _hutch_plus_plus(operator: MatrixVectorProduct, samples: int, generator: torch.Generator) -> TraceEstimate:
    third = min(samples // 3, operator.shape[0])
    basis, _ = torch.linalg.qr(_multiply(operator, _signs(operator, third, generator)))
    exact = (basis * _multiply(operator, basis)).sum()
    if third == operator.shape[0]:
        return TraceEstimate(float(exact), 0.0, 2 * third)
    signs = _signs(operator, third, generator)
    rest = signs - basis @ (basis.T @ signs)
    values = (rest * _multiply(operator, rest)).sum(dim=0).cpu()
    return TraceEstimate(float(exact) + float(values.mean()), standard_error(values), 3 * third)


_METHODS: dict[str, tuple[int, Callable[[MatrixVectorProduct, int, torch.Generator], TraceEstimate]]] = {
    "hutchinson": (1, _hutchinson),
    "hutch++": (3, _hutch_plus_plus),
}


def _signs(operator: MatrixVectorProduct, count: int, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, (operator.shape[0], count), generator=generator) * 2 - 1
    return signs.to(device=operator.device, dtype=accumulation_dtype(operator.device))


def _multiply(operator: MatrixVectorProduct, matrix: Tensor) -> Tensor:
    """Return A times a matrix (n, m), column by column: a column is the least that every operator takes."""
    columns = [operator.matvec(column.to(operator.dtype)).to(matrix.dtype) for column in matrix.unbind(dim=1)]
    return torch.stack(columns, dim=1)

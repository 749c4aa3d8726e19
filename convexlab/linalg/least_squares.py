"""A Jacobian by vector-Jacobian products, and the damped least-squares problem that it makes.

Notation: r residuals (m,), J their Jacobian (m, n), λ damping, d step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["NormalEquations", "dense_bytes", "dense_words", "jacobian_by_products"]

# Products that are made at once.
_CHUNK = 32
# Matrices that are there at once. While J is made: itself, and the derivatives that it is summed from (3.5 in all, row
# by row in float64). Of the normal equations: themselves, damped, and factorised.
_JACOBIANS, _GRAMS = 4, 3


def dense_bytes(residuals: int, parameters: int) -> int:
    """Return the bytes that J (m, n), what it is made from and the normal equations take at most, in float64."""
    entries, least = residuals * parameters, min(residuals, parameters)
    return 8 * max(_JACOBIANS * entries, entries + _GRAMS * least**2)


def dense_words(residuals: int, parameters: int) -> str:
    """Return what takes `dense_bytes`, in words."""
    return f"the Jacobian of {residuals:,} residuals in {parameters:,} parameters, with its normal equations,"


def jacobian_by_products(residuals: Tensor, parameters: Sequence[Tensor], out: Tensor) -> None:
    """Write J into ``out`` (m, n): a product of its transpose with a unit vector a row, some at a time.

    It costs as much as m backward passes. Operations that torch cannot batch are differentiated row by row.

    Args:
        residuals: r (m,), with its graph.
        parameters: of n numbers in all; one that no residual depends on has zeros.
        out: in any floating dtype.
    """
    out.zero_()
    used = [parameter.requires_grad for parameter in parameters]
    inputs = [parameter for parameter, needed in zip(parameters, used, strict=True) if needed]
    if not residuals.requires_grad or not inputs:
        return
    columns = out.split([parameter.numel() for parameter in parameters], dim=1)
    targets = [part for part, needed in zip(columns, used, strict=True) if needed]
    size, batched = len(residuals), True
    for start in range(0, size, _CHUNK):
        rows = slice(start, min(start + _CHUNK, size))
        units = torch.zeros(rows.stop - start, size, dtype=residuals.dtype, device=residuals.device)
        units.diagonal(start).fill_(1.0)
        blocks = _products(residuals, inputs, units) if batched else None
        if blocks is None:
            batched = False
            each = [_differentiated(residuals, inputs, unit, batched=False) for unit in units]
            blocks = [_stacked(parts) for parts in zip(*each, strict=True)]
        for target, block in zip(targets, blocks, strict=True):
            if block is not None:
                target[rows].copy_(block.reshape(len(units), -1))


def _products(residuals: Tensor, inputs: list[Tensor], units: Tensor) -> list[Tensor | None] | None:
    """Return the products with some vectors; None where torch cannot batch them."""
    try:
        return _differentiated(residuals, inputs, units, batched=True)
    except RuntimeError as error:
        if "vmap" not in str(error) and "batching rule" not in str(error).lower():
            raise
        return None


def _differentiated(residuals: Tensor, inputs: list[Tensor], vectors: Tensor, *, batched: bool) -> list[Tensor | None]:
    return list(
        torch.autograd.grad(residuals, inputs, vectors, retain_graph=True, allow_unused=True, is_grads_batched=batched)
    )


def _stacked(rows: Sequence[Tensor | None]) -> Tensor | None:
    known = [row for row in rows if row is not None]
    return torch.stack(known) if known else None


class NormalEquations:
    """(JᵀJ + λI) d = -Jᵀr, or the same by (JJᵀ + λI) z = r, d = -Jᵀz where residuals are fewer than parameters.

    Source: Madsen, Nielsen and Tingleff 2004, "Methods for non-linear least squares problems", equation 3.13; the dual
    is its identity (JᵀJ + λI)⁻¹Jᵀ = Jᵀ(JJᵀ + λI)⁻¹.

    Args:
        residuals: r (m,).
        jacobian: J (m, n), in the dtype of sums.
    """

    def __init__(self, residuals: Tensor, jacobian: Tensor) -> None:
        """Form the smaller of the two matrices."""
        self._jacobian = jacobian
        self.dual = jacobian.shape[0] < jacobian.shape[1]
        self.descent = torch.mv(jacobian.T, residuals).neg_()
        """-Jᵀr, (n,): half of the negative gradient of the sum of squares."""
        self._right = residuals if self.dual else self.descent
        self._gram = jacobian @ jacobian.T if self.dual else jacobian.T @ jacobian

    def largest(self) -> float:
        """Return the largest entry on the diagonal of JᵀJ, the scale of λ."""
        if self.dual:
            return float(torch.linalg.vector_norm(self._jacobian, dim=0).max()) ** 2
        return float(self._gram.diagonal().max())

    def solve(self, damping: float) -> Tensor | None:
        """Return d (n,); None where the damped matrix is not positive definite to its rounding."""
        matrix = self._gram.clone()
        matrix.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            return None
        solved = torch.cholesky_solve(self._right[:, None], factor)[:, 0]
        return torch.mv(self._jacobian.T, solved).neg_() if self.dual else solved

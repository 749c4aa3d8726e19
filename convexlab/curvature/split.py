"""The two parts of a curvature: the loss bending in the model's output, and the output bending in the parameters.

H = JᵀH_LJ + Σ_k (∂L/∂f_k) ∇²f_k, f the model's output (Schraudolph 2002, doi 10.1162/08997660260028683). For a loss
that is convex in f the first part, the Gauss-Newton matrix, is never negative: negative curvature is the second's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.curvature.effort import Effort, Meter
from convexlab.linalg.vectors import unit_columns
from convexlab.objective import Objective
from convexlab.objective.products import GaussNewtonOperator, HessianOperator, ObjectiveOperator, ResidualOperator

__all__ = ["CurvatureSplit", "curvature_split"]


@dataclass(frozen=True)
class CurvatureSplit:
    """Rayleigh quotients of the Hessian and of its two parts: hessian = gauss_newton + residual, up to rounding.

    Shape () for a vector and (k,) for k of them; float64, on the CPU.
    """

    hessian: Tensor
    """vᵀHv."""
    gauss_newton: Tensor
    """vᵀGv, G the generalised Gauss-Newton matrix; never negative if the loss is convex in the model's output."""
    residual: Tensor
    """vᵀRv, R = Σ_k (∂L/∂f_k) ∇²f_k; zero for a model that is linear in its parameters, or that fits without error."""
    effort: Effort

    @property
    def mismatch(self) -> Tensor:
        """|vᵀHv - vᵀGv - vᵀRv|: the products are independent, so this is a draw of their rounding error."""
        return (self.hessian - self.gauss_newton - self.residual).abs()


def curvature_split(objective: Objective, vectors: Tensor) -> CurvatureSplit:
    """Return vᵀHv, vᵀGv and vᵀRv at the model's present parameters for unit vectors v, such as a verdict's witness.

    Costs two Hessian products and a Gauss-Newton product a vector, 5⅓ gradient equivalents.

    Args:
        objective: made from a model and a criterion.
        vectors: (n,) or (n, k), in columns; each is normalised.

    Raises:
        MisuseError: another shape, a vector that is zero or not finite, or an objective made by ``from_batch_loss``.
    """
    objective.require_criterion("the split of a curvature")
    columns = unit_columns(vectors, objective.size, objective.device)
    kinds = (HessianOperator, GaussNewtonOperator, ResidualOperator)
    with Meter(objective) as meter:
        # Each makes one product: graphs that were kept would not be used again.
        operators = [kind(objective, keep_graphs=False) for kind in kinds]
        operators[0].prove()
        parts = [_quotients(operator, columns) for operator in operators]
        effort = meter.effort(len(kinds) * columns.shape[1])
    hessian, gauss_newton, residual = (part.reshape(vectors.shape[1:]) for part in parts)
    return CurvatureSplit(hessian, gauss_newton, residual, effort)


def _quotients(operator: ObjectiveOperator, columns: Tensor) -> Tensor:
    """Return vᵀA v / vᵀv (k,) for the columns v of (n, k), as the operator rounds them."""
    taken = columns.to(operator.dtype)
    products = (operator @ taken).to(columns.dtype)
    taken = taken.to(columns.dtype)
    quotients: Tensor = (taken * products).sum(dim=0) / taken.square().sum(dim=0)
    return quotients.cpu().to(torch.float64)

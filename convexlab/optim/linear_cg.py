"""Linear conjugate gradients, truncated: the inner iteration of Newton-CG and Gauss-Newton-CG.

Notation: A the curvature matrix, P ≈ A⁻¹ symmetric positive definite; p the iterate, r = Ap + g, z = Pr, d direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.linalg.vectors import dot
from convexlab.optim.preconditioners import Preconditioner, precondition

__all__ = ["Truncated", "truncated_cg"]


@dataclass(frozen=True)
class Truncated:
    """Where the iteration ended."""

    vector: Tensor
    """p, (n,), a direction of descent; zero if the first product had no curvature or was not finite."""
    decrease: float
    """-gᵀp - ½ pᵀ(A + λP⁻¹)p, without the step along negative curvature."""
    damping: float
    """λ."""
    products: int
    """Products with A."""
    negative_curvature: bool
    """Whether dᵀAd < 0 ended it."""


def truncated_cg(
    product: Callable[[Tensor], Tensor],
    gradient: Tensor,
    preconditioner: Preconditioner | None,
    *,
    tolerance: float,
    max_products: int,
    error: float,
    damping: Callable[[float], float] = lambda quotient: 0.0,
) -> Truncated:
    """Return an approximate minimiser p of gᵀp + ½ pᵀ(A + λP⁻¹)p.

    The iteration is that of Nocedal and Wright (2006), algorithm 7.1, preconditioned. It ends where the last product
    lowered the quadratic by less than ``tolerance`` times the mean of all products (Nash and Sofer 1990, Oper. Res.
    Lett. 9, doi 10.1016/0167-6377(90)90065-D, who have 0.5), which no scale of the loss and no preconditioner changes.

    Where dᵀAd < 0, p goes on along d by rᵀz / |dᵀAd|, as for positive curvature of that size, and the iteration ends.
    Algorithm 7.1 stops at p there, and makes no use of negative curvature.

    λP⁻¹ needs no P⁻¹: P⁻¹d follows from the recurrence of d.

    Args:
        product: v to Av.
        gradient: g, (n,), with gᵀPg > 0.
        preconditioner: P; None is the identity.
        tolerance: see above.
        max_products: at most so many, at least one.
        error: relative error of a product; curvature along d that is smaller than this, beside the largest seen, counts
            as zero, and ends the iteration.
        damping: λ from the first direction's dᵀAd / dᵀP⁻¹d.
    """
    p = torch.zeros_like(gradient)
    r, z = gradient, precondition(preconditioner, gradient)
    d, dual = -z, -r  # dual = P⁻¹d
    r_z = dot(r, z).item()
    decrease = largest = strength = 0.0
    for count in range(1, max_products + 1):
        a_d = product(d)
        d_a_d, d_d = torch.stack([dot(d, a_d), dot(d, dual)]).tolist()
        if count == 1:
            strength = damping(d_a_d / d_d)
        if strength:
            a_d, d_a_d = a_d + dual * strength, d_a_d + strength * d_d
        largest = max(largest, abs(d_a_d) / d_d)
        flat = not abs(d_a_d) > error * largest * d_d  # True for NaN as well.
        if flat:
            break
        if d_a_d < 0.0:
            return Truncated(p - d * (r_z / d_a_d), decrease, strength, count, True)
        alpha = r_z / d_a_d
        p, r = p + d * alpha, r + a_d * alpha
        gain = 0.5 * alpha * r_z
        decrease += gain
        if count * gain <= tolerance * decrease:
            break
        z = precondition(preconditioner, r)
        new_r_z = dot(r, z).item()
        if not 0.0 < new_r_z < math.inf:
            break
        d, dual = d * (new_r_z / r_z) - z, dual * (new_r_z / r_z) - r
        r_z = new_r_z
    return Truncated(p, decrease, strength, count, False)

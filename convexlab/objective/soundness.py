"""Whether second derivatives are those of the loss: every bound and every verdict rests on that.

Torch differentiates twice what was written to be differentiated once. Some operations lose a part of the second
derivative without an error. Examples are custom functions whose backward pass is a constant to torch, values that were
detached, and fused operations with a wrong formula. A bound on the eigenvalues of such a "Hessian" is not valid. So a
product is compared with differences of gradients, which take no second derivative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from convexlab.linalg.vectors import dot, flatten, norm, scale_of, unflatten
from convexlab.objective.differentiation import differentiate
from convexlab.objective.noise import coarsest_eps

__all__ = [
    "CHECKED_ROWS",
    "CHECK_COST",
    "Comparison",
    "ProductCheck",
    "compare",
    "compare_second_derivatives",
    "differences_of",
    "nearest_pair",
    "random_unit",
]

CHECKED_ROWS = 32
"""Examples at most on which products are checked."""
CHECK_COST = 6.0
"""Gradient equivalents over these at most where the loss rounds to float64: two products and one or two gradients."""

# Moves to try, relative to the length of the parameters. Where a function rounds to float64, the first is right for
# nearly every one: it crosses few kinks, and rounding is far below.
_FINE_MOVES = (1e-7, 1e-8)
_MOVES = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
# Relative difference at which a product counts as confirmed, and nothing more is evaluated.
_CONFIRMED = 1e-4
# A product is refused where it is further from a difference than this many times what differences are from one another.
_CONTRAST = 4.0
# Where a function rounds more finely than this, two one-sided differences tell what all would: only kinks keep them
# apart, and larger ones cross more.
_FINE = 1e-12
# Rounding of a gradient, in ε of its length, that is allowed for, up to a relative error of a difference.
_ROUNDING = 100.0
_ROUNDED = 1e-3


@dataclass(frozen=True)
class Comparison:
    """A derivative along a direction beside differences of what it is the derivative of."""

    mismatch: float
    """Distance of derivative and difference, over the length of the derivative."""
    resolution: float
    """How well differences with neighbouring steps agree, likewise; 0 where the first one confirmed the derivative."""
    evaluations: int
    """Evaluations of the function whose differences were taken."""

    @property
    def confirmed(self) -> bool:
        """Whether a difference is the derivative, to `_CONFIRMED` and rounding."""
        return self.resolution == 0

    @property
    def refuted(self) -> bool:
        """Whether differences agree with one another, and not with the derivative."""
        return not self.confirmed and self.mismatch > max(_CONFIRMED, _CONTRAST * self.resolution)


@dataclass(frozen=True)
class ProductCheck:
    """What a check of products has shown; lengths are relative."""

    comparison: Comparison
    """Comparison of H u with differences of gradients, for a random direction u."""
    asymmetry: float
    """|uᵀHv - vᵀHu| √n / max(‖Hu‖, ‖Hv‖) for another random direction v: about ‖H - Hᵀ‖ / ‖H‖ (Frobenius)."""

    @property
    def refuted(self) -> bool:
        """Whether these are no products of the second derivative."""
        return self.comparison.refuted or self.asymmetry > max(_CONFIRMED, _CONTRAST * self.comparison.resolution)

    def __str__(self) -> str:
        """Return the relative errors in words."""
        return (
            f"H u is {self.comparison.mismatch:.2%} off differences of gradients, which agree with one another to "
            f"{self.comparison.resolution:.1e}; H is {self.asymmetry:.2%} asymmetric"
        )


def random_unit(like: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Return a random direction of length 1 in the shapes, the dtype and on the device of ``like``."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(sum(map(torch.numel, like)), generator=generator, dtype=torch.float64)
    return unflatten((flat / norm(flat)).to(like[0]), like)


def compare_second_derivatives(scalar: Callable[[list[Tensor]], Tensor], leaves: list[Tensor]) -> ProductCheck:
    """Check products of the second derivative of ``scalar`` at ``leaves``.

    Args:
        scalar: a function of such tensors, (), differentiable.
        leaves: where, in the dtype to check in; they require gradients.
    """
    u, v = random_unit(leaves, 0), random_unit(leaves, 1)
    with sdpa_kernel(SDPBackend.MATH):
        gradient = differentiate([scalar(leaves)], leaves, create_graph=True)
        along_u = flatten(differentiate(gradient, leaves, u, retain_graph=True)).detach()
        along_v = flatten(differentiate(gradient, leaves, v)).detach()
        slope = flatten(gradient).detach()
        del gradient

        def gradient_at(step: float) -> Tensor:
            moved = [(leaf.detach() + step * part).requires_grad_() for leaf, part in zip(leaves, u, strict=True)]
            return flatten(differentiate([scalar(moved)], moved)).detach()

        eps = coarsest_eps(lambda: scalar(leaves))
        comparison = compare(along_u, gradient_at, slope, scale=scale_of(leaves), eps=eps)
    difference = float((dot(flatten(u), along_v) - dot(flatten(v), along_u)).abs())
    length = max(float(norm(along_u)), float(norm(along_v)))
    floor = _ROUNDING * eps * float(norm(slope)) / scale_of(leaves)
    asymmetry = max(0.0, difference - floor) * math.sqrt(len(slope)) / length if length > 0 else 0.0
    return ProductCheck(comparison, asymmetry)


def compare(derivative: Tensor, at: Callable[[float], Tensor], here: Tensor, *, scale: float, eps: float) -> Comparison:
    """Compare a derivative along a direction with differences of the function, step after step.

    It ends with the first step that confirms the derivative. If none does, it takes the difference that agrees best
    with that of the next larger step. Noise makes small steps disagree, and kinks and curvature make large ones.
    Differences are one-sided where the function rounds finely. Otherwise they are central, and begin with the step that
    balances rounding and curvature, ε^⅓ (Gill, Murray & Wright 1981, section 8.6).

    Args:
        derivative: (m,).
        at: maps a step along the direction to the function there, (m,).
        here: the function without a step, (m,).
        scale: of the steps, the length of where the function is taken.
        eps: relative rounding inside the function.
    """
    fine, length, size = eps < _FINE, float(norm(derivative)), float(norm(here))
    differences: dict[float, Tensor] = {}
    for move in _FINE_MOVES if fine else sorted(_moves(eps), key=lambda move: abs(math.log(move / eps ** (1 / 3)))):
        step = move * scale
        difference = differences[move] = (at(step) - here) / step if fine else _central(at, step)
        mismatch = float(norm(difference - derivative))
        allowed = _CONFIRMED * length + min(_ROUNDING * eps * size / step, _ROUNDED * length)
        if mismatch <= allowed:
            resolution = 0.0
            break
    else:
        best, spread = nearest_pair(differences)
        length = max(length, float(norm(differences[best])))
        mismatch = float(norm(differences[best] - derivative))
        resolution = max(spread / length, eps)
    return Comparison(mismatch / length if length else 0.0, resolution, (1 if fine else 2) * len(differences))


def differences_of(at: Callable[[float], Tensor], scale: float, eps: float) -> dict[float, Tensor]:
    """Return central differences (m,) of a function along a direction, by the step relative to ``scale``.

    No step is below ``eps``, the relative rounding inside the function.
    """
    return {move: _central(at, move * scale) for move in _moves(eps)}


def nearest_pair(differences: dict[float, Tensor]) -> tuple[float, float]:
    """Return the step whose difference is nearest to that of the next larger one, and how near it is."""
    steps = itertools.pairwise(sorted(differences))
    spreads = {step: float(norm(differences[step] - differences[larger])) for step, larger in steps}
    best = min(spreads, key=lambda step: spreads[step])
    return best, spreads[best]


def _moves(eps: float) -> list[float]:
    return [move for move in _MOVES if move >= eps]


def _central(at: Callable[[float], Tensor], step: float) -> Tensor:
    return (at(step) - at(-step)) / (2 * step)

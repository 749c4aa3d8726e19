"""The conjugate gradient update parameters β, each from its source, in preconditioned form.

Notation: g gradient, d direction, y = g₊ - g, z = Pg with P ≈ H⁻¹ symmetric positive definite; ₊ marks the new point.
With P = I these are the formulas as published. The next direction is d₊ = -z₊ + βd.

The line search matters more than β, on the mean of three problems (``benchmarks/second_phase_choices.py``). With one
search, the five β end within 32 % of one another. With one β, the four searches end within a factor of 2.7.
"polak-ribiere+" is the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convexlab.errors import unknown_name

__all__ = ["DIVIDE_BY_CURVATURE", "Products", "beta_formula", "beta_names"]

DIVIDE_BY_CURVATURE = frozenset({"hestenes-stiefel", "dai-yuan", "hager-zhang"})
"""The formulas that mean something only if dᵀy > 0."""

_ETA = 0.4  # Hager and Zhang (2013).


@dataclass(frozen=True, slots=True)
class Products:
    """The inner products that the formulas are made of."""

    g_z: float
    """gᵀPg at the previous point."""
    new_g_z: float
    """g₊ᵀPg₊."""
    y_new_z: float
    """yᵀPg₊."""
    y_z: float
    """yᵀPy."""
    d_y: float
    """dᵀy."""
    d_new_g: float
    """dᵀg₊."""
    d_g: float
    """dᵀg, negative."""
    d_d: float
    """dᵀP⁻¹d."""


def fletcher_reeves(p: Products) -> float:
    """Return g₊ᵀz₊ / gᵀz (Fletcher and Reeves 1964, The Computer Journal 7)."""
    return p.new_g_z / p.g_z


def polak_ribiere_plus(p: Products) -> float:
    """Return max(0, yᵀz₊ / gᵀz) (Polak and Ribière 1969; truncated by Gilbert and Nocedal 1992, SIAM J. Optim. 2)."""
    return max(0.0, p.y_new_z / p.g_z)


def hestenes_stiefel(p: Products) -> float:
    """Return yᵀz₊ / dᵀy (Hestenes and Stiefel 1952, J. Res. NBS 49)."""
    return p.y_new_z / p.d_y


def dai_yuan(p: Products) -> float:
    """Return g₊ᵀz₊ / dᵀy (Dai and Yuan 1999, SIAM J. Optim. 10)."""
    return p.new_g_z / p.d_y


def hager_zhang(p: Products) -> float:
    """Return (yᵀz₊ - 2 yᵀPy dᵀg₊ / dᵀy) / dᵀy, not below 0.4 dᵀg / dᵀP⁻¹d (Hager and Zhang 2005, SIAM J. Optim. 16).

    With it g₊ᵀd₊ ≤ -7/8 g₊ᵀz₊ whatever the line search. The bound from below is that of their limited-memory paper
    (2013, SIAM J. Optim. 23), since that of 2005, -1 / (‖d‖ min(0.01, ‖g‖)), changes with the scale of the loss.
    """
    beta = (p.y_new_z - 2.0 * p.y_z * (p.d_new_g / p.d_y)) / p.d_y
    return max(beta, _ETA * p.d_g / p.d_d)


_FORMULAS: dict[str, Callable[[Products], float]] = {
    "fletcher-reeves": fletcher_reeves,
    "polak-ribiere+": polak_ribiere_plus,
    "hestenes-stiefel": hestenes_stiefel,
    "dai-yuan": dai_yuan,
    "hager-zhang": hager_zhang,
}


def beta_names() -> tuple[str, ...]:
    """Return the names that `beta_formula` knows."""
    return tuple(_FORMULAS)


def beta_formula(name: str) -> Callable[[Products], float]:
    """Return the formula of that name, a function of `Products`.

    Raises:
        MisuseError: no such name.
    """
    if name not in _FORMULAS:
        raise unknown_name("beta", name, _FORMULAS)
    return _FORMULAS[name]

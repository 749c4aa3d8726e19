"""How far a spectrum may reach beyond the Ritz values of a Krylov run whose start was drawn at random.

The basis vectors are v_{j+1} = p_j(A) v_1 with the Lanczos polynomials p_0, ..., p_k. For a unit eigenvector u of A
with eigenvalue λ, uᵀv_{j+1} = p_j(λ) uᵀv_1. The basis is orthonormal, so that (uᵀv_1)² Σ p_j(λ)² <= 1. A start uniform
on the sphere has |uᵀv_1| <= δ with a small known chance. In all other cases λ is no further out than the point where Σ
p_j(λ)² = 1/δ². Source: van Dorsselaer, Hochstenbach & van der Vorst 2000, doi 10.1137/S0895479800366859, section 2.
They take p_k alone; the sum, the inverse of the Christoffel function, is larger. The chance is taken once, for all
steps: a run may be looked at after every step, and stop.

Before the run: on the Ritz values a Chebyshev polynomial of degree k - 1 is at most 1. So after k steps the margin
solves T_{k-1}(1 + 2 margin / range) = 1/δ or is smaller, much as Kuczyński & Woźniakowski (1992) have it. The margins
of a run are narrower, because the p_j adapt to the spectrum.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh_tridiagonal
from scipy.optimize import brentq

from convexlab.errors import MisuseError

__all__ = ["check_confidence", "least_overlaps", "margins", "steps_for"]

Array = NDArray[np.float64]

# A polynomial is scaled down when it passes this, long before it overflows.
_LARGE = 1e100
_LOWER_SHARE = 0.75
# A margin is found to this relative accuracy, and rounded up by it.
_ACCURACY = 1e-6


def check_confidence(confidence: float) -> None:
    """Raise a MisuseError unless ``confidence`` is a probability below 1."""
    if not 0 < confidence < 1:
        raise MisuseError(f"expected a confidence between 0 and 1, got {confidence!r}.")


def least_overlaps(size: int, confidence: float) -> tuple[float, float]:
    """Return δ for the lower and for the upper end: with ``confidence`` the start's parts along both exceed them.

    The part along a given unit vector of n dimensions is within ±δ with a probability of at most δ √(2n / π). Three
    quarters of the probability of failure are the lower end's, because that end of a Hessian takes longer to resolve.
    """
    chance = (1 - confidence) * math.sqrt(math.pi / (2 * size))
    return _LOWER_SHARE * chance, (1 - _LOWER_SHARE) * chance


def steps_for(size: int, tolerance: float, confidence: float) -> int:
    """Return the steps after which both margins are within ``tolerance`` times the range, whatever the spectrum.

    By the Chebyshev polynomial; never more than n. The `margins` of a run may allow to stop earlier.
    """
    degree = math.acosh(1 / min(least_overlaps(size, confidence))) / math.acosh(1 + 2 * tolerance)
    return min(1 + math.ceil(degree), size)


def margins(
    diagonal: Array, off_diagonal: Array, overlaps: tuple[float, float], *, precision: float
) -> tuple[float, float]:
    """Return how far the spectrum may reach below the smallest and above the largest Ritz value.

    Args:
        diagonal: (k,) of the tridiagonal matrix T.
        off_diagonal: (k,) of T; the last entry is the length of what A maps out of the Krylov space.
        overlaps: least parts of the start along the lowest and the highest eigenvector, see `least_overlaps`.
        precision: ε of the basis; no coupling is taken to be smaller than that, relative to T.
    """
    scale = float(np.max(np.abs(diagonal) + off_diagonal))
    if scale == 0:
        return 0.0, 0.0
    # In units of T and mirrored, the lower end is an upper end too.
    upper, couplings = diagonal / scale, np.maximum(off_diagonal / scale, precision)
    return scale * _margin(-upper, couplings, overlaps[0]), scale * _margin(upper, couplings, overlaps[1])


def _margin(diagonal: Array, off_diagonal: Array, overlap: float) -> float:
    """Return the margin above the largest Ritz value of a T of unit scale."""
    last = len(diagonal) - 1
    edge = float(eigvalsh_tridiagonal(diagonal, off_diagonal[:-1], select="i", select_range=(last, last))[0])
    level = -math.log(overlap)

    def excess(log_distance: float) -> float:
        return _log_length(diagonal, off_diagonal, edge + math.exp(log_distance)) - level

    # Below ε the edge itself is not known. Far out p_k alone is about (distance / coupling)^k.
    least, most = math.log(np.finfo(np.float64).eps), level / len(diagonal) + 1
    while excess(most) < 0:
        most += 1
    return math.exp(brentq(excess, least, most, xtol=_ACCURACY) + _ACCURACY if excess(least) < 0 else least)


def _log_length(diagonal: Array, off_diagonal: Array, point: float) -> float:
    """Return ½ log Σ p_j(point)² over j = 0, ..., k, for a point beyond all Ritz values, where no p_j changes sign."""
    before, here, total, log_unit, coupling = 0.0, 1.0, 1.0, 0.0, 0.0
    for centre, next_coupling in zip(diagonal.tolist(), off_diagonal.tolist(), strict=True):
        before, here = here, ((point - centre) * here - coupling * before) / next_coupling
        coupling = next_coupling
        if here > _LARGE:
            before, total, log_unit, here = before / here, total / here / here, log_unit + math.log(here), 1.0
        total += here * here
    return log_unit + math.log(total) / 2

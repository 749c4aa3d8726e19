"""Gauss-Radau quadrature from a Krylov run: between which two numbers a distribution function lies.

A run from v sees the measure that puts (uᵀv)² at every eigenvalue, u its unit eigenvector. Consider the Gauss-Radau
rule with a node at t, and all measures with the same coefficients of T. None has less mass below t than the rule, and
none has more mass up to and including t. The inequalities are by Chebyshev, Markov and Stieltjes (Szegő, "Orthogonal
Polynomials", section 3.41), the rule by Golub (1973, doi 10.1137/1015032, section 7).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal

__all__ = ["share_below"]

Array = NDArray[np.float64]

# Entries beyond this many times T would cost its eigenvalues their digits.
_FAR = 1e8


def share_below(diagonal: Array, off_diagonal: Array, threshold: float) -> tuple[float, float]:
    """Return the least and the most that the measure of a run may have below ``threshold``.

    Args:
        diagonal: (k,) of the tridiagonal matrix T.
        off_diagonal: (k,) of T; the last entry leads out of the Krylov space, and is 0 where there is nothing beyond.
        threshold: t.
    """
    scale = float(np.max(np.abs(diagonal) + np.abs(off_diagonal)))
    if scale == 0:
        return (0.0, 0.0) if threshold <= 0 else (1.0, 1.0)
    values, vectors = eigh_tridiagonal(diagonal, off_diagonal[:-1])
    leading = float(off_diagonal[-1])
    if leading == 0:
        mass = min(1.0, float(np.sum(vectors[0, values < threshold] ** 2)))
        return mass, mass
    # The last diagonal entry that makes the threshold an eigenvalue.
    distances = values - threshold
    near = np.abs(distances) < _FAR**-1 * scale
    last = np.inf if near.any() else threshold + leading**2 * float(np.sum(vectors[-1] ** 2 / distances))
    if abs(last) > _FAR * scale:  # The threshold is a Ritz value already.
        nodes = values
    else:
        nodes, vectors = eigh_tridiagonal(np.append(diagonal, last), off_diagonal)
    here = int(np.argmin(np.abs(nodes - threshold)))
    weights = vectors[0] ** 2
    least = min(1.0, float(weights[:here].sum()))
    return least, min(1.0, least + float(weights[here]))

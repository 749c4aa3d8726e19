"""How coarsely a function rounds, measured: whatever the dtype says, a loss may compute in another one inside."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["POINTS", "noise_of"]

POINTS = 5
"""Values from which noise is measured."""


def noise_of(values: Tensor) -> float:
    """Return the standard deviation of the noise in a function's values at equally spaced points, very near each other.

    The k-th differences of m + 1 values of a smooth function vanish as k grows, those of noise of variance σ² have the
    variance σ² (2k)! / (k!)² (Moré & Wild 2011, "Estimating computational noise", doi 10.1137/100786125, equation 2.4).
    The smallest of the estimates by order is taken: what is smooth only adds to them.

    Args:
        values: (m + 1,), or (m + 1, n) of a function of n values; the noise is then that of the whole vector.
    """
    table, estimates = values.to(torch.float64).reshape(len(values), -1), []
    for order in range(1, len(values) - 1):  # The last difference, a single one, is too few.
        table = table.diff(dim=0)
        scale = math.factorial(order) ** 2 / math.factorial(2 * order)
        estimates.append(scale * table.square().sum(dim=1).mean())
    return math.sqrt(float(torch.stack(estimates).min()))

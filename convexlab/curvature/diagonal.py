"""The diagonal of a symmetric operator, with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.intervals import student_reach
from convexlab.curvature.soundness import require_operator, require_sound
from convexlab.errors import MisuseError
from convexlab.linalg.diagonal import sampled_diagonal
from convexlab.linalg.operators import MatrixVectorProduct

__all__ = ["DiagonalEstimate", "diagonal"]


@dataclass(frozen=True)
class DiagonalEstimate:
    """An unbiased estimate of a diagonal; float64, on the operator's device."""

    values: Tensor
    """(n,)."""
    standard_errors: Tensor
    """(n,), of each entry over the random signs; NaN with a single sample."""
    samples: int
    effort: Effort

    def interval(self, level: float = 0.95) -> Tensor:
        """Return an interval for every entry, (2, n), by Student's t.

        Args:
            level: probability with which each interval holds. Of n entries a share of 1 - ``level`` lies outside
                theirs.

        Raises:
            MisuseError: a level that is no probability.
        """
        reach = student_reach(self.samples - 1, level) * self.standard_errors
        return torch.stack([self.values - reach, self.values + reach])


def diagonal(operator: MatrixVectorProduct, *, samples: int = 32, seed: int = 0) -> DiagonalEstimate:
    """Estimate the diagonal of a symmetric operator by products with random signs.

    The mean of z ∘ A z (Bekas, Kokiopoulou & Saad 2007, doi 10.1016/j.apnum.2007.01.003). The error of an entry falls
    as the root of ``samples`` only. It is as large as the rest of its row: √Σ_{j≠i} a_ij². Where that is large beside
    the diagonal, see the intervals before use.

    Args:
        operator: anything with ``matvec``, ``shape``, ``dtype`` and ``device``.
        samples: products.
        seed: of the signs.

    Raises:
        MisuseError: fewer than one sample.
        FailureError: the products are wrong, see `soundness`.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise MisuseError(f"expected samples to be a whole number from 1, got {samples!r}.")
    require_operator(operator)
    with Meter(operator) as meter:
        require_sound(operator)
        values, squares = sampled_diagonal(operator, samples, seed)
        errors = (squares / (samples - 1) / samples).sqrt() if samples > 1 else torch.full_like(values, math.nan)
        return DiagonalEstimate(values, errors, samples, meter.effort(samples))

"""Intervals at a stated level around what random vectors say of a spectrum."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.optimize import brentq

# Not scipy.stats, which takes a second to import.
from scipy.special import betainc, betaincc, stdtrit
from torch import Tensor

from convexlab.errors import MisuseError

__all__ = ["LEVEL", "Interval", "check_level", "share_interval", "standard_error", "student_interval", "student_reach"]

LEVEL = 0.95
"""Level of the intervals that are stored and shown."""

Interval = tuple[float, float]
"""Lower and upper end; NaN where they are not known."""


def check_level(level: float) -> None:
    """Raise a MisuseError unless ``level`` is a probability below 1."""
    if not 0 < level < 1:
        raise MisuseError(f"expected the level of an interval between 0 and 1, got {level!r}.")


def standard_error(samples: Tensor) -> float:
    """Return the standard error of the mean of independent samples (m,); NaN for fewer than two."""
    if len(samples) < 2:
        return math.nan
    return float(samples.std() / math.sqrt(len(samples)))


def student_reach(degrees: float, level: float) -> float:
    """Return how many standard errors an interval by Student's t reaches to either side; NaN without a degree."""
    check_level(level)
    return float(stdtrit(degrees, (1 + level) / 2)) if degrees > 0 else math.nan


def student_interval(value: float, error: float, degrees: float, level: float) -> Interval:
    """Return value ± t · error; an error of 0 is one that is known."""
    reach = student_reach(degrees, level) * error if error else 0.0
    return value - reach, value + reach


def share_interval(least: float, most: float, *, size: int, probes: int, level: float) -> Interval:
    """Return an interval for r / n, where random unit vectors have between ``least`` and ``most`` in an eigenspace.

    The square of a uniform unit vector's part in a space of r of n dimensions has the distribution Beta(r / 2, (n - r)
    / 2). The mean of ``probes`` of them is taken as the Beta variable of the same mean and variance. At each end the
    observation has a probability of (1 - ``level``) / 2. No standard error is needed, and a single vector is enough.
    Clopper & Pearson 1934, doi 10.1093/biomet/26.4.404, have such an interval for the binomial.

    Args:
        least: mean over the vectors of the least that may be in the space.
        most: likewise the most; between the two is what quadrature leaves open.
        size: n.
        probes: vectors.
        level: probability.
    """
    check_level(level)
    chance, concentration = (1 - level) / 2, probes * (size / 2 + 1) - 1

    def chance_of(seen: float, beyond: Callable[..., float]) -> Callable[[float], float]:
        return lambda share: float(beyond(share * concentration, (1 - share) * concentration, seen)) - chance

    low = _crossing(chance_of(least, betaincc), size, otherwise=least)
    high = _crossing(chance_of(most, betainc), size, otherwise=most)
    return min(low, least), max(high, most)


def _crossing(excess: Callable[[float], float], size: int, otherwise: float) -> float:
    """Return the share at which a monotonous function is zero; where it is so at none, all or nothing was seen."""
    tiny = 1e-9 / size
    if excess(tiny) * excess(1 - tiny) >= 0:
        return otherwise
    return float(brentq(excess, tiny, 1 - tiny))

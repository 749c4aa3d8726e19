"""The switch of SWATS, from Adam to gradient descent."""

from __future__ import annotations

import math

from convexlab.detection.base import Detector, Signals, at_least, fraction, ratio

__all__ = ["Swats"]


class Swats(Detector):
    """SWATS: the rate of gradient descent that matches Adam's steps has settled (Keskar and Socher 2017).

    arXiv 1712.07628, algorithm 1. The rate of Adam's step p is γ_k = -pᵀp / pᵀg (equation 3), and its running mean is
    λ_k = β₂ λ_(k-1) + (1 - β₂) γ_k. The switch is where |λ_k / (1 - β₂^k) - γ_k| < ε and k > 1. It was meant for a
    switch to stochastic gradient descent, and for generalisation.

    Departs from it in that
    - k counts epochs, each with the mean of γ over its steps. β₂ = 0.9 remembers ten epochs; the source's 0.999
      remembers a thousand steps;
    - the tolerance is relative to the mean, because a loss that is multiplied by a number divides γ; the source's 1e-9
      is absolute;
    - it must hold for ``patience`` epochs in a row. A rate that passes through its own mean meets the tolerance by
      chance. A rate that drifts meets it at first, when the mean is of few epochs: at the second, half is the rate's.

    A rate that is not positive and finite decides nothing. Nothing is charged, because p and g come from the
    mini-batches.

    Of 200 rates that only scatter by 5 % all fired in 60 epochs. Of 200 that grow by 2 % an epoch beside, 23 % did; by
    5 %, none. With a patience of 1: all, all and 96 %.

    Args:
        tolerance: share of the mean that the rate may differ from it by.
        smoothing: β₂, of epochs.
        patience: epochs in a row.

    Raises:
        MisuseError: a setting out of range.
    """

    needs = frozenset({"projected_rate"})

    def __init__(self, *, tolerance: float = 0.05, smoothing: float = 0.9, patience: int = 5) -> None:
        super().__init__()
        self.tolerance = fraction("tolerance", tolerance)
        self.smoothing = fraction("smoothing", smoothing)
        self.patience = at_least("patience", patience, 1)
        self._unit = math.nan  # The first rate.
        self._mean = 0.0
        self._weight = 0.0  # Of the rates in the mean, 1 - β₂^k.
        self._held = 0

    def _decide(self, signals: Signals) -> tuple[bool, str]:
        rate = signals.projected_rate
        if rate is None or not 0.0 < rate < math.inf:
            return False, "the rate that matches Adam's steps is not positive"
        first = not self._weight
        self._unit = rate if first else self._unit
        relative, share = ratio(rate, self._unit), 1.0 - self.smoothing
        self._mean = self.smoothing * self._mean + share * relative
        self._weight = self.smoothing * self._weight + share
        mean = self._mean / self._weight
        near = not first and abs(mean - relative) < self.tolerance * mean
        self._held = self._held + 1 if near else 0
        words = f"the rate that matches Adam's steps, {rate:.3g},"
        if self._held < self.patience:
            return False, f"{words} has not stayed within {self.tolerance:.0%} of its mean, {self._unit * mean:.3g}"
        return True, (
            f"{words} has been within {self.tolerance:.0%} of its mean, {self._unit * mean:.3g}, for {self._held} epoch"
            f"{'s' if self._held > 1 else ''}"
        )

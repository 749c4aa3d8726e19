"""Detectors of the gradient norm's peak, which the paper takes as the swap point."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

from convexlab.detection.base import Detector, Signals, at_least, fraction
from convexlab.errors import MisuseError

__all__ = ["Algorithm1", "GradientNormPeak"]


class Algorithm1(Detector):
    """Algorithm 1 of Hrycej et al. (KDIR 2025), exactly: switch once norm <= factor * (largest norm so far).

    A network with a random head starts with a large norm that collapses within the first epochs; on that collapse
    this rule fires.
    """

    def __init__(self, factor: float = 0.9) -> None:
        """Take the paper's ``gnfact``."""
        super().__init__()
        self.factor = fraction("factor", factor)
        self._largest = 0.0

    def _decide(self, seen: Signals) -> tuple[bool, str]:
        gradient_norm = seen.gradient_norm
        self._largest = max(gradient_norm, self._largest)
        fired = not gradient_norm > self._largest * self.factor
        relation = "fell to" if fired else "is still above"
        return fired, (
            f"the gradient norm {gradient_norm:.3g} {relation} {self.factor:g} of its largest value so far, "
            f"{self._largest:.3g}"
        )


class GradientNormPeak(Detector):
    """Algorithm 1 behind the initial transient and the noise: the norm must rise from its trough before a fall counts.

    Between mini-batch steps the full gradient's norm jumps by a factor of two and more, so the rule is applied to its
    median over the last ``window`` epochs. It follows the shape that the hypothesis predicts, rise then fall: once
    the median has grown from its smallest value (the trough) by the factor ``rise``, a median of at most ``factor``
    times the largest since then, for ``patience`` epochs in a row, is the switch. A norm that only falls, as at first
    from a random head, is no peak.

    Args:
        factor: the paper's ``gnfact``.
        rise: how much the norm must have grown from its trough.
        window: epochs in the median.
        patience: consecutive epochs that the fall must last.

    Raises:
        MisuseError: a setting out of range.
    """

    def __init__(self, factor: float = 0.9, *, rise: float = 1.25, window: int = 5, patience: int = 2) -> None:
        super().__init__()
        self.factor = fraction("factor", factor)
        if not rise > 1:
            raise MisuseError(f"expected rise to be above 1, got {rise!r}.")
        self.rise = rise
        self.patience = at_least("patience", patience, 1)
        self._recent: deque[float] = deque(maxlen=at_least("window", window, 1))
        self._trough = math.inf
        self._peak: float | None = None
        self._fallen = 0

    def _decide(self, seen: Signals) -> tuple[bool, str]:
        self._recent.append(seen.gradient_norm)
        norm = median(self._recent)
        if self._peak is None:
            self._trough = min(self._trough, norm)
            # At a trough of zero, nothing has risen yet either.
            if norm == self._trough or norm < self.rise * self._trough:
                return False, (
                    f"the gradient norm has not risen by a factor of {self.rise:g} from its trough, {self._trough:.3g}"
                )
            self._peak = norm
        self._peak = max(self._peak, norm)
        self._fallen = self._fallen + 1 if norm <= self.factor * self._peak else 0
        fired = self._fallen >= self.patience
        rose = f"the gradient norm rose from a trough of {self._trough:.3g} to a peak of {self._peak:.3g}"
        if not fired:
            return False, f"{rose} and has not stayed below {self.factor:g} of it"
        return (
            True,
            f"{rose} and fell to {norm:.3g}, below {self.factor:g} of it (medians of {len(self._recent)} epochs)",
        )

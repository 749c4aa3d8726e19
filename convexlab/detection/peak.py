"""Detectors of the gradient norm's peak, which the paper takes as the swap point."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import deque
from statistics import median

from convexlab.detection.base import Detector, Signals, above_one, at_least, fraction, ratio

__all__ = ["Algorithm1", "GradientNormPeak", "SmoothedNormPeak"]


class Algorithm1(Detector):
    """Algorithm 1 of Hrycej et al. (KDIR 2025), exactly: switch once norm <= factor * (largest norm so far).

    A network with a random head starts with a large norm that collapses within the first epochs. The rule fires on that
    collapse.

    Args:
        factor: the paper's ``gnfact``, between 0 and 1.

    Raises:
        MisuseError: ``factor`` is out of range.
    """

    def __init__(self, factor: float = 0.9) -> None:
        super().__init__()
        self.factor = fraction("factor", factor)
        self._largest = 0.0

    def _decide(self, signals: Signals) -> tuple[bool, str]:
        gradient_norm = signals.gradient_norm
        self._largest = max(gradient_norm, self._largest)
        fired = not gradient_norm > self._largest * self.factor
        relation = "fell to" if fired else "is still above"
        return fired, (
            f"the gradient norm {gradient_norm:.3g} {relation} {self.factor:g} of its largest value so far, "
            f"{self._largest:.3g}"
        )


class _Peak(Detector):
    """Trough, rise, fall with patience, of a norm that a subclass smooths."""

    def __init__(self, factor: float, rise: float, patience: int) -> None:
        super().__init__()
        self.factor = fraction("factor", factor)
        self.rise = above_one("rise", rise)
        self.patience = at_least("patience", patience, 1)
        self._unit = 1.0
        self._trough = math.inf
        self._peak: float | None = None
        self._fallen = 0

    @abstractmethod
    def _smooth(self, gradient_norm: float) -> tuple[float, str]:
        """Take in a norm; return the smoothed one in multiples of ``_unit``, and what it is, in words."""

    def _decide(self, signals: Signals) -> tuple[bool, str]:
        norm, kind = self._smooth(signals.gradient_norm)
        if self._peak is None:
            self._trough = min(self._trough, norm)
            # At a trough of zero, nothing has risen yet either.
            if norm == self._trough or norm < self.rise * self._trough:
                return False, (
                    f"the gradient norm has not risen by a factor of {self.rise:g} from its trough, "
                    f"{self._unit * self._trough:.3g}"
                )
            self._peak = norm
        self._peak = max(self._peak, norm)
        self._fallen = self._fallen + 1 if norm <= self.factor * self._peak else 0
        trough, peak, norm = (self._unit * each for each in (self._trough, self._peak, norm))
        rose = f"the gradient norm rose from a trough of {trough:.3g} to a peak of {peak:.3g}"
        if self._fallen < self.patience:
            return False, f"{rose} and has not stayed below {self.factor:g} of it"
        return True, f"{rose} and fell to {norm:.3g}, below {self.factor:g} of it ({kind})"


class GradientNormPeak(_Peak):
    """Algorithm 1 behind the initial transient and the noise: the norm must rise from its trough before a fall counts.

    Between mini-batch steps the full gradient's norm jumps by a factor of two and more. So the rule is applied to its
    median over the last ``window`` epochs. It follows the shape that the hypothesis predicts, rise then fall. First the
    median has to grow from its smallest value (the trough) by the factor ``rise``. Then it has to stay at or below
    ``factor`` times its largest value since, for ``patience`` epochs in a row. A norm that only falls, as at first from
    a random head, is no peak.

    A median of five does not remove much noise. Of 200 curves of noise without a trend 97 % fired in 60 epochs, half of
    them by epoch 22. Of 200 that only fall 8 % did. Of 200 that rise by 4 at epoch 16 and fall at 31, 22 % did within
    epochs 31 to 33 and 74 % before (20 % noise). On a noisy norm it is an early switch rather than a test for a peak;
    `SmoothedNormPeak` is such a test.

    Args:
        factor: the paper's ``gnfact``.
        rise: how much the norm must have grown from its trough.
        window: epochs in the median.
        patience: consecutive epochs that the fall must last.

    Raises:
        MisuseError: a setting out of range.
    """

    def __init__(self, factor: float = 0.9, *, rise: float = 1.25, window: int = 5, patience: int = 2) -> None:
        super().__init__(factor, rise, patience)
        self._recent: deque[float] = deque(maxlen=at_least("window", window, 1))

    def _smooth(self, gradient_norm: float) -> tuple[float, str]:
        self._recent.append(gradient_norm)
        return median(self._recent), f"medians of {len(self._recent)} epochs"


class SmoothedNormPeak(_Peak):
    """Algorithm 1 on a running mean of the logarithm of the gradient norm, which must rise from its trough first.

    It is the rule of `GradientNormPeak` with an exponential average instead of a median. m = β m + (1 - β) log(norm /
    first norm), and m / (1 - β^t) is used after t epochs. That is how Adam corrects the bias of its averages (Kingma
    and Ba 2015, arXiv 1412.6980, section 3). Logarithms are taken because the noise of a norm multiplies it. For
    independent noise the mean is as good as a plain mean of (1 + β) / (1 - β) epochs: 9 at 0.8. An outlier counts,
    which a median ignores. An epoch whose gradient is zero decides nothing.

    Of 200 curves of noise without a trend 10 % fired in 60 epochs, of 200 that only fall 0.5 %. Of 200 that rise by 4
    at epoch 16 and fall at 31 (20 % noise), 95 % did within epochs 31 to 33. The others did before. With a ``rise`` of
    1.25: 74 %, 6 % and 80 %; `GradientNormPeak`, which has that: 97 %, 8 % and 22 %.

    Args:
        factor: the paper's ``gnfact``.
        rise: how much the mean must have grown from its trough.
        smoothing: β.
        patience: consecutive epochs that the fall must last.

    Raises:
        MisuseError: a setting out of range.
    """

    def __init__(self, factor: float = 0.9, *, rise: float = 1.5, smoothing: float = 0.8, patience: int = 2) -> None:
        super().__init__(factor, rise, patience)
        self.smoothing = fraction("smoothing", smoothing)
        self._mean = 0.0
        self._weight = 0.0  # Of the norms in the mean, 1 - β^t.

    def _smooth(self, gradient_norm: float) -> tuple[float, str]:
        self._unit = gradient_norm if not self._weight else self._unit
        share = 1.0 - self.smoothing
        self._mean = self.smoothing * self._mean + share * math.log(ratio(gradient_norm, self._unit))
        self._weight = self.smoothing * self._weight + share
        return math.exp(self._mean / self._weight), "running means of its logarithm"

    def _decide(self, signals: Signals) -> tuple[bool, str]:
        return super()._decide(signals) if signals.gradient_norm > 0.0 else (False, "the gradient is zero")

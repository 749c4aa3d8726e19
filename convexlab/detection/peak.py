"""Detectors of the gradient norm's peak, which the paper takes as the swap point."""

from __future__ import annotations

from convexlab.detection.base import Detector
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
        self.factor = _fraction("factor", factor)
        self._largest = 0.0

    def _decide(self, loss: float, gradient_norm: float) -> tuple[bool, str]:
        self._largest = max(gradient_norm, self._largest)
        fired = not gradient_norm > self._largest * self.factor
        relation = "fell to" if fired else "is still above"
        return fired, (
            f"the gradient norm {gradient_norm:.3g} {relation} {self.factor:g} of its largest value so far, "
            f"{self._largest:.3g}"
        )


class GradientNormPeak(Detector):
    """Algorithm 1 behind the initial transient: the norm must rise from its trough before a fall counts.

    The rule follows the shape that the hypothesis predicts, rise then fall. It keeps the smallest norm seen (the
    trough) and the largest since; once the largest is at least ``rise`` times the trough, a norm of at most
    ``factor`` times the largest for ``patience`` epochs in a row is the switch. A norm that only falls, as from a
    random head, never fires: there was no peak.

    Args:
        factor: the paper's ``gnfact``.
        rise: how much the norm must have grown from its trough.
        patience: consecutive epochs that the fall must last; mini-batch noise makes single ones.
    """

    def __init__(self, factor: float = 0.9, *, rise: float = 1.25, patience: int = 2) -> None:
        """See the class."""
        super().__init__()
        self.factor = _fraction("factor", factor)
        if not rise > 1:
            raise MisuseError(f"expected rise to be above 1, got {rise!r}.")
        if patience < 1:
            raise MisuseError(f"expected patience of at least 1 epoch, got {patience!r}.")
        self.rise = rise
        self.patience = patience
        self._trough = float("inf")
        self._peak = 0.0
        self._fallen = 0

    def _decide(self, loss: float, gradient_norm: float) -> tuple[bool, str]:
        if gradient_norm < self._trough:
            self._trough, self._peak, self._fallen = gradient_norm, gradient_norm, 0
        self._peak = max(self._peak, gradient_norm)
        if self._peak < self.rise * self._trough:
            return False, (
                f"the gradient norm has not risen by a factor of {self.rise:g} from its trough, {self._trough:.3g}"
            )
        self._fallen = self._fallen + 1 if gradient_norm <= self.factor * self._peak else 0
        fired = self._fallen >= self.patience
        course = (
            f"the gradient norm rose from {self._trough:.3g} to a peak of {self._peak:.3g} and "
            f"{'fell' if fired else 'has not fallen'} to {self.factor:g} of it for {self.patience} epochs in a row"
        )
        return fired, course if not fired else f"{course}, to {gradient_norm:.3g}"


def _fraction(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise MisuseError(f"expected {name} between 0 and 1, got {value!r}.")
    return value

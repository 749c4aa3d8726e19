"""A switch epoch chosen beforehand, as the paper did in its experiments."""

from __future__ import annotations

from convexlab.detection.base import Detector, Signals
from convexlab.errors import MisuseError

__all__ = ["FixedEpoch"]


class FixedEpoch(Detector):
    """Switch after a given number of epochs, whatever loss and norm are."""

    cost = 0.0

    def __init__(self, switch_epoch: int) -> None:
        """Take the number of epochs before the switch, at least 1."""
        super().__init__()
        if switch_epoch < 1:
            raise MisuseError(f"expected switch_epoch of at least 1, got {switch_epoch!r}.")
        self.switch_epoch = switch_epoch

    def update(self, *, loss: float, gradient_norm: float, **more: float | None) -> bool:
        """Count one epoch, finite or not, and return whether it is time."""
        if not self.fired:
            self.epoch += 1
            self.fired = self.epoch >= self.switch_epoch
            self.reason = f"the switch was set to epoch {self.switch_epoch}"
        return self.fired

    def _decide(self, seen: Signals) -> tuple[bool, str]:
        raise NotImplementedError  # `update` needs neither

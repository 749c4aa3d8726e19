"""A switch epoch that is chosen beforehand, as in the paper's experiments."""

from __future__ import annotations

from convexlab.detection.base import Detector, Signals, at_least
from convexlab.detection.base import fraction as _fraction
from convexlab.errors import MisuseError

__all__ = ["BudgetFraction", "FixedEpoch"]


class FixedEpoch(Detector):
    """Switch after a given number of epochs, whatever loss and norm are.

    Args:
        switch_epoch: epochs before the switch, at least 1.

    Raises:
        MisuseError: ``switch_epoch`` is below 1.
    """

    def __init__(self, switch_epoch: int) -> None:
        super().__init__()
        if switch_epoch < 1:
            raise MisuseError(f"expected switch_epoch of at least 1, got {switch_epoch!r}.")
        self.switch_epoch = switch_epoch

    def update(self, *, loss: float, gradient_norm: float, **more: float | None) -> bool:
        """Count one epoch, finite or not, and return whether it is time."""
        if not self.fired:
            self.epoch += 1
            self.fired = self.epoch >= self.switch_epoch
            self.reason = self._choice()
        return self.fired

    def _choice(self) -> str:
        return f"the switch was set to epoch {self.switch_epoch}"

    def _decide(self, signals: Signals) -> tuple[bool, str]:
        raise NotImplementedError  # `update` decides by the epoch alone.


class BudgetFraction(FixedEpoch):
    """Budget: switch after a fraction of all epochs, like a guess by hand.

    It switches after the first epoch at the earliest, whatever loss and norm are. Every detector that looks at the run
    has to beat this. Of the fractions tried, 0.3 had the least regret over 30 runs
    (``analyses/detector_validation.py``).

    Args:
        budget: number of epochs of the whole training.
        fraction: share of them before the switch.

    Raises:
        MisuseError: a setting out of range.
    """

    def __init__(self, budget: int, fraction: float = 0.3) -> None:
        self.budget = at_least("budget", budget, 1)
        self.fraction = _fraction("fraction", fraction)
        super().__init__(max(1, round(fraction * budget)))

    def _choice(self) -> str:
        return f"{super()._choice()}, {self.fraction:.0%} of a budget of {self.budget}"

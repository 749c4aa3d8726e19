"""What all detectors share: they are told loss and gradient norm once an epoch and say when to switch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

__all__ = ["Detector"]


class Detector(ABC):
    """Decides online, from what it has been told so far.

    Only ratios of losses and of norms may decide, so that a rescaled loss gives the same decision.
    """

    cost = 1.0
    """Gradient equivalents an epoch for what it is told: the norm of the whole training set's gradient."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.epoch = 0
        """Epochs seen."""
        self.fired = False
        """Whether the decision to switch has been made; it is never taken back."""
        self.reason = "no epoch was seen"
        """Why it was made, or what is being waited for: one clause."""

    def update(self, *, loss: float, gradient_norm: float) -> bool:
        """Take in one epoch and return whether to switch now, or has been.

        An epoch whose loss or norm is not finite counts as an epoch and decides nothing.
        """
        if self.fired:
            return True
        self.epoch += 1
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.fired, self.reason = self._decide(loss, gradient_norm)
        return self.fired

    @abstractmethod
    def _decide(self, loss: float, gradient_norm: float) -> tuple[bool, str]:
        """Return whether to switch, and why or why not yet."""

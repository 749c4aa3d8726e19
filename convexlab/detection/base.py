"""What all detectors share: they are told loss and gradient norm once an epoch and say when to switch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from convexlab.errors import MisuseError

__all__ = ["Detector", "at_least", "fraction", "positive"]


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


def fraction(name: str, value: float) -> float:
    """Return a setting that lies between 0 and 1.

    Raises:
        MisuseError: it does not.
    """
    if not 0 < value < 1:
        raise MisuseError(f"expected {name} between 0 and 1, got {value!r}.")
    return value


def positive(name: str, value: float) -> float:
    """Return a setting that is positive and finite.

    Raises:
        MisuseError: it is not.
    """
    if not 0 < value < math.inf:
        raise MisuseError(f"expected {name} to be a positive number, got {value!r}.")
    return value


def at_least(name: str, epochs: int, least: int) -> int:
    """Return a number of epochs that is not below the least.

    Raises:
        MisuseError: it is.
    """
    if not epochs >= least:
        raise MisuseError(f"expected {name} of at least {least} epoch{'s' if least > 1 else ''}, got {epochs!r}.")
    return epochs

"""What all detectors share: each epoch they get the loss and the gradient norm, and they decide when to switch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from convexlab.errors import MisuseError

__all__ = ["Detector", "Signals", "above_one", "at_least", "fraction", "positive", "ratio"]


@dataclass(frozen=True)
class Signals:
    """The measurements of an epoch that a detector may use; None is never measured, NaN is not known this time.

    A loss that is multiplied by a number multiplies all of them except the rate, which it divides.
    """

    loss: float
    """Training loss."""
    gradient_norm: float
    """‖g‖, the norm of the gradient of the training loss."""
    gradient_noise: float | None = None
    """Standard error of ``gradient_norm`` where it was estimated from mini-batches."""
    gradient_curvature: float | None = None
    """gᵀHg / gᵀg."""
    smallest: float | None = None
    """Smallest eigenvalue of the Hessian."""
    largest: float | None = None
    """Largest eigenvalue of the Hessian."""
    projected_rate: float | None = None
    """-pᵀp / pᵀg with Adam's step p: the rate at which gradient descent would have gone as far along the gradient.
    Source: Keskar and Socher 2017, arXiv 1712.07628, equation 3."""


class Detector(ABC):
    """Base of the rules that decide when to switch, from the epochs so far.

    Rules use only ratios, so that a rescaled loss gives the same decision.
    """

    cost = 0.0
    """The cost of measuring what it needs, as a share of the cost of training. Loss and norm cost nothing: they come
    from the losses and gradients of the mini-batches."""
    needs: frozenset[str] = frozenset()
    """Fields of `Signals` that it needs beside loss and gradient norm."""

    def __init__(self) -> None:
        """Start before the first epoch."""
        self.epoch = 0
        """Epochs so far."""
        self.fired = False
        """Whether the decision to switch has been made; it is never taken back."""
        self.reason = "no epoch was seen"
        """Why it was made, or what it waits for, as a clause."""

    def update(self, *, loss: float, gradient_norm: float, **more: float | None) -> bool:
        """Take in an epoch and return whether the decision to switch has been made.

        An epoch whose loss or norm is not finite counts as an epoch and decides nothing.

        Args:
            loss: see `Signals`.
            gradient_norm: see `Signals`.
            **more: the other fields of `Signals`.

        Raises:
            MisuseError: a field that the detector needs is missing.
        """
        signals = Signals(loss, gradient_norm, **more)
        missing = [name for name in sorted(self.needs) if getattr(signals, name) is None]
        if missing:
            raise MisuseError(
                f"{type(self).__name__} needs {' and '.join(missing)} as well, NaN where an epoch has none. "
                "convexlab.Watch measures them."
            )
        if self.fired:
            return True
        self.epoch += 1
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.fired, self.reason = self._decide(signals)
        return self.fired

    @abstractmethod
    def _decide(self, signals: Signals) -> tuple[bool, str]:
        """Return whether to switch, and why or why not yet."""


def fraction(name: str, value: float) -> float:
    """Return a setting, which has to lie between 0 and 1.

    Raises:
        MisuseError: it does not.
    """
    if not 0 < value < 1:
        raise MisuseError(f"expected {name} between 0 and 1, got {value!r}.")
    return value


def positive(name: str, value: float) -> float:
    """Return a setting, which has to be positive and finite.

    Raises:
        MisuseError: it is not.
    """
    if not 0 < value < math.inf:
        raise MisuseError(f"expected {name} to be a positive number, got {value!r}.")
    return value


def above_one(name: str, value: float) -> float:
    """Return a setting, which has to be above 1.

    Raises:
        MisuseError: it is not.
    """
    if not value > 1:
        raise MisuseError(f"expected {name} to be above 1, got {value!r}.")
    return value


def at_least(name: str, epochs: int, least: int, unit: str = "epoch") -> int:
    """Return a number of epochs, or of another unit, which has to be at least ``least``.

    Raises:
        MisuseError: it is not.
    """
    if not epochs >= least:
        raise MisuseError(f"expected {name} of at least {least} {unit}{'s' if least > 1 else ''}, got {epochs!r}.")
    return epochs


def ratio(value: float, unit: float) -> float:
    """Return value / unit of two positive numbers, kept where its logarithm and the way back are finite.

    Its rounding does not depend on the scale of the two; that of the difference of their logarithms would.
    """
    return min(max(value / unit, 1e-300), 1e300)

"""A watch over anyone's training loop: it measures within a share of what training costs, and says when to switch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from convexlab.curvature.extremes import extreme_eigenvalues
from convexlab.detection.base import Detector, Signals
from convexlab.detection.gradients import GradientStatistics
from convexlab.errors import FailureError, MisuseError
from convexlab.linalg.vectors import dot
from convexlab.objective import Objective

__all__ = ["Watch"]

# Gradient equivalents.
_VALUE_AND_GRADIENT, _PRODUCT = 1.0, 2.0
# Products that a Krylov run of exact products makes beside its steps; a longer one may be made with others.
_FRESH, _LONGEST = 2, 19
_CURVATURE = frozenset({"gradient_curvature", "smallest", "largest"})


class Watch:
    """Tells a detector of every epoch of a training loop, and keeps what it was told.

    In the loop, whatever it is otherwise::

        watch = cl.Watch(objective, adam, detector=cl.GradientNormPeak())
        for epoch in range(epochs):
            loss = train_one_epoch(model, adam)  # steps as ever; the watch looks on
            if watch.update(loss=loss):
                break  # watch.reason says why

    The gradient norm comes from the optimiser's own mini-batch gradients and costs no evaluation. It includes their
    noise, unless a step's gradient is accumulated from equal parts, with `accumulated` called after each backward pass
    but the last: then the noise is taken out, and told too (`GradientStatistics`).

    Curvature is measured on a sample of the objective's examples, at the end of an epoch, as often as ``share`` pays
    for: half of it for gᵀHg/gᵀg, half for both ends of the spectrum by a short Krylov run. Of m of N examples, with
    epochs that cost 1, that is once in 6 m / (N share) and in 4 (steps + 2) m / (N share) epochs. The ends of a sample
    tend to lie further out than those of the whole; the smallest is an upper bound on the sample's own.

    Args:
        objective: the training loss of the model that the optimiser trains.
        optimizer: whose steps are looked at, with or without a closure; any of torch's.
        detector: what decides; None measures only.
        share: of what training costs, at most, in gradient equivalents; 0 measures no curvature. Of a small network's
            seconds it was about twice that, for small samples are evaluated less efficiently (benchmarks/README.md).
        examples: in the sample. The fewer, the more often it is measured.
        steps: of the Krylov run, 2 to 19.

    Raises:
        MisuseError: a share, or a number of examples or steps, out of range; a detector that needs curvature with a
            share of 0.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        detector: Detector | None = None,
        share: float = 0.05,
        examples: int = 256,
        steps: int = 16,
    ) -> None:
        if not 0 <= share < 1:
            raise MisuseError(f"expected share from 0 to below 1, got {share!r}.")
        if not 2 <= steps <= _LONGEST:
            raise MisuseError(f"expected steps from 2 to {_LONGEST}, got {steps!r}.")
        missing = sorted(detector.needs & _CURVATURE) if detector is not None and not share else []
        if missing:
            raise MisuseError(
                f"{type(detector).__name__} has to be told {' and '.join(missing)}, which share=0 does not measure. "
                "Pass a positive share."
            )
        self.detector = detector
        self.history: list[Signals] = []
        """What was told, an epoch each: NaN where something was not measured, None for curvature that never is."""
        self.trained = 0.0
        """Gradient equivalents of training, as `update` was told."""
        self._share, self._steps = share, steps
        self._sample = objective.sample(examples) if share else objective
        self._statistics = GradientStatistics(optimizer)
        self._saved = {"along": 0.0, "ends": 0.0}
        self._before = 0.0

    @property
    def spent(self) -> float:
        """Gradient equivalents of the whole objective that were spent on measuring."""
        return self._before + (self._sample.cost.gradient_equivalents * self._sample.share if self._share else 0.0)

    @property
    def seconds(self) -> float:
        """Seconds of these evaluations."""
        return self._sample.cost.seconds if self._share else 0.0

    @property
    def fired(self) -> bool:
        """Whether the detector has decided to switch."""
        return self.detector is not None and self.detector.fired

    @property
    def reason(self) -> str:
        """Why it decided, or what is being waited for: one clause."""
        return "there is no detector" if self.detector is None else self.detector.reason

    def accumulated(self) -> None:
        """Take in a part of a step's gradient: to be called after each of its backward passes but the last."""
        self._statistics.accumulated()

    def update(self, *, loss: float, cost: float = 1.0) -> bool:
        """Take in an epoch and return whether to switch now, or has been.

        Args:
            loss: the mean training loss over the epoch, which the loop has.
            cost: of the epoch, in gradient equivalents: 1 for one over mini-batches, a step's worth each on the whole
                batch.

        Raises:
            MisuseError: a cost that is negative or not finite.
        """
        if not 0 <= cost < math.inf:
            raise MisuseError(f"expected the cost of an epoch in gradient equivalents, at least 0, got {cost!r}.")
        self.trained += cost
        told = self._statistics.epoch()
        known = math.isfinite(told.gradient_norm)
        for account in self._saved:
            self._saved[account] += 0.5 * self._share * cost
        signals = Signals(
            loss=loss,
            gradient_norm=told.gradient_norm if known else told.batch_gradient_norm,
            gradient_noise=told.gradient_noise,
            projected_rate=told.projected_rate,
        )
        if self._share:
            along, (smallest, largest) = self._along(), self._ends()
            signals = replace(signals, gradient_curvature=along, smallest=smallest, largest=largest)
        self.history.append(signals)
        return self.detector is not None and self.detector.update(**vars(signals))

    def close(self) -> None:
        """Look on no longer."""
        self._statistics.close()

    def state_dict(self) -> dict[str, float]:
        """Return what it may still spend, for a run that is taken up again; the detector is told `history` again."""
        return {"trained": self.trained, "spent": self.spent, **self._saved}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on with such a state."""
        self.trained, self._before = state["trained"], state["spent"] - (self.spent - self._before)
        self._saved = {account: state[account] for account in self._saved}

    def _along(self) -> float:
        """Return gᵀHg/gᵀg on the sample; NaN where it is not affordable or not finite."""
        with self._paying("along", _VALUE_AND_GRADIENT + _PRODUCT) as affordable:
            if not affordable:
                return math.nan
            gradient = self._sample.gradient()
            square = float(dot(gradient, gradient))
            if not 0 < square < math.inf:
                return math.nan
            curvature = float(dot(gradient, self._sample.hvp(gradient))) / square
            return curvature if math.isfinite(curvature) else math.nan

    def _ends(self) -> tuple[float, float]:
        """Return both ends of the spectrum on the sample; NaN where they are not affordable or not finite."""
        with self._paying("ends", _PRODUCT * (self._steps + _FRESH)) as affordable:
            if not affordable:
                return math.nan, math.nan
            try:
                found = extreme_eigenvalues(self._sample.hessian(), max_steps=self._steps)
            except FailureError:
                return math.nan, math.nan
            return found.smallest, found.largest

    @contextmanager
    def _paying(self, account: str, price: float) -> Iterator[bool]:
        """Say whether an account can pay a price, in gradients over the sample, and take from it what was spent."""
        before = self.spent
        yield self._saved[account] >= price * self._sample.share
        self._saved[account] -= self.spent - before

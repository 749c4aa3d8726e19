"""A watch over any training loop: it measures within a share of the cost of training, and says when to switch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from convexlab.curvature.adam_metric import AdamSharpness, adam_sharpness
from convexlab.curvature.extremes import extreme_eigenvalues
from convexlab.detection.base import Detector, Signals
from convexlab.detection.gradients import GradientStatistics
from convexlab.errors import FailureError, MisuseError
from convexlab.linalg.vectors import dot
from convexlab.objective import Objective
from convexlab.progress import Log
from convexlab.runs.columns import finite_numbers, to_frame, write_csv

__all__ = ["Watch"]

# Gradient equivalents.
_VALUE_AND_GRADIENT, _PRODUCT = 1.0, 2.0
# Products that a Krylov run makes beside its steps, and the longest run that is made with exact products alone.
_FRESH, _LONGEST = 2, 19
# Steps on the whole batch that are put together for a detector. Given every single step, `GradientNormPeak` took the
# first steps of Adam for a peak, at step 14 of 2,000. Given every 20th, it fired at 300.
_STEPS_TOGETHER = 20
_CURVATURE = frozenset({"gradient_curvature", "smallest", "largest"})


class Watch:
    """Measures every epoch of a training loop for a detector, and keeps the measurements.

    In any loop::

        watch = cl.Watch(objective, adam, detector=cl.GradientNormPeak())
        for epoch in range(epochs):
            loss = train_one_epoch(model, adam)  # steps as before; the watch looks on
            if watch.update(loss=loss):
                break  # watch.reason says why

    The gradient norm comes from the optimiser's own mini-batch gradients and costs no evaluation. It includes their
    noise, unless a step's gradient is accumulated from equal parts, with `accumulated` called after each backward pass
    except the last. Then the noise is taken out, and measured too (`GradientStatistics`).

    Where the objective is a single batch, an update after every step would give the detector every single step. Updates
    are then combined over 20 steps. Between them, `update` returns its last answer.

    Curvature is measured on a sample of the objective's examples, at the end of an epoch, as often as ``share`` pays
    for. Half of it is for gᵀHg/gᵀg, half for both ends of the spectrum by a short Krylov run. With m of N examples and
    epochs that cost 1, the former is measured once in 6 m / (N share) epochs. The latter is measured once in 4 (steps +
    2) m / (N share) epochs. It is a little less often for the ends, whose products are checked each time, on 32
    examples. The ends of a sample's spectrum tend to lie further out than those of the whole. The smallest value found
    is an upper bound on the sample's smallest eigenvalue.

    Args:
        objective: the training loss of the model that the optimiser trains.
        optimizer: any of torch's, with or without a closure.
        detector: the rule that decides; None measures only.
        share: the share of the cost of training, in gradient equivalents, that may be spent on measuring; 0 measures no
            curvature. In seconds it was about twice that on a small network: small samples are evaluated less
            efficiently (benchmarks/README.md).
        examples: number of examples in the sample. With fewer, curvature is measured more often.
        steps: of the Krylov run, 2 to 19.
        every: number of updates, each of one step, that are combined; None is 20 where the objective is a single batch,
            else 1.
        adam_metric: also measure the largest curvature in Adam's metric, which is in `adam_history` with the threshold
            of its stability. Each of the three measurements then has a third of the share.
        clipped: whether the loop clips gradients. They are then read after each backward pass, before clipping.
        log: called at the end of every epoch with its measurements by name, and the epoch, from 1. Examples are
            ``lambda numbers, epoch: print(epoch, numbers)`` and a `convexlab.integrations.tensorboard.TensorBoard`.

    Raises:
        MisuseError: a share, or a number of examples or steps, out of range; a detector that needs curvature, or
            ``adam_metric``, with a share of 0.
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
        adam_metric: bool = False,
        clipped: bool = False,
        log: Log | None = None,
        every: int | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise MisuseError(f"expected every to be None or a whole number of steps from 1, got {every!r}.")
        if not 0 <= share < 1:
            raise MisuseError(f"expected share from 0 to below 1, got {share!r}.")
        if not 2 <= steps <= _LONGEST:
            raise MisuseError(f"expected steps from 2 to {_LONGEST}, got {steps!r}.")
        missing = sorted(detector.needs & _CURVATURE) if detector is not None and not share else []
        if missing:
            raise MisuseError(
                f"{type(detector).__name__} needs {' and '.join(missing)}, which share=0 does not measure. "
                "Pass a positive share."
            )
        if adam_metric and not share:
            raise MisuseError("expected a positive share for adam_metric, got share=0, which measures no curvature.")
        self.detector = detector
        self.adam_history: list[AdamSharpness | None] = []
        """The largest curvature in Adam's metric, epoch by epoch; None where it was not measured."""
        self.history: list[Signals] = []
        """The measurements, epoch by epoch: NaN where something was not measured, None for curvature with share=0."""
        self.trained = 0.0
        """Gradient equivalents of training: the sum of the costs that `update` was given."""
        self._share, self._steps = share, steps
        self._sample = objective.sample(examples) if share else objective
        self._statistics = GradientStatistics(optimizer, clipped=clipped)
        self._log = log
        self._optimizer = optimizer
        self._saved = {"along": 0.0, "ends": 0.0} | ({"adam": 0.0} if adam_metric else {})
        self._before = 0.0
        # Not iterated: a loader that shuffles would draw another order for training.
        whole = isinstance(objective.data, Sized) and len(objective.data) == 1
        self._every = every or (_STEPS_TOGETHER if whole else 1)
        self._losses: list[float] = []
        """Losses of the updates that the detector has not received yet."""

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
        """The reason of the decision, or what the detector waits for, as a clause."""
        return "there is no detector" if self.detector is None else self.detector.reason

    def accumulated(self) -> None:
        """Take in a part of a step's gradient. Call it after each backward pass of the step except the last."""
        self._statistics.accumulated()

    def update(self, *, loss: float, cost: float = 1.0) -> bool:
        """Take in an epoch, or a step on the whole batch, and return whether the decision to switch has been made.

        Args:
            loss: the loop's mean training loss over the epoch.
            cost: of the epoch, in gradient equivalents: 1 for an epoch over mini-batches, or the number of steps if
                each is on the whole batch.

        Raises:
            MisuseError: a cost that is negative or not finite.
        """
        if not 0 <= cost < math.inf:
            raise MisuseError(f"expected the cost of an epoch in gradient equivalents, at least 0, got {cost!r}.")
        self.trained += cost
        for account in self._saved:
            self._saved[account] += self._share * cost / len(self._saved)
        self._losses.append(loss)
        if self._statistics.steps == len(self._losses) < self._every:  # An update a step.
            return self.fired
        loss = fmean(self._losses)
        self._losses.clear()
        steps = self._statistics.epoch()
        known = math.isfinite(steps.gradient_norm)
        signals = Signals(
            loss=loss,
            gradient_norm=steps.gradient_norm if known else steps.batch_gradient_norm,
            gradient_noise=steps.gradient_noise,
            projected_rate=steps.projected_rate,
        )
        if self._share:
            along, (smallest, largest) = self._along(), self._ends()
            signals = replace(signals, gradient_curvature=along, smallest=smallest, largest=largest)
        if "adam" in self._saved:
            self.adam_history.append(self._in_adam_metric())
        self.history.append(signals)
        if self._log is not None:
            numbers = finite_numbers(self._rows()[-1])
            self._log(numbers, round(numbers.pop("epoch")))
        return self.detector is not None and self.detector.update(**vars(signals))

    def to_frame(self) -> Any:
        """Return the measurements, an epoch a row, as a ``pandas.DataFrame``.

        Raises:
            MisuseError: pandas is not installed.
        """
        return to_frame(self._rows())

    def to_csv(self, path: str | Path) -> Path:
        """Write the same as CSV, which needs no other package, and return the path."""
        return write_csv(self._rows(), path)

    def _rows(self) -> list[dict[str, float | None]]:
        rows: list[dict[str, float | None]] = [
            {"epoch": epoch} | vars(signals) for epoch, signals in enumerate(self.history, start=1)
        ]
        for row, sharpness in zip(rows, self.adam_history, strict=False):
            row["adam_sharpness"] = None if sharpness is None else sharpness.value
            row["adam_threshold"] = None if sharpness is None else sharpness.threshold
        return rows

    def close(self) -> None:
        """Stop measuring: the optimiser is left as it was."""
        self._statistics.close()

    def state_dict(self) -> dict[str, float]:
        """Return the state for a run that is resumed: what may still be spent. The detector gets `history` again."""
        return {"trained": self.trained, "spent": self.spent, **self._saved}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from such a state."""
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
        with self._paying("ends", _PRODUCT * (self._steps + _FRESH) + self._sample.cost_of_proof()) as affordable:
            if not affordable:
                return math.nan, math.nan
            try:
                extremes = extreme_eigenvalues(self._sample.hessian(), max_steps=self._steps)
            except FailureError:
                return math.nan, math.nan
            return extremes.smallest, extremes.largest

    def _in_adam_metric(self) -> AdamSharpness | None:
        """Return the largest curvature in Adam's metric on the sample; None where it is not affordable or not finite.

        Raises:
            MisuseError: the optimiser is no Adam, or trains other parameters.
        """
        with self._paying("adam", _PRODUCT * (self._steps + _FRESH) + self._sample.cost_of_proof()) as affordable:
            if not affordable:
                return None
            try:
                return adam_sharpness(self._sample, self._optimizer, max_steps=self._steps)
            except FailureError:
                return None

    @contextmanager
    def _paying(self, account: str, price: float) -> Iterator[bool]:
        """Yield whether an account can pay a price, in gradients over the sample; afterwards take what was spent."""
        before = self.spent
        yield self._saved[account] >= price * self._sample.share
        self._saved[account] -= self.spent - before

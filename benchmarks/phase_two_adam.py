"""Adam from the start of a problem of `phase_two.py`: its loss over cost, and the states handed over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from phase_two_problems import Task, clock
from torch import Tensor, nn

import convexlab as cl
from convexlab.linalg.vectors import flatten, gradient_of, norm
from convexlab.training.adam import adam_epoch, backward
from convexlab.training.captured_step import CapturedStep

__all__ = ["ADAM", "AdamTrajectory", "Curve", "Watch", "cosine", "gradients"]

ADAM: dict[str, type[torch.optim.Adam]] = {
    "adam-constant": torch.optim.Adam,
    "adam-cosine": torch.optim.Adam,
    "adamw-constant": torch.optim.AdamW,
}
_POINTS = 300  # Kept of a curve.
_RECORDED = 50  # Written down of it, at most.
_ASKED = 500  # Times that the detector is told of a run on the whole batch, where every step is an epoch.


def gradients(model: nn.Module) -> list[Tensor]:
    """Return what the last backward pass has left, parameter after parameter."""
    return [gradient_of(parameter) for parameter in model.parameters()]


class Curve:
    """The lowest loss so far over cost and seconds, thinned, and where it is."""

    def __init__(self, budget: float) -> None:
        self.rows: list[list[float]] = []
        """[cost, lowest loss so far, seconds], in this order; the last one is always there."""
        self.best_loss = math.inf
        self.best_cost = math.nan
        self.best: Tensor | None = None
        self._spacing = budget / _POINTS

    def add(self, cost: float, loss: float, seconds: float, weights: Callable[[], Tensor]) -> None:
        """Take in one evaluation."""
        if loss < self.best_loss:
            self.best_loss, self.best_cost, self.best = loss, cost, weights()
        self._append(cost, seconds)

    def extend(self, phase: Curve, cost: float, seconds: float) -> None:
        """Take in a phase that began at this cost and time."""
        for spent, loss, took in phase.rows:
            self.best_loss = min(self.best_loss, loss)
            self._append(cost + spent, seconds + took)
        if phase.best_loss <= self.best_loss:
            self.best, self.best_cost = phase.best, cost + phase.best_cost

    def record(self) -> list[list[float]]:
        """Return what is written down of it: every so many points and the last one, in four digits."""
        every = -(-len(self.rows) // _RECORDED)
        return [[float(f"{value:.4g}") for value in row] for row in self.rows[::-1][::every][::-1]]

    def _append(self, cost: float, seconds: float) -> None:
        # Of neighbours nearer than the spacing the later one is kept.
        if len(self.rows) > 1 and cost - self.rows[-2][0] < self._spacing:
            self.rows.pop()
        if math.isfinite(self.best_loss):
            self.rows.append([round(cost, 3), self.best_loss, round(seconds, 3)])


class AdamTrajectory:
    """Adam, epoch after epoch, on mini-batches or, where the setting has none, on the whole batch."""

    def __init__(self, task: Task, kind: str, rate: float) -> None:
        self.task = task
        self._device = task.objective.device
        # Fused, and on cuda captured: the same arithmetic in fewer calls, in favour of the seconds that stand for Adam.
        self._capturable = self._device.type == "cuda" and bool(task.setting.batch_size)
        self._captured: CapturedStep | None = None
        self.adam = ADAM[kind](task.model.parameters(), lr=rate, fused=True)
        self.order = torch.Generator().manual_seed(task.setting.seed)
        self.epoch, self.seconds, self.loss = 0, 0.0, math.nan
        self.curve = Curve(task.setting.budget)

    @property
    def done(self) -> bool:
        """Whether the budget is spent, or the loss no longer finite: then the best epoch stands."""
        diverged = self.epoch > 0 and not math.isfinite(self.loss)
        return diverged or self.epoch >= self.task.setting.budget

    def train(self, rate: Callable[[float], float] | None = None) -> None:
        """Take an epoch of steps; ``rate`` maps the epochs done, a fraction within an epoch, to the learning rate."""
        if self._capturable and self._captured is None:
            self._captured = CapturedStep(self.task.problem, self.adam)
            rows = self.task.problem.random_rows()
            self._captured.prepare(rows.of(torch.arange(rows.size)))
        begin = clock(self._device)
        adam_epoch(
            self.task.problem, self.adam, self.order, seed=0, epoch=self.epoch, learning_rate=rate, step=self._step
        )
        self.epoch += 1
        self.seconds += clock(self._device) - begin

    def _step(self, batch: Any) -> Tensor:
        if self._captured is not None:
            return self._captured(batch)
        self.adam.zero_grad()
        loss = backward(self.task.objective.training_loss, batch)
        if self.task.problem.whole_batch:
            self._record(float(loss))  # That of the weights before this step, at their cost.
        self.adam.step()
        return loss

    def measure(self, *, gradient: bool = False) -> Tensor | None:
        """Evaluate the loss for the record, neither charged nor timed, and return its gradient (n,) if asked.

        On the whole batch every step has done so, but for the last.
        """
        whole, objective = not self.task.setting.batch_size, self.task.objective
        if whole and self.epoch < self.task.setting.budget:
            return flatten(gradients(self.task.model)) if gradient else None
        loss, found = objective.value_and_gradient() if gradient else (objective.value(), None)
        self._record(loss)
        return found

    def state(self, cost: float) -> dict[str, Any]:
        """Return everything that a second phase starts from, at this cost."""
        return {
            "cost": cost,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "loss": self.loss,
            "weights": self.task.objective.flat_parameters(),
            "adam": self.adam.state_dict(),
            "order": self.order.get_state(),
            "rows": self.curve.rows,
            "best": (self.curve.best_loss, self.curve.best_cost, self.curve.best),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
        self.task.objective.write(state["weights"])
        self.adam.load_state_dict(state["adam"])
        self._captured = None  # It knows the moments that there were.
        self.order.set_state(state["order"])
        self.epoch, self.seconds, self.loss = state["epoch"], state["seconds"], state["loss"]
        self.curve.rows = state["rows"]
        self.curve.best_loss, self.curve.best_cost, self.curve.best = state["best"]

    def _record(self, loss: float) -> None:
        self.loss = loss
        self.curve.add(self.epoch, loss, self.seconds, self.task.objective.flat_parameters)


class Watch:
    """Tells the detector the norm of the full gradient, for as long as it can still decide within the budget.

    On mini-batches that costs a gradient an epoch, on the whole batch nothing: there Adam has it.
    """

    def __init__(self, trajectory: AdamTrajectory) -> None:
        setting = trajectory.task.setting
        self._trajectory, self._detector = trajectory, cl.GradientNormPeak()
        self._price = 1 if setting.batch_size else 0
        self._every = 1 if setting.batch_size else max(1, setting.budget // _ASKED)

    @property
    def cost(self) -> int:
        """What Adam and detector have cost together."""
        return self._trajectory.epoch * (1 + self._price)

    @property
    def told(self) -> dict[str, Any]:
        """When it fired, if it did, and why."""
        detector = self._detector
        return {"epoch": detector.epoch * self._every if detector.fired else None, "reason": detector.reason}

    def measure(self) -> bool:
        """Measure the epoch just done, and return whether this is the switch."""
        trajectory, detector = self._trajectory, self._detector
        asks = not detector.fired and self.cost + 2 <= trajectory.task.setting.budget
        asks = asks and trajectory.epoch % self._every == 0
        gradient = trajectory.measure(gradient=asks)
        return gradient is not None and detector.update(loss=trajectory.loss, gradient_norm=float(norm(gradient)))


def cosine(rate: float, start: float, end: float) -> Callable[[float], float]:
    """Return the learning rate over the epochs done: a half cosine from ``rate`` to zero."""
    return lambda done: rate * 0.5 * (1 + math.cos(math.pi * (done - start) / (end - start)))

"""Adam along a problem, recorded epoch by epoch, with every state that a second phase may start from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from convexlab.detection.gradients import GradientStatistics
from convexlab.linalg.vectors import norm
from convexlab.problems import Problem
from convexlab.runs import Row
from convexlab.training.adam import adam_epoch
from convexlab.training.captured_step import CapturedStep

__all__ = ["AdamRun", "State"]


@dataclass(frozen=True)
class State:
    """Where Adam stood after an epoch."""

    epoch: int
    weights: Tensor
    """(n,)."""
    adam: dict[str, Any]
    order: Tensor
    """State of the generator of the mini-batches' order."""
    best_loss: float
    """Lowest full loss at the end of an epoch until then."""
    largest_norm: float | None
    """Largest full gradient norm at the end of an epoch until then, without the start; None if no epoch is done."""


class AdamRun:
    """Adam from the problem's start at a constant rate.

    An epoch costs 1 gradient equivalent; on the whole batch, as many as it has steps. Full loss and gradient norm are
    measured for the record: whoever decides by them is charged for them.

    Args:
        problem: what is trained; its model is moved.
        rate: the learning rate.
        seed: of the mini-batches' order.
        steps: Adam steps that make an epoch on the whole batch.
        watched: whether the gradients of its mini-batches are looked at, for a detector.
        captured: whether its steps are replayed as graphs, where the device has any; then it is not watched.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        rate: float,
        seed: int,
        steps: int = 1,
        watched: bool = True,
        captured: bool = False,
    ) -> None:
        self.problem = problem
        self.epoch = 0
        self.epoch_cost = steps if problem.whole_batch else 1
        problem.reset()
        self.adam = torch.optim.Adam(problem.model.parameters(), lr=rate, fused=True)
        self.best_loss = math.inf
        self.largest_norm: float | None = None
        self._seed = seed
        self._statistics = GradientStatistics(self.adam) if watched and not captured else None
        self._order = torch.Generator().manual_seed(seed)
        self._step = CapturedStep(problem, self.adam) if captured else None

    @property
    def not_captured(self) -> str | None:
        """Why its steps are not replayed as graphs; None where they are, or that was not asked for."""
        return None if self._step is None else self._step.reason

    def train(self, learning_rate: float | None = None) -> float:
        """Take an epoch of steps, at another rate from now on if one is given, and return the mean loss over them."""
        rate = None if learning_rate is None else lambda done: learning_rate
        losses = [
            adam_epoch(
                self.problem,
                self.adam,
                self._order,
                seed=self._seed,
                epoch=self.epoch * self.epoch_cost + step,
                learning_rate=rate,
                watch=self._statistics,
                step=self._step,
            )
            for step in range(self.epoch_cost)
        ]
        self.epoch += 1
        return fmean(losses)

    def record(self, running_loss: float = math.nan) -> Row:
        """Measure at the present weights, and return what a detector may use of the epoch."""
        loss, gradient = self.problem.objective.value_and_gradient()
        gradient_norm = float(norm(gradient))
        self.best_loss = min(self.best_loss, loss)
        if self.epoch:
            self.largest_norm = max(self.largest_norm or 0.0, gradient_norm)
        row: Row = {
            "epoch": self.epoch,
            "cost": self.epoch * self.epoch_cost,
            "train_loss": loss,
            "gradient_norm": gradient_norm,
        }
        row["running_loss"] = running_loss
        if self._statistics is not None:
            statistics = self._statistics.epoch()
            row |= {
                "batch_gradient_norm": statistics.batch_gradient_norm,
                "unbiased_gradient_norm": statistics.gradient_norm,
                "gradient_noise": statistics.gradient_noise,
                "projected_rate": statistics.projected_rate,
            }
        return row

    def state(self) -> State:
        """Return all that a second phase needs to start here."""
        adam = self.adam.state_dict()
        state = {
            key: {name: value.clone() for name, value in moments.items()} for key, moments in adam["state"].items()
        }
        weights = self.problem.objective.flat_parameters()
        order = self._order.get_state()
        return State(self.epoch, weights, adam | {"state": state}, order, self.best_loss, self.largest_norm)

    def restore(self, state: State) -> None:
        """Go back to such a state."""
        self.problem.objective.write(state.weights)
        self.adam.load_state_dict(state.adam)
        if self._step is not None:
            self._step = CapturedStep(self.problem, self.adam)
        self._order.set_state(state.order)
        self.epoch, self.best_loss, self.largest_norm = state.epoch, state.best_loss, state.largest_norm

"""One training trajectory: weights, optimisers, what was spent, and the best point so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from convexlab.detection import Watch
from convexlab.detection.gradients import GradientStatistics
from convexlab.errors import FailureError
from convexlab.linalg.vectors import norm
from convexlab.machine.random_state import fixed_random_state
from convexlab.optim.flat import FlatOptimizer
from convexlab.problems import Problem
from convexlab.runs import Row
from convexlab.training.journal import Journal
from convexlab.training.second_phase import Step

__all__ = ["Trajectory", "backward"]


def backward(loss: Callable[[Tensor], Tensor], rows: Tensor, watch: GradientStatistics | Watch | None = None) -> Tensor:
    """Add the gradient of the mean loss of some examples (m,) to the parameters', and return that loss, detached.

    With a watch it does so in two halves, which is no more arithmetic, and tells it of the first: their product is free
    of the mini-batch's noise.
    """
    if watch is None or len(rows) < 2:
        whole = loss(rows)
        whole.backward()
        return whole.detach()
    first, second = rows.tensor_split(2)
    parts = []
    for half in (first, second):
        part = loss(half) * (len(half) / len(rows))
        part.backward()
        parts.append(part.detach())
        if half is first:
            watch.accumulated()
    return parts[0] + parts[1]


class Trajectory:
    """The state of one run ("two-phase" or a baseline), saved after every epoch.

    What an algorithm uses is charged in gradient equivalents under a purpose ("adam", "detector", a second phase's
    name). Measuring loss and gradient norm for the record alone is not.
    """

    def __init__(self, name: str, problem: Problem, journal: Journal, *, lr: float, batch_size: int, seed: int) -> None:
        """Begin at the problem's present weights."""
        self.name = name
        self.problem = problem
        self.journal = journal
        self.adam = torch.optim.Adam(problem.model.parameters(), lr=lr)
        self.second: FlatOptimizer | None = None
        self.epoch = 0
        self.phase = "start"
        self.costs: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.train_loss = math.nan
        self.gradient_norm = math.nan
        self.notes: dict[str, Any] = {}
        self._seed = seed
        self._batch_size = batch_size
        self._order = torch.Generator().manual_seed(seed)
        self._best_loss = math.inf
        self._best_epoch = 0
        self._best = self._state()

    @property
    def cost(self) -> float:
        """Gradient equivalents charged so far."""
        return sum(self.costs.values())

    @property
    def best_loss(self) -> float:
        """The lowest training loss so far."""
        return self._best_loss

    def charge(self, purpose: str, gradient_equivalents: float) -> None:
        """Add to what was spent."""
        self.costs[purpose] = self.costs.get(purpose, 0.0) + gradient_equivalents

    @contextmanager
    def timed(self, purpose: str) -> Iterator[None]:
        """Add the block's wall-clock time to a purpose."""
        begin = time.perf_counter()
        yield
        self.seconds[purpose] = self.seconds.get(purpose, 0.0) + time.perf_counter() - begin

    def adam_epoch(
        self, learning_rate: Callable[[float], float] | None = None, watch: GradientStatistics | Watch | None = None
    ) -> float:
        """Take one epoch of Adam steps over the shuffled training set, and return the mean of their losses.

        Args:
            learning_rate: maps the epochs done, a fraction within an epoch, to the rate; None keeps it.
            watch: looks on; it is given each step's gradient in two halves.
        """
        problem, size, losses = self.problem, self._batch_size, []
        watch = watch if self._divisible else None
        problem.model.train()
        order = torch.randperm(len(problem.y), generator=self._order).to(problem.y.device)
        # Dropout draws from the global generator: the same after a resume, and nothing of the caller's.
        with self.timed("adam"), fixed_random_state(problem.y.device, (self._seed + self.epoch * 2**31) % 2**63):
            for step, rows in enumerate(order.split(size)):
                if learning_rate is not None:
                    self.adam.param_groups[0]["lr"] = learning_rate(self.epoch + step * size / len(order))
                self.adam.zero_grad()
                losses.append(backward(self._loss, rows, watch))
                self.adam.step()
        self.charge("adam", 1.0)
        self.epoch += 1
        self.phase = "adam"
        return float(torch.stack(losses).mean())

    def take(self, phase: str, step: Step) -> None:
        """Take in a step of the second phase.

        Raises:
            FailureError: its loss or gradient is not finite.
        """
        self.charge(phase, step.cost)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + step.seconds
        self.epoch += 1
        self.phase = phase
        self._stand(step.loss, step.gradient_norm)

    def measure(self) -> None:
        """Evaluate the loss and its gradient over the whole training set, for the record.

        Raises:
            FailureError: one of them is not finite.
        """
        loss, gradient = self.problem.objective.value_and_gradient()
        self._stand(loss, float(norm(gradient)))

    def _stand(self, loss: float, gradient_norm: float) -> None:
        self.train_loss, self.gradient_norm = loss, gradient_norm
        if loss < self._best_loss:
            self._best_loss, self._best_epoch = loss, self.epoch
            self._best = self._state()
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise FailureError(
                f"the training loss became {loss} in epoch {self.epoch} of {self.name}. Try a smaller --lr."
            )

    def row(self, name: str | None = None, purposes: tuple[str, ...] | None = None) -> Row:
        """Return this epoch's line of ``metrics.jsonl``, under another name and for some purposes if asked."""
        costs = self.costs if purposes is None else {key: self.costs.get(key, 0.0) for key in purposes}
        seconds = self.seconds if purposes is None else {key: self.seconds.get(key, 0.0) for key in purposes}
        return {
            "run": name or self.name,
            "phase": self.phase,
            "epoch": self.epoch,
            "gradient_equivalents": sum(costs.values()),
            "seconds": sum(seconds.values()),
            "train_loss": self.train_loss,
            "gradient_norm": self.gradient_norm,
        }

    def summary(self) -> Row:
        """Return the performance at the epoch of the lowest training loss, with all that was spent."""
        present = self._state()
        self.problem.model.load_state_dict(self._best)
        performance = asdict(self.problem.performance())
        self.problem.model.load_state_dict(present)
        return performance | {
            "gradient_equivalents": self.cost,
            "seconds": sum(self.seconds.values()),
            "epoch": self._best_epoch,
            "cost_breakdown": dict(self.costs),
        }

    def save(self, name: str | None = None) -> None:
        """Store the whole state, so that training can go on from here."""
        second = None if self.second is None else self.second.state_dict()
        self.journal.save(
            name or self.name,
            {
                "epoch": self.epoch,
                "phase": self.phase,
                "costs": self.costs,
                "seconds": self.seconds,
                "notes": self.notes,
                "measured": [self.train_loss, self.gradient_norm],
                "best": [self._best_loss, self._best_epoch, self._best],
                "weights": self._state(),
                "adam": self.adam.state_dict(),
                "second": second,
                "order": self._order.get_state(),
            },
        )

    def save_adam(self, name: str) -> None:
        """Store the state under another name as Adam alone would have it: without a detector's cost, and no notes."""
        costs, seconds, notes = self.costs, self.seconds, self.notes
        self.costs = {"adam": costs.get("adam", 0.0)}
        self.seconds = {"adam": seconds.get("adam", 0.0)}
        self.notes = {}
        self.save(name)
        self.costs, self.seconds, self.notes = costs, seconds, notes

    def restore(self, state: dict[str, Any], second: Callable[[torch.optim.Adam], FlatOptimizer]) -> None:
        """Take up a stored state; ``second`` builds the second phase's optimiser from Adam if the state has one."""
        self.epoch, self.phase = state["epoch"], state["phase"]
        self.costs, self.seconds, self.notes = dict(state["costs"]), dict(state["seconds"]), dict(state["notes"])
        self.train_loss, self.gradient_norm = state["measured"]
        self._best_loss, self._best_epoch, self._best = state["best"]
        self.problem.model.load_state_dict(state["weights"])
        self.adam.load_state_dict(state["adam"])
        if state["second"] is not None:
            self.second = second(self.adam)
            self.second.load_state_dict(state["second"])
        self._order.set_state(state["order"])

    @property
    def _divisible(self) -> bool:
        """Whether a mini-batch's gradient is the mean of its halves': not with batch normalisation."""
        return not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.problem.model.modules())

    def _loss(self, rows: Tensor) -> Tensor:
        problem = self.problem
        return problem.loss(problem.model(problem.x[rows]), problem.y[rows])

    def _state(self) -> dict[str, Tensor]:
        """Return a copy of the model's parameters and buffers."""
        return {name: tensor.detach().clone() for name, tensor in self.problem.model.state_dict().items()}

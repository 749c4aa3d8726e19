"""One training trajectory: weights, optimisers, what was spent, and the best point so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convexlab.detection import Watch
from convexlab.errors import FailureError
from convexlab.linalg.vectors import norm
from convexlab.optim.flat import FlatOptimizer
from convexlab.problems import Problem
from convexlab.runs import Row
from convexlab.runs.rows import EpochRow
from convexlab.training.adam import adam_epoch
from convexlab.training.second_phase import Step

__all__ = ["Account", "Best", "Trajectory"]

_ADAM = "adam"


@dataclass
class Account:
    """What was spent, by purpose: "adam", "detector", a second phase's name."""

    costs: dict[str, float] = field(default_factory=dict)
    """Gradient equivalents."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """Gradient equivalents in all."""
        return sum(self.costs.values())

    def charge(self, purpose: str, cost: float, seconds: float = 0.0) -> None:
        """Add to what was spent."""
        self.costs[purpose] = self.costs.get(purpose, 0.0) + cost
        self.seconds[purpose] = self.seconds.get(purpose, 0.0) + seconds

    @contextmanager
    def timed(self, purpose: str) -> Iterator[None]:
        """Add the block's wall-clock time to a purpose."""
        begin = time.perf_counter()
        yield
        self.seconds[purpose] = self.seconds.get(purpose, 0.0) + time.perf_counter() - begin

    def of_adam(self) -> Account:
        """Return what Adam alone has spent."""
        return Account({_ADAM: self.costs.get(_ADAM, 0.0)}, {_ADAM: self.seconds.get(_ADAM, 0.0)})


@dataclass
class Best:
    """The point of the lowest training loss so far."""

    loss: float = math.inf
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Parameters and buffers by name."""


class Trajectory:
    """The state of one run ("two-phase" or a baseline).

    What an algorithm uses is charged in gradient equivalents. Measuring loss and gradient norm for the record alone is
    not.
    """

    def __init__(
        self, name: str, problem: Problem, *, lr: float, seed: int, adam: torch.optim.Adam | None = None
    ) -> None:
        """Begin at the problem's present weights; None makes an Adam of all of them."""
        self.name = name
        self.problem = problem
        self.adam = adam or torch.optim.Adam(problem.model.parameters(), lr=lr)
        self.second: FlatOptimizer | None = None
        self.vector_seconds = 0.0
        """Seconds of the second phase beside the loss and its gradients."""
        self.epoch = 0
        self.phase = "start"
        self.account = Account()
        self.train_loss = math.nan
        self.gradient_norm = math.nan
        self.best = Best(weights=_weights(problem.model))
        self.switch: Row | None = None
        """The switch, as in the summary, once it is decided."""
        self.safe_resort: Row | None = None
        """Epoch and reason, once the second phase was given up."""
        self.resort: dict[str, Any] = {}
        """State of the rules that give the second phase up."""
        self.watch: Mapping[str, float] = {}
        """State of the watch that measures for the detector."""
        self.diverged: int | None = None
        """The epoch in which the loss or its gradient became infinite or NaN."""
        self._seed = seed
        self._order = torch.Generator().manual_seed(seed)

    @property
    def cost(self) -> float:
        """Gradient equivalents charged so far."""
        return self.account.cost

    def adam_epoch(self, learning_rate: Callable[[float], float] | None = None, watch: Watch | None = None) -> float:
        """Take one epoch of Adam, and return the mean loss of its steps; see `convexlab.training.adam.adam_epoch`.

        On the whole batch the step's loss is that of the weights before it, which may be the best so far. So no epoch
        of Adam's is missed, however few are measured.
        """
        before = _weights(self.problem.model) if self.problem.steps_tell_the_loss else None
        with self.account.timed(_ADAM):
            loss = adam_epoch(
                self.problem,
                self.adam,
                self._order,
                seed=self._seed,
                epoch=self.epoch,
                learning_rate=learning_rate,
                watch=watch,
            )
        if before is not None and loss < self.best.loss:
            self.best = Best(loss, self.epoch, before)
        self.take_adam_epoch(1.0)
        return loss

    def take_adam_epoch(self, cost: float, seconds: float = 0.0) -> None:
        """Take in an epoch of Adam's that was made."""
        self.account.charge(_ADAM, cost, seconds)
        self.epoch += 1
        self.phase = _ADAM

    def take(self, phase: str, step: Step) -> None:
        """Take in a step of the second phase.

        Raises:
            FailureError: its loss or gradient is not finite.
        """
        self.account.charge(phase, step.cost, step.seconds)
        self.vector_seconds += step.vector_seconds
        self.epoch += 1
        self.phase = phase
        self.stand(step.loss, step.gradient_norm)
        if step.given_up is not None:
            self.safe_resort = {"epoch": self.epoch, "reason": step.given_up}

    def measure(self) -> tuple[float, float]:
        """Evaluate the loss and its gradient over the whole training set, for the record; return it and the norm.

        Raises:
            FailureError: one of them is not finite.
        """
        loss, gradient = self.problem.objective.value_and_gradient()
        self.stand(loss, float(norm(gradient)))
        return self.train_loss, self.gradient_norm

    @contextmanager
    def until_it_diverges(self) -> Iterator[None]:
        """End the block, and not the run, where the loss became infinite or NaN: the best point stands."""
        try:
            yield
        except FailureError:
            if self.diverged is None:
                raise

    def row(self, name: str | None = None, account: Account | None = None) -> EpochRow:
        """Return this epoch's row of ``metrics.jsonl``, under another name and account if asked."""
        account = account or self.account
        return EpochRow(
            run=name or self.name,
            phase=self.phase,
            epoch=self.epoch,
            gradient_equivalents=account.cost,
            seconds=sum(account.seconds.values()),
            train_loss=self.train_loss,
            gradient_norm=self.gradient_norm,
        )

    def summary(self) -> Row:
        """Return the validation's numbers at the epoch of the lowest training loss, with all that was spent."""
        present = _weights(self.problem.model)
        self.problem.model.load_state_dict(self.best.weights)
        measures = self.problem.measures()
        self.problem.model.load_state_dict(present)
        spent: Row = {"gradient_equivalents": self.cost, "seconds": sum(self.account.seconds.values())}
        if self.second is not None:
            spent["vector_seconds"] = self.vector_seconds
        return (
            {"train_loss": self.best.loss}
            | measures
            | spent
            | {"epoch": self.best.epoch, "cost_breakdown": dict(self.account.costs)}
            | ({} if self.diverged is None else {"diverged": self.diverged})
        )

    def state(self) -> dict[str, Any]:
        """Return all that training goes on from: numbers, strings and tensors."""
        notes = {
            "switch": self.switch,
            "safe_resort": self.safe_resort,
            "watch": dict(self.watch),
            "vector_seconds": self.vector_seconds,
        } | self.resort
        return self._state(self.account, {name: note for name, note in notes.items() if note})

    def adam_state(self) -> dict[str, Any]:
        """Return the state as Adam alone would have it: without a detector's cost, and nothing decided."""
        return self._state(self.account.of_adam(), {})

    def restore(self, state: Mapping[str, Any], second: Callable[[torch.optim.Adam], FlatOptimizer]) -> None:
        """Take up a stored state; ``second`` builds the second phase's optimiser from Adam if the state has one."""
        self.epoch, self.phase = state["epoch"], state["phase"]
        self.account = Account(dict(state["costs"]), dict(state["seconds"]))
        self.train_loss, self.gradient_norm = state["measured"]
        self.best = Best(*state["best"])
        notes = dict(state["notes"])
        self.switch, self.safe_resort = notes.pop("switch", None), notes.pop("safe_resort", None)
        self.vector_seconds = notes.pop("vector_seconds", 0.0)
        self.watch, self.resort = notes.pop("watch", {}), notes
        self.problem.model.load_state_dict(state["weights"])
        self.adam.load_state_dict(state["adam"])
        if state["second"] is not None:
            self.second = second(self.adam)
            self.second.load_state_dict(state["second"])
        self._order.set_state(state["order"])

    def _state(self, account: Account, notes: dict[str, Any]) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "phase": self.phase,
            "costs": account.costs,
            "seconds": account.seconds,
            "notes": notes,
            "measured": [self.train_loss, self.gradient_norm],
            "best": [self.best.loss, self.best.epoch, self.best.weights],
            "weights": _weights(self.problem.model),
            "adam": self.adam.state_dict(),
            "second": None if self.second is None else self.second.state_dict(),
            "order": self._order.get_state(),
        }

    def stand(self, loss: float, gradient_norm: float) -> None:
        """Take in what was measured where the model stands.

        Raises:
            FailureError: one of them is not finite.
        """
        self.train_loss, self.gradient_norm = loss, gradient_norm
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            if self.epoch == 0:
                raise FailureError(
                    f"the training loss is {loss}, its gradient's norm {gradient_norm}, before the first step. Look "
                    "for a NaN or an infinity in the data, in the initial weights and in the loss itself."
                )
            self.diverged = self.epoch
            what = f"gradient's norm became {gradient_norm}" if math.isfinite(loss) else f"training loss became {loss}"
            raise FailureError(f"the {what} in epoch {self.epoch} of {self.name}. Try a smaller --lr.")
        if loss < self.best.loss:
            self.best = Best(loss, self.epoch, _weights(self.problem.model))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the model's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

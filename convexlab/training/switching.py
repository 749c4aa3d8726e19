"""The second phase from one of Adam's states, within what is left of a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from convexlab.training.adam import AdamRun, State
from convexlab.training.phases import PATIENCE, PhaseTwo

__all__ = ["Ending", "switch_at"]


@dataclass(frozen=True)
class Ending:
    """What a switch led to."""

    loss: float
    """Lowest training loss within the budget, Adam's before the switch included: anyone can keep those weights."""
    cost: float
    """Gradient equivalents in all."""
    resorted: bool
    """Whether the second phase failed and Adam took the rest."""
    weights: Tensor
    """(n,), where the second phase ended."""
    curve: list[tuple[float, float]]
    """(gradient equivalents in all, loss) of every evaluation of the second phase, and of every epoch after it."""


class _BudgetSpentError(Exception):
    """Ends a step from within its closure."""


def _unseen(spent: float) -> None:
    """Look at nothing."""


def switch_at(
    run: AdamRun,
    state: State,
    phase: PhaseTwo,
    *,
    budget: float,
    spent: float,
    look: Callable[[float], None] = _unseen,
) -> Ending:
    """Start the second phase from one of Adam's states and go on until the budget is spent.

    Args:
        run: Adam's run, which is moved.
        state: where it is taken up.
        phase: the second phase.
        budget: gradient equivalents in all.
        spent: of these, what Adam and the detector have taken already.
        look: called with what is spent after every step of the second phase, and every epoch after it; the model is
            where it has arrived.
    """
    run.restore(state)
    objective, best = run.task.objective, state.best_loss
    curve: list[tuple[float, float]] = []
    second = phase.build(run.task.model.parameters(), run.adam, run.task.examples)

    def take(loss: float) -> None:
        nonlocal best
        best = min(best, loss) if math.isfinite(loss) else best
        curve.append((spent, loss))

    def closure(*, backward: bool = True) -> Tensor:
        nonlocal spent
        price = 1.0 if backward else 1 / 3
        if spent + price > budget + 1e-9:
            raise _BudgetSpentError
        spent += price
        loss = objective.closure(backward=backward)
        take(float(loss))
        return loss

    failures = 0
    while failures < PATIENCE and spent + 1.0 <= budget + 1e-9:
        second.param_groups[0]["max_evaluations"] = max(1, int((budget - spent) / phase.search_cost + 1e-9))
        try:
            second.step(closure)
        except _BudgetSpentError:
            break
        report = getattr(second, "report", None)  # Which only ours write.
        failures = failures + 1 if report is not None and report.failed else 0
        look(spent)
    weights = objective.flat_parameters()
    while failures >= PATIENCE and spent + run.epoch_cost <= budget + 1e-9:
        run.train()
        spent += run.epoch_cost
        take(objective.value())
        weights = objective.flat_parameters()
        look(spent)
    return Ending(best, spent, failures >= PATIENCE, weights, curve)

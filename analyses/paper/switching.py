"""The second phase from one of Adam's states, within what is left of a budget; Adam again where that does not pay."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from convexlab.training.phases import PhaseTwo
from convexlab.training.second_phase import Resort, Step, second_phase_steps
from paper.adam_run import AdamRun, State

__all__ = ["Ending", "followed", "switch_at"]


@dataclass(frozen=True)
class Ending:
    """What a switch led to."""

    loss: float
    """Lowest training loss within the budget, Adam's before the switch included: anyone can keep those weights."""
    cost: float
    """Gradient equivalents in all."""
    resorted: str | None
    """None, or why the second phase was given up and Adam took the rest."""
    weights: Tensor
    """(n,), where the run ended."""
    curve: list[tuple[float, float]]
    """(gradient equivalents in all, loss) of every step of the second phase, and of every epoch after it."""


def followed(run: AdamRun, phase: PhaseTwo, *, budget: float, steps: int | None = None) -> Iterator[Step]:
    """Go on with a second phase from where Adam's run stands, and with Adam again if it is given up.

    Args:
        run: is moved.
        phase: the second phase.
        budget: gradient equivalents from here on.
        steps: at most, epochs of Adam behind the second phase included; None is as many as the budget pays.

    Yields:
        Every step of the second phase, then every epoch of Adam; ``given_up`` stands in the last step of the former.
    """
    optimizer = phase.build(run.problem.model.parameters(), run.adam, run.problem.examples or 1)
    resort, spent, given_up, done = Resort.of(run.problem, run.largest_norm), 0.0, None, 0
    steps_taken = second_phase_steps(optimizer, phase, run.problem.objective, resort, budget=budget)
    for done, step in enumerate(steps_taken, start=1):
        spent, given_up = spent + step.cost, step.given_up
        yield step
        if done == steps:
            return
    while given_up and spent + run.epoch_cost <= budget + 1e-9 and done != steps:
        begin = time.perf_counter()
        run.train()
        seconds, row = time.perf_counter() - begin, run.record()
        spent, done = spent + run.epoch_cost, done + 1
        yield Step(float(run.epoch_cost), seconds, row["train_loss"], row["gradient_norm"], None, None)


def switch_at(run: AdamRun, state: State, phase: PhaseTwo, *, budget: float, spent: float) -> Ending:
    """Start the second phase from one of Adam's states and go on until the budget is spent.

    Args:
        run: Adam's run, which is moved.
        state: where it is taken up.
        phase: the second phase.
        budget: gradient equivalents in all.
        spent: of these, what Adam and the detector have taken already.
    """
    run.restore(state)
    best, resorted = state.best_loss, None
    curve: list[tuple[float, float]] = []
    for step in followed(run, phase, budget=budget - spent):
        spent += step.cost
        curve.append((spent, step.loss))
        best = min(best, step.loss) if math.isfinite(step.loss) else best
        resorted = resorted or step.given_up
    return Ending(best, spent, resorted, run.problem.objective.flat_parameters(), curve)

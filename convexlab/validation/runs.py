"""One run of the validation study: Adam, the truth along it, every switch, and what each rule decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor

from convexlab.probing import ProbeOptions
from convexlab.progress import Listener, Progress, silent
from convexlab.runs import Row
from convexlab.training.phase_two import DEFAULT_PHASE_TWO, phase_two
from convexlab.validation.adam import AdamRun, State
from convexlab.validation.candidates import CANDIDATES, Candidate, Firing, replay
from convexlab.validation.switching import switch_at
from convexlab.validation.tasks import Task
from convexlab.validation.truth import curvature_at, segment_between

__all__ = ["Plan", "validate_run"]


@dataclass(frozen=True)
class Plan:
    """How one task is run."""

    epochs: int
    """Of Adam; with ``steps`` they are the budget."""
    rate: float
    """Adam's learning rate."""
    seed: int
    steps: int = 1
    """Steps in an epoch on the whole batch."""
    switch_every: int = 5
    """Epochs between two of the switches that the oracle chooses from."""
    truth_every: int = 5
    """Epochs between two points whose curvature is measured."""
    phase: str = DEFAULT_PHASE_TWO
    probe: ProbeOptions = field(default_factory=lambda: ProbeOptions(density_probes=1))


def validate_run(
    task: Task, plan: Plan, candidates: Sequence[Candidate] = CANDIDATES, progress: Listener = silent
) -> Row:
    """Train, measure and switch; everything that the study needs of this run, as JSON can hold it.

    Returns:
        ``rows`` (of every epoch), ``truth`` and ``segments`` (of every ``truth_every``-th), ``endings`` (by epoch and
        cost, of every ``switch_every``-th epoch and where a rule fired), ``firings`` (by rule), ``adam`` (its lowest
        loss), ``minimum`` (the truth where the best switch ended).
    """
    run = AdamRun(task, rate=plan.rate, seed=plan.seed, steps=plan.steps)
    budget = float(plan.epochs * run.epoch_cost)
    states, rows = _adam(run, plan, progress)
    truth = {}
    for epoch in range(0, len(states), plan.truth_every):
        progress(Progress("curvature", epoch, len(states)))
        truth[epoch] = curvature_at(task, states[epoch].weights, plan.probe)
    marks = list(truth)
    segments = [
        {"begin": a, "end": b} | segment_between(task, states[a].weights, states[b].weights) for a, b in pairwise(marks)
    ]
    whole = not task.batch_size
    firings = {one.label: replay(one, rows[1:], truth, whole_batch=whole, budget=budget) for one in candidates}
    endings, best = _endings(run, states, firings, plan, budget, progress)
    minimum = curvature_at(task, best, plan.probe)
    return {
        "parameters": task.objective.size,
        "examples": task.examples,
        "budget": budget,
        "rows": rows,
        "truth": [{"epoch": epoch} | row for epoch, row in truth.items()],
        "segments": segments,
        "firings": {
            label: {"epoch": one.epoch, "reason": one.reason, "spent": one.spent, "factor": one.factor}
            for label, one in firings.items()
        },
        "endings": endings,
        "adam": min(state.best_loss for state in states),
        "minimum": minimum,
    }


def _adam(run: AdamRun, plan: Plan, progress: Listener) -> tuple[list[State], list[Row]]:
    """Return the states and records after 0, 1, ... epochs; fewer if the loss became infinite."""
    rows, states = [run.record()], [run.state()]
    while run.epoch < plan.epochs:
        row = run.record(run.train())
        if not math.isfinite(row["train_loss"]):
            break
        rows.append(row)
        states.append(run.state())
        progress(Progress("adam", run.epoch, plan.epochs))
    return states, rows


def _endings(
    run: AdamRun, states: list[State], firings: dict[str, Firing], plan: Plan, budget: float, progress: Listener
) -> tuple[list[Row], Tensor]:
    wanted = {
        (epoch, float(epoch * run.epoch_cost)) for epoch in range(plan.switch_every, len(states), plan.switch_every)
    }
    wanted |= {(one.epoch, one.spent) for one in firings.values() if one.epoch is not None}
    best, lowest, endings = states[-1].weights, math.inf, []
    for done, (epoch, spent) in enumerate(sorted(wanted)):
        if spent >= budget:
            continue
        progress(Progress("switches", done, len(wanted)))
        ending = switch_at(run, states[epoch], phase_two(plan.phase), budget=budget, spent=spent)
        endings.append(
            {"epoch": epoch, "spent": spent, "loss": ending.loss, "resorted": ending.resorted, "curve": ending.curve}
        )
        if ending.loss < lowest:
            best, lowest = ending.weights, ending.loss
    return endings, best

"""One run of the validation study: Adam, the truth along it, every switch, and what each rule decided."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from convexlab.probing import ProbeOptions
from convexlab.problems import Problem
from convexlab.progress import Listener, Progress, silent
from convexlab.runs import Row
from convexlab.training.phases import LARGE, phase_two
from paper.adam_run import AdamRun, State
from paper.rules import RULES, Decision, Rule, replay
from paper.switching import Ending, switch_at
from paper.truth import curvature_at, segment_between

__all__ = ["ValidationPlan", "decided", "validate_run"]


@dataclass(frozen=True)
class ValidationPlan:
    """How one problem is run."""

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
    phase: str = LARGE
    probe: ProbeOptions = field(default_factory=lambda: ProbeOptions(density_probes=1))


def validate_run(
    problem: Problem,
    plan: ValidationPlan,
    rules: Sequence[Rule] = RULES,
    *,
    known: Row | None = None,
    progress: Listener = silent,
) -> Row:
    """Train, measure and switch; everything that the study needs of this run, as JSON can hold it.

    Args:
        problem: what is trained.
        plan: how.
        rules: the rules that are asked.
        known: what an earlier call with the same problem and plan returned: only what it lacks is done.
        progress: called with how far the work is.

    Returns:
        ``rows`` are of every epoch, ``truth`` and ``segments`` of every ``truth_every``-th. ``endings``, by epoch and
        cost, are of every ``switch_every``-th epoch and of those where a rule fired. ``decisions`` are by rule.
        ``adam`` is Adam's lowest loss, and ``minimum`` the truth where the best switch ended.
    """
    run, known = AdamRun(problem, rate=plan.rate, seed=plan.seed, steps=plan.steps), known or {}
    budget = float(plan.epochs * run.epoch_cost)
    states, rows = _adam(run, plan, progress)
    truth = {row["epoch"]: row for row in known.get("truth", [])}
    for epoch in range(0, len(states), plan.truth_every):
        progress(Progress("curvature", epoch, len(states)))
        if epoch not in truth:
            truth[epoch] = {"epoch": epoch} | curvature_at(problem, states[epoch].weights, plan.probe)
    segments = known.get("segments") or [
        {"begin": begin, "end": end} | segment_between(problem, states[begin].weights, states[end].weights)
        for begin, end in pairwise(truth)
    ]
    decisions = _decisions(rules, rows, truth, budget, whole_batch=problem.whole_batch)
    wanted = {
        (epoch, float(epoch * run.epoch_cost)) for epoch in range(plan.switch_every, plan.epochs, plan.switch_every)
    }
    wanted |= {(one.epoch, one.spent) for one in decisions.values() if one.epoch is not None}
    endings = {(one["epoch"], one["spent"]): one for one in known.get("endings", [])}
    before = min(endings.values(), key=_loss, default=None)
    lowest: Ending | None = None
    for done, (epoch, spent) in enumerate(sorted(wanted - endings.keys())):
        progress(Progress("switches", done, len(wanted)))
        if epoch >= len(states) or spent >= budget:
            continue
        ending = switch_at(run, states[epoch], phase_two(plan.phase), budget=budget, spent=spent)
        endings[epoch, spent] = {
            "epoch": epoch,
            "spent": spent,
            "loss": ending.loss,
            "resorted": ending.resorted,
            "curve": ending.curve,
        }
        lowest = ending if lowest is None or ending.loss < lowest.loss else lowest
    minimum = known.get("minimum")
    if lowest is not None and (minimum is None or before is None or lowest.loss < before["loss"]):
        minimum = curvature_at(problem, lowest.weights, plan.probe)
    return {
        "parameters": problem.objective.size,
        "examples": problem.examples,
        "whole_batch": problem.whole_batch,
        "budget": budget,
        "rows": rows,
        "truth": list(truth.values()),
        "segments": segments,
        "decisions": {label: asdict(one) for label, one in decisions.items()},
        "endings": [endings[key] for key in sorted(endings)],
        "adam": min(state.best_loss for state in states),
        "minimum": minimum,
    }


def decided(known: Row, rules: Sequence[Rule] = RULES) -> Row | None:
    """Return a record with every rule asked anew, or None where one fires from where no ending is known."""
    truth = {row["epoch"]: row for row in known["truth"]}
    decisions = _decisions(rules, known["rows"], truth, known["budget"], whole_batch=known["whole_batch"])
    endings = {(one["epoch"], one["spent"]) for one in known["endings"]}
    if any(one.epoch is not None and (one.epoch, one.spent) not in endings for one in decisions.values()):
        return None
    return known | {"decisions": {label: asdict(one) for label, one in decisions.items()}}


def _decisions(
    rules: Sequence[Rule], rows: Sequence[Row], truth: Mapping[int, Row], budget: float, *, whole_batch: bool
) -> dict[str, Decision]:
    # The start itself is no epoch.
    told = [{name: math.nan if value is None else value for name, value in row.items()} for row in rows[1:]]
    return {one.label: replay(one, told, truth, whole_batch=whole_batch, budget=budget) for one in rules}


def _loss(ending: Row) -> float:
    return float(ending["loss"])


def _adam(run: AdamRun, plan: ValidationPlan, progress: Listener) -> tuple[list[State], list[Row]]:
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

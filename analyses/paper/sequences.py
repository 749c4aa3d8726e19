"""The paper's alternative sequences of algorithms from one start, recorded step by step: its figures 5 and 6."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from convexlab.probing import ProbeOptions
from convexlab.problems import Problem
from convexlab.progress import Listener, Progress, silent
from convexlab.runs import Row
from convexlab.training.phases import phase_two
from paper.adam_run import AdamRun, State
from paper.protocols import ADAM, FIXED, PAPERS, ProtocolPlan
from paper.switching import followed
from paper.truth import curvature_at

__all__ = ["CG_ALONE", "Recording", "train_sequences"]

CG_ALONE = "cg"


@dataclass(frozen=True)
class Recording:
    """What is measured along the way for the record alone: neither charged nor timed."""

    every: int
    """Epochs of Adam, or steps of a second phase, between two points whose curvature is measured."""
    probe: ProbeOptions = field(default_factory=lambda: ProbeOptions(max_steps=16, density_probes=1))
    """A short Krylov run: enough for a witness of negative curvature, seldom for a verdict that there is none."""


def train_sequences(
    problem: Problem, plan: ProtocolPlan, recording: Recording, *, progress: Listener = silent
) -> dict[str, list[Row]]:
    """Train with Adam alone, as the paper does in two phases, with CG alone, and with our second phase.

    Each goes on for as many epochs or steps as the plan has, whatever they cost. The two-phase ones begin with Adam's
    first epochs, and their rows with the switch.

    Args:
        problem: what is trained; its model is moved.
        plan: how.
        recording: what is measured along the way.
        progress: called with how far the work is.

    Returns:
        Rows by sequence (`ADAM`, `PAPERS`, `FIXED`, `CG_ALONE`). A row has ``epoch`` (as the paper counts), ``cost``
        (gradient equivalents so far), ``seconds`` (of the processor, so far), ``train_loss`` and ``gradient_norm``.
        Where it was measured, it has ``curvature`` as of `curvature_at`.
    """
    run = AdamRun(problem, rate=plan.rate, seed=plan.seed, watched=False)
    start = run.state()

    def recorded(name: str, rows: Iterator[Row]) -> list[Row]:
        found = []
        for row in rows:
            progress(Progress(name, row["epoch"], plan.epochs))
            if row["epoch"] % recording.every == 0:
                here = problem.objective.flat_parameters()
                row["curvature"] = curvature_at(problem, here, recording.probe)
            found.append(row)
        return found

    states: dict[int, State] = {}
    adam = recorded(ADAM, _adam(run, plan, states))

    def second(name: str, phase: str, state: State) -> list[Row]:
        run.restore(state)
        return recorded(name, _steps(run, adam[state.epoch], phase, plan.epochs - state.epoch))

    switch = states[plan.switch]
    return {
        ADAM: adam,
        PAPERS: second(PAPERS, plan.papers, switch),
        FIXED: second(FIXED, plan.ours, switch),
        CG_ALONE: second(CG_ALONE, plan.papers, start),
    }


def _adam(run: AdamRun, plan: ProtocolPlan, states: dict[int, State]) -> Iterator[Row]:
    """Yield a row an epoch; leave the state at the switch."""
    seconds = 0.0
    while True:
        measured = run.record()
        if run.epoch == plan.switch:
            states[run.epoch] = run.state()
        yield {key: measured[key] for key in ("epoch", "cost", "train_loss", "gradient_norm")} | {"seconds": seconds}
        if run.epoch == plan.epochs:
            return
        begin = time.process_time()
        run.train()
        seconds += time.process_time() - begin


def _steps(run: AdamRun, opening: Row, phase: str, steps: int) -> Iterator[Row]:
    """Yield the opening row, then one a step of the second phase."""
    seconds, cost = opening["seconds"], opening["cost"]
    yield {key: value for key, value in opening.items() if key != "curvature"}
    if steps == 0:
        return
    following, epoch = followed(run, phase_two(phase), budget=math.inf, steps=steps), opening["epoch"]
    while True:
        begin = time.process_time()
        step = next(following, None)
        seconds += time.process_time() - begin
        if step is None:
            return
        epoch, cost = epoch + 1, cost + step.cost
        yield {
            "epoch": epoch,
            "cost": cost,
            "seconds": seconds,
            "train_loss": step.loss,
            "gradient_norm": step.gradient_norm,
        }

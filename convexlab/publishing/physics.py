"""A physics-informed network trained in two phases, as a run directory like those of `train_two_phase`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from convexlab.checkpoints import write_checkpoint
from convexlab.errors import MisuseError
from convexlab.linalg.vectors import norm
from convexlab.machine.environment import describe_environment
from convexlab.objective import Objective
from convexlab.problems.physics_informed import DifferentialEquation
from convexlab.problems.tasks import Task, physics
from convexlab.progress import Listener, Progress, silent
from convexlab.runs import Row, Run, write_json, write_json_lines
from convexlab.training.adam import AdamRun
from convexlab.training.phases import DEFAULT_PHASE_TWO, phase_two
from convexlab.training.switching import followed

__all__ = ["PhysicsPlan", "solution_quality", "train_physics"]


@dataclass(frozen=True)
class PhysicsPlan:
    """Everything that decides the run's numbers.

    Raises:
        MisuseError: the switch leaves nothing to the second phase.
    """

    objective: str
    """Name of the same loss for `build_objective`, which the checkpoints tell."""
    epochs: int
    """The budget, in epochs of ``steps`` gradient equivalents."""
    switch_epoch: int
    train_size: int
    """Random points in the interior."""
    steps: int = 20
    """Of Adam on the whole batch, that make an epoch; in the second phase an epoch is what costs as much."""
    lr: float = 1e-3
    phase_two: str = DEFAULT_PHASE_TWO
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.switch_epoch < self.epochs:
            raise MisuseError(
                f"expected a switch_epoch from 1 to {self.epochs - 1}, below the budget, got {self.switch_epoch}."
            )


def train_physics(out: Path, equation: DifferentialEquation, plan: PhysicsPlan, *, progress: Listener = silent) -> Run:
    """Train with Adam, then with the second phase, and keep the weights of every epoch.

    A run that is finished is returned as it is, one that was interrupted made again.

    Raises:
        MisuseError: the directory holds a finished run of another plan.
    """
    run, settings = Run(out), asdict(plan)
    if run.summary is not None:
        if run.config != settings:
            raise MisuseError(f"{str(out)!r} holds a run with other settings. Choose another directory, or delete it.")
        return run
    write_json(run.config_path, settings)
    task = physics(equation, points=plan.train_size, seed=plan.seed)
    recorder = _Recorder(run, task, plan, progress)
    adam = AdamRun(task, rate=plan.lr, seed=plan.seed, steps=plan.steps, watched=False)
    recorder.record("start", 0.0)
    while adam.epoch < plan.switch_epoch:
        adam.train()
        recorder.record("adam", float(adam.epoch * plan.steps))
    switch = recorder.rows[-1]
    spent, given_up = switch["gradient_equivalents"], None
    for step in followed(adam, phase_two(plan.phase_two), budget=float(plan.epochs * plan.steps) - spent):
        spent += step.cost
        given_up = given_up or step.given_up
        recorder.look(spent)
    write_json(run.summary_path, recorder.summary(equation, switch, given_up))
    return run


def solution_quality(
    objective: Objective, equation: DifferentialEquation, *, points: int, seed: int
) -> dict[str, float]:
    """Return the loss at other random points, as many, and the relative error of the solution."""
    fresh = equation.points(points, seed=seed + 1)
    loss = Objective.from_batch_loss(objective.model, [fresh], equation.loss).value()
    return {"validation_loss": loss, "relative_error": equation.relative_error(objective.model)}


class _Recorder:
    """Writes a row of ``metrics.jsonl`` and a checkpoint an epoch."""

    def __init__(self, run: Run, task: Task, plan: PhysicsPlan, progress: Listener) -> None:
        self.rows: list[Row] = []
        self._run, self._task, self._plan, self._progress = run, task, plan, progress
        self._begin = time.perf_counter()

    def look(self, spent: float) -> None:
        """Record where a step of the second phase has ended a further epoch."""
        if spent >= (self.rows[-1]["epoch"] + 1) * self._plan.steps:
            self.record(self._plan.phase_two, spent)

    def record(self, phase: str, spent: float) -> None:
        """Measure, for the record alone, and write; ``spent`` are the gradient equivalents so far."""
        seconds, plan = time.perf_counter() - self._begin, self._plan
        loss, gradient = self._task.objective.value_and_gradient()
        epoch = int(spent // plan.steps)
        self.rows.append(
            {
                "run": "two-phase",
                "phase": phase,
                "epoch": epoch,
                "gradient_equivalents": spent,
                "seconds": seconds,
                "train_loss": loss,
                "gradient_norm": float(norm(gradient)),
            }
        )
        self._begin += time.perf_counter() - self._begin - seconds  # Measuring is not training.
        described: Mapping[str, Any] = {
            "format": "convexlab",
            "objective": plan.objective,
            "train_size": plan.train_size,
            "seed": plan.seed,
            "dtype": "float32",
            "epoch": epoch,
            "phase": phase,
        }
        metadata = {key: str(value) for key, value in described.items()}
        write_checkpoint(self._run.checkpoint_path(epoch), self._task.model.state_dict(), metadata)
        write_json_lines(self._run.metrics_path, self.rows)
        self._progress(Progress("two-phase", epoch, plan.epochs, f"{phase}, loss {loss:.3g}"))

    def summary(self, equation: DifferentialEquation, switch: Row, given_up: str | None) -> Row:
        """Return what ``summary.json`` holds; loss and error are those of the last row."""
        plan, last, task = self._plan, self.rows[-1], self._task
        spent = {"adam": switch["gradient_equivalents"]}
        spent[plan.phase_two] = last["gradient_equivalents"] - spent["adam"]
        quality = solution_quality(task.objective, equation, points=plan.train_size, seed=plan.seed)
        return {
            "schema": 1,
            "model": {"name": "4 × 50 tanh units", "parameters": task.objective.size},
            "dataset": {"name": equation.description.partition(",")[0], "train_size": plan.train_size},
            "loss": "residual, initial and boundary error, squared",
            "budget": plan.epochs * plan.steps,
            "switch": {
                "epoch": switch["epoch"],
                "detector": "switch-epoch",
                "train_loss": switch["train_loss"],
                "gradient_norm": switch["gradient_norm"],
                "reason": f"fixed beforehand, after {plan.switch_epoch} epochs of {plan.steps} steps",
            },
            "safe_resort": {"epoch": last["epoch"], "reason": given_up} if given_up else None,
            "phase_two": plan.phase_two,
            "two_phase": quality
            | {
                "train_loss": last["train_loss"],
                "gradient_equivalents": last["gradient_equivalents"],
                "seconds": last["seconds"],
                "epoch": last["epoch"],
                "cost_breakdown": spent,
            },
            "baselines": {},
            "seed": plan.seed,
            "environment": describe_environment(torch.device("cpu"), "float32"),
        }

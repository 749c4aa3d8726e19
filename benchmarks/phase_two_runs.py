"""The runs of `phase_two.py`: which there are, and one of them from its start to its line of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from phase_two_adam import AdamTrajectory, Curve, Watch, cosine
from phase_two_problems import Setting, Task, build_task, clock
from phase_two_solvers import Meter, refusal, solve

from convexlab.linalg.vectors import norm
from convexlab.training.phases import LARGE

__all__ = [
    "ADAM_REST",
    "DETECTOR",
    "FRACTIONS",
    "RATES",
    "SOLVER_FRACTIONS",
    "SOLVER_RATE",
    "Run",
    "Seconds",
    "measure_seconds",
    "perform",
    "planned",
    "state_file",
]

RATES = (3e-4, 1e-3, 2e-3)
FRACTIONS = ("0.3", "0.5", "0.8", "0.9")
"""Of the budget, where the constant Adam's state is kept."""
DETECTOR = "detector"
"""The switch where `GradientNormPeak` has it, at the cost of what it is told."""
SOLVER_RATE, SOLVER_FRACTIONS = 1e-3, ("0.5", "0.8")
"""Where solvers are compared from."""
ADAM_REST = "adam-cosine-rest"
Seconds = tuple[float, float, float]
"""Of a gradient over all examples, of a value, and of an epoch of Adam."""
_ABSENT = "no state: the detector did not fire in time, or Adam diverged"


@dataclass(frozen=True)
class Run:
    """One line of the results, apart from its setting."""

    name: str
    """A key of `ADAM`, from the start; `ADAM_REST` or a key of `SOLVERS`, from a switch."""
    rate: float
    """Adam's learning rate."""
    switch: str | None = None
    """None from the start; else one of `FRACTIONS`, or `DETECTOR`: where the constant Adam hands over."""

    @property
    def key(self) -> str:
        """What identifies it within a setting."""
        return f"{self.name} {self.rate:g}" + (f" from {self.switch}" if self.switch else "")

    def share(self) -> float:
        """Return its part of the budget; roughly, where the detector decides."""
        if self.switch is None:
            return 1.0
        return 0.6 if self.switch == DETECTOR else 1.0 - float(self.switch)


def planned(
    stages: Sequence[str],
    *,
    adams: Sequence[str],
    rates: Sequence[float],
    switches: Sequence[str],
    solvers: Sequence[str],
) -> list[Run]:
    """Return the runs of the stages, each once, after those that they start from.

    Stages: a, Adam from the start; b, our default from every switch; c, the solvers from two switches at one rate.
    """
    runs = [Run(name, rate) for name in adams for rate in rates] if "a" in stages else []
    if "b" in stages:
        runs += [Run(LARGE, rate, switch) for rate in rates for switch in switches]
    if "c" in stages:
        fractions = [switch for switch in SOLVER_FRACTIONS if switch in switches]
        runs += [Run(name, SOLVER_RATE, switch) for switch in fractions for name in (*solvers, ADAM_REST)]
    needed = [Run("adam-constant", run.rate) for run in runs if run.switch]
    return list(dict.fromkeys([*needed, *runs]))


def measure_seconds(setting: Setting, device: str, repeats: int = 1) -> Seconds:
    """Return medians, after one call each."""
    task = build_task(setting, device)
    epoch = AdamTrajectory(task, "adam-constant", 0.0).train
    calls: list[Callable[[], object]] = [task.objective.gradient, task.objective.value, epoch]
    times: list[list[float]] = [[], [], []]
    for repeat in range(1 + repeats):
        for mine, call in zip(times, calls, strict=True):
            begin = clock(task.objective.device)
            call()
            if repeat:
                mine.append(clock(task.objective.device) - begin)
    gradient, value, train = map(median, times)
    return gradient, value, train


def perform(setting: Setting, run: Run, folder: Path, watched: bool, device: str) -> dict[str, Any]:
    """Make one run and return its line of the results; ``watched`` is whether the detector is asked along Adam."""
    task = build_task(setting, device)
    task.problem.reset()
    line = asdict(setting) | asdict(run) | {"key": run.key, "parameters": task.objective.size}
    if run.switch is None:
        return line | _adam(task, run, folder, watched)
    if reason := refusal(run.name, task):
        return line | {"absent": reason}
    file = state_file(folder, setting, run.rate, run.switch)
    if not file.exists():
        return line | {"absent": _ABSENT}
    # On the CPU, wherever it was made: the states of random generators stay there.
    trajectory, state = AdamTrajectory(task, "adam-constant", run.rate), torch.load(file, map_location="cpu")
    trajectory.restore(state)
    phase = _adam_rest if run.name == ADAM_REST else _second_phase
    return line | {"start": state["cost"]} | phase(run, trajectory, state["cost"])


def _adam(task: Task, run: Run, folder: Path, watched: bool) -> dict[str, Any]:
    setting, trajectory = task.setting, AdamTrajectory(task, run.name, run.rate)
    if run.name != "adam-constant":
        rate = cosine(run.rate, 0, setting.budget) if run.name == "adam-cosine" else None
        while not trajectory.done:
            trajectory.train(rate)
            trajectory.measure()
        return _adam_result(trajectory)
    stops = {max(1, round(float(part) * setting.budget)): part for part in FRACTIONS}
    watch = Watch(trajectory) if watched else None
    while not trajectory.done:
        trajectory.train()
        if watch is None:
            trajectory.measure()
        elif watch.measure():
            _save(state_file(folder, setting, run.rate, DETECTOR), trajectory.state(watch.cost))
        if trajectory.epoch in stops:
            _save(state_file(folder, setting, run.rate, stops[trajectory.epoch]), trajectory.state(trajectory.epoch))
    return _adam_result(trajectory) | {"detector": None if watch is None else watch.told}


def state_file(folder: Path, setting: Setting, rate: float, switch: str) -> Path:
    """Return where Adam's state at a switch is kept."""
    parts = setting.problem.replace("/", "-"), setting.train_size, setting.batch_size, setting.budget, setting.seed
    return folder / "states" / f"{'-'.join(map(str, parts))}-{rate:g}-{switch}.pt"


def _save(file: Path, state: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".part")
    torch.save(state, beside)
    beside.replace(file)


def _adam_result(trajectory: AdamTrajectory) -> dict[str, Any]:
    end = dict(zip(("end_validation_loss", "end_validation_accuracy"), trajectory.task.validate(), strict=True))
    spent = {"cost": trajectory.epoch, "seconds": trajectory.seconds, "end_loss": trajectory.loss}
    return spent | end | _at_best(trajectory.task, trajectory.curve)


def _adam_rest(run: Run, trajectory: AdamTrajectory, start: float) -> dict[str, Any]:
    """Let Adam go on with a rate that falls to zero over the rest of the budget."""
    budget = trajectory.task.setting.budget
    trajectory.curve = Curve(budget)
    trajectory.measure()
    rate = cosine(run.rate, start, budget)
    while not trajectory.done:
        trajectory.train(rate)
        trajectory.measure()
    return _adam_result(trajectory) | {"phase_loss": trajectory.curve.best_loss}


def _second_phase(run: Run, trajectory: AdamTrajectory, start: float) -> dict[str, Any]:
    task, whole = trajectory.task, trajectory.curve
    meter = Meter(task, task.setting.budget - start)
    outcome = solve(run.name, task, meter, trajectory.adam)
    line = {
        "cost": start + meter.spent,
        "seconds": trajectory.seconds + meter.seconds,
        "phase_seconds": meter.seconds,
        "phase_loss": meter.curve.best_loss,
        "stopped": outcome.stopped,
        "starts": outcome.starts,
        "not_finite": meter.not_finite,
        "evaluations": {str(count): steps for count, steps in sorted(outcome.evaluations.items())},
    }
    if outcome.stopped:
        line |= _rounding(task)
    # Adam's best weights before the switch count too: anyone can keep them.
    whole.extend(meter.curve, start, trajectory.seconds)
    return line | _at_best(task, whole)


def _rounding(task: Task) -> dict[str, float]:
    """Return the gradient's norm where the solver stopped, and how far it errs there in the model's own dtype."""
    exact = task.objective.in_dtype(torch.float64).gradient()
    error = task.objective.gradient().double() - exact
    return {"gradient_norm": float(norm(exact)), "rounding_floor": float(norm(error))}


def _at_best(task: Task, curve: Curve) -> dict[str, Any]:
    """Return the lowest training loss, the validation there, and the way to it."""
    line: dict[str, Any] = {"loss": curve.best_loss, "best_cost": curve.best_cost, "curve": curve.record()}
    if curve.best is None:
        return line
    task.objective.write(curve.best)
    loss, accuracy = task.validate()
    return line | {"validation_loss": loss, "validation_accuracy": accuracy}

"""A two-phase run inside another library's trainer, which drives the epochs; the part that all such trainers share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convexlab.detection import DEFAULT_DETECTOR, Signals, Watch
from convexlab.errors import FailureError, MisuseError
from convexlab.machine.environment import describe_process, dtype_name
from convexlab.objective import Objective
from convexlab.problems import Problem
from convexlab.runs import Run
from convexlab.training import TwoPhaseConfig, default_directory
from convexlab.training.hand_over import HandOver
from convexlab.training.journal import Journal
from convexlab.training.outcome import checkpoint_every, keep_best, write_summary, write_weights
from convexlab.training.phases import AUTO, choose_phase_two, trained_by
from convexlab.training.switch import detector_of, switch_row
from convexlab.training.trajectory import Trajectory

__all__ = ["HostedRun", "Settings"]

# In its second phase a trainer still takes a mini-batch an epoch, to move its own counters. It is charged, and followed
# by steps of at least so many times its cost.
_STEPS_OVER_BATCH = 10.0
_OWN_BATCHES = "the trainer's batches"
_RECORDS = 500  # Rows of the second phase, at most.
_ROUNDING = 1e-9  # Of gradient equivalents.


@dataclass(frozen=True, kw_only=True)
class Settings:
    """When to hand over, to what, and what may be spent on measuring."""

    out: str | Path | None = None
    """The run directory; None makes a new one under ``runs/``."""
    detector: str = DEFAULT_DETECTOR
    switch_epoch: int | None = None
    """Epochs before the switch; None leaves the decision to the detector."""
    phase_two: str = AUTO
    share: float = 0.05
    """Share of the cost of training for curvature along the gradient and both ends of the spectrum; see `Watch`."""
    examples: int = 256
    """Examples in the sample on which curvature is measured; with fewer, it is measured more often."""
    measure_every: int = 10
    """Epochs between two measurements of loss and gradient norm on all training examples, besides start, switch and
    end. Each takes the time of one gradient; as everywhere, what is measured for the record alone is not charged."""
    budget: float | None = None
    """Gradient equivalents, which are epochs; None is what the trainer was given."""
    validate: Callable[[], Mapping[str, float]] | None = None
    """As of `Problem`."""
    about: str = ""
    """The data in a few words, for the report."""

    def __post_init__(self) -> None:
        """Refuse what is out of range here, and nowhere else."""
        if self.measure_every < 1:
            raise MisuseError(f"expected measure_every of at least 1 epoch, got {self.measure_every!r}.")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise MisuseError(f"expected a budget in epochs, a positive number, got {self.budget!r}.")


class HostedRun:
    """Measures along the host's epochs, decides, takes the steps of the second phase, and keeps the run directory.

    The host calls `adam_epoch` after each of its epochs until `in_second_phase`. Then it calls `second_phase` instead,
    until `over`; from there on it takes no step. It calls `finish` at the end, however training ends.

    Args:
        host: the trainer's name.
        objective: the training loss.
        optimizer: the host's own Adam or AdamW.
        settings: see `Settings`.
        budget: gradient equivalents that the trainer was given; None where it knows no end.
        steps: that the trainer takes in an epoch.
        clipped: whether the host clips gradients.
        state: of `state_dict`, to go on from; weights and Adam are the host's to restore.

    Raises:
        MisuseError: the optimiser is no Adam or trains other parameters, no budget, a directory that is taken, or a
            setting out of range.
    """

    def __init__(
        self,
        host: str,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        settings: Settings,
        *,
        budget: float | None,
        steps: float,
        clipped: bool = False,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        parameters = trained_by(optimizer)
        assert isinstance(optimizer, torch.optim.Adam)
        _check_same(objective, parameters)
        budget = settings.budget or budget
        if budget is None:
            raise MisuseError(
                f"expected {host} to be given an end, in epochs or steps, got neither: pass budget=, in epochs."
            )
        problem = Problem(objective.model, objective, validate=settings.validate, about=settings.about)
        self.budget, self._batch_cost = float(budget), 1.0 / steps
        self._config = _config(problem, optimizer, settings, self.budget)
        self._choice = choose_phase_two(settings.phase_two, parameters)
        self._hand_over = HandOver(self._choice.name, self._choice.phase, problem, self.budget)
        if self._choice.phase.sampled:
            raise MisuseError(
                f"{self._choice.name} draws samples of rows in memory, which a trainer's loader does not give. Choose "
                "another phase_two."
            )
        self._settings, self._host = settings, host
        self._trajectory = Trajectory("two-phase", problem, lr=self._config.lr, seed=0, adam=optimizer)
        self._watch = Watch(
            objective,
            optimizer,
            detector=detector_of(self._config),
            share=settings.share,
            examples=settings.examples,
            every=1,
            clipped=clipped,
        )
        self._ended, self._evaluated, self._landmark = False, 0.0, -1
        self.run = _directory(self._config, settings.out, state)
        self._journal = Journal(self.run)
        self._begin(state)

    @property
    def in_second_phase(self) -> bool:
        """Whether the next steps are the second phase's."""
        return self._handed_over and not self.over

    @property
    def over(self) -> bool:
        """Whether the budget does not pay for what would come next, or nothing is left to gain."""
        least = self._batch_cost + self._choice.phase.search_cost if self._handed_over else 1.0
        return self._ended or self._trajectory.cost + least > self.budget + _ROUNDING

    def adam_epoch(self, loss: float | None, *, cost: float, seconds: float) -> dict[str, float]:
        """Take in an epoch of the host's own, and return its numbers by name.

        Args:
            loss: the mean over its mini-batches; None has it evaluated, which is charged to the detector.
            cost: gradient equivalents: 1 for an epoch over all examples.
            seconds: that it took.

        Raises:
            FailureError: the loss became infinite or NaN.
        """
        with self._keeping_rows():
            return self._adam_epoch(loss, cost, seconds)

    def _adam_epoch(self, loss: float | None, cost: float, seconds: float) -> dict[str, float]:
        trajectory, watch = self._trajectory, self._watch
        trajectory.take_adam_epoch(cost, seconds)
        signals: dict[str, float | None] = {}
        if trajectory.switch is None:
            if loss is None:
                loss = trajectory.problem.objective.value()
                self._evaluated += 1 / 3
            if not math.isfinite(loss):
                trajectory.stand(loss, math.nan)
            with trajectory.account.timed("detector"):
                watch.update(loss=loss, cost=cost)
            trajectory.account.costs["detector"] = watch.spent + self._evaluated
            signals = dict(vars(watch.history[-1]))
        decided = trajectory.switch is None and (watch.fired or self.over)
        landmark = decided or self.over
        if landmark or trajectory.epoch % self._settings.measure_every == 0:
            trajectory.measure()
            if decided:
                self._settle()
            self._record(signals, landmark=landmark)
        return {name: value for name, value in signals.items() if value is not None and math.isfinite(value)}

    def second_phase(self) -> dict[str, float]:
        """Take steps of the second phase beside a mini-batch of the host's, and return loss and gradient norm by name.

        Raises:
            FailureError: the loss became infinite or NaN.
        """
        with self._keeping_rows():
            return self._second_phase()

    def _second_phase(self) -> dict[str, float]:
        trajectory = self._trajectory
        trajectory.account.charge(_OWN_BATCHES, self._batch_cost)
        begun, last = trajectory.cost, trajectory.epoch
        for _ in self._hand_over.steps(trajectory, self._journal.largest_norm("two-phase")):
            if trajectory.epoch % self._every == 0:
                self._record({}, landmark=False)
            if trajectory.cost - begun >= _STEPS_OVER_BATCH * self._batch_cost:
                break
        else:
            # Converged, or no step can be paid any more; or Adam is to go on.
            self._ended = trajectory.safe_resort is None
        if trajectory.epoch == last:
            return {}
        return {"loss": trajectory.train_loss, "gradient_norm": trajectory.gradient_norm}

    def finish(self) -> None:
        """Write the summary: of the whole run, or of as much as was trained."""
        trajectory = self._trajectory
        self._watch.close()
        if self._landmark != trajectory.epoch:
            if trajectory.phase == "adam":
                trajectory.measure()
            self._record({}, landmark=True)
        if trajectory.switch is None:
            self._settle()
        self._write_summary()

    def _write_summary(self) -> None:
        trajectory = self._trajectory
        write_summary(self.run, self._config, self._choice, trajectory, trajectory.summary(), baselines={}, oracle=None)
        self._journal.close()

    def state_dict(self) -> dict[str, Any]:
        """Return what a run goes on from, beside the host's weights and Adam: numbers, strings and tensors."""
        self._journal.flush()
        state = self._trajectory.state()
        del state["weights"], state["adam"]
        return {
            "schema": 1,
            "trajectory": state,
            "watch": self._watch.state_dict(),
            "history": [dict(vars(signals)) for signals in self._watch.history],
            "evaluated": self._evaluated,
            "ended": self._ended,
            "run": str(self.run.path),
        }

    @property
    def _every(self) -> int:
        """Epochs between two rows of the second phase."""
        return math.ceil(self.budget / _RECORDS)

    def _begin(self, state: Mapping[str, Any] | None) -> None:
        trajectory, model = self._trajectory, self._trajectory.problem.model
        if state is not None:
            restored = dict(state["trajectory"]) | {"weights": model.state_dict()}
            trajectory.restore(restored | {"adam": trajectory.adam.state_dict()}, self._hand_over.build)
            self._watch.load_state_dict(state["watch"])
            for told in state["history"]:
                self._watch.history.append(Signals(**told))
                assert self._watch.detector is not None
                self._watch.detector.update(**told)
            self._evaluated, self._ended = state["evaluated"], state["ended"]
            if trajectory.switch is not None and trajectory.switch["epoch"] is None:
                trajectory.switch = None  # The budget had ended before a switch; it may be larger now.
            self._journal.forget_after(trajectory.name, trajectory.epoch)
        if not self.run.config_path.exists():
            objective = trajectory.problem.objective
            made_by = describe_process(objective.device, dtype_name(objective.dtype))
            self.run.write_config(self._config.as_dict() | {"host": self._host, "share": self._settings.share}, made_by)
        if state is None:
            trajectory.problem.objective.require_one_function()
            trajectory.measure()
            self._record({}, landmark=True)

    def _settle(self) -> None:
        """Decide on the switch, where the trajectory stands."""
        trajectory, watch = self._trajectory, self._watch
        fired = watch.fired and not self.over
        trajectory.switch = switch_row(self._config, trajectory, watch.reason, fired=fired, budget=f"{self.budget:g}")
        watch.close()

    def _record(self, signals: Mapping[str, float | None], *, landmark: bool) -> None:
        """Write down where the trajectory stands, which was measured; at a landmark with validation and weights."""
        trajectory = self._trajectory
        measures = trajectory.problem.measures() if landmark else {}
        row = dataclasses.replace(trajectory.row(), measures=dict(measures), signals=dict(signals))
        self._journal.forget_after(trajectory.name, trajectory.epoch - 1)
        self._journal.append(row.as_row())
        if landmark:
            self._landmark = trajectory.epoch
        if landmark or trajectory.epoch % checkpoint_every(self._config) == 0:
            write_weights(self.run, self._config, trajectory)
            self._journal.flush()

    @contextmanager
    def _keeping_rows(self) -> Iterator[None]:
        """Store what was recorded where the block fails: the host ends with it, and asks for nothing any more.

        A run that diverged is finished: with a summary, its best weights stored, and the model has them again.
        """
        try:
            yield
        except FailureError:
            self._journal.flush()
            if self._trajectory.diverged is not None:
                self._watch.close()
                keep_best(self.run, self._config, self._trajectory)
                self._write_summary()
            raise

    @property
    def _handed_over(self) -> bool:
        switch = self._trajectory.switch
        return switch is not None and switch["epoch"] is not None and self._trajectory.safe_resort is None


def _config(problem: Problem, adam: torch.optim.Adam, settings: Settings, budget: float) -> TwoPhaseConfig:
    group = adam.param_groups[0]
    return TwoPhaseConfig(
        objective=problem,
        epochs=max(1, math.ceil(budget - _ROUNDING)),
        detector=settings.detector,
        switch_epoch=settings.switch_epoch,
        phase_two=settings.phase_two,
        lr=float(group.get("initial_lr", group["lr"])),  # Of a schedule that warms up, the present one is zero.
        no_baseline=True,
        probe_every=0,
    )


def _directory(config: TwoPhaseConfig, out: str | Path | None, state: Mapping[str, Any] | None) -> Run:
    """Return the run directory: that of the state, unless another is named, or a new one."""
    if state is not None:
        return Run(out or state["run"])
    run = Run(default_directory(config) if out is None else out)
    if run.path.exists() and not (run.path.is_dir() and run.is_empty()):
        raise MisuseError(
            f"{str(out)!r} exists already. Choose another out, or resume the trainer from a checkpoint of the run in "
            "it."
        )
    return run


def _check_same(objective: Objective, parameters: list[nn.Parameter]) -> None:
    """Refuse an objective that is of other parameters than the optimiser trains, or on another device."""
    named = dict(objective.model.named_parameters())
    ours, theirs = {id(named[name]) for name in objective.parameter_names}, set(map(id, parameters))
    if ours != theirs:
        raise MisuseError(
            f"expected an objective of exactly the parameters that the optimiser trains, got {len(ours - theirs)} that "
            f"it does not train, and {len(theirs - ours)} that only it trains. Build the objective of the model that "
            "is trained, and freeze what is not (requires_grad_(False))."
        )
    if objective.device != parameters[0].device:
        raise MisuseError(
            f"the objective evaluates on {objective.device}, but the trainer trains on {parameters[0].device}. Pass a "
            "function of the model that returns the objective: it is called once the model is there."
        )

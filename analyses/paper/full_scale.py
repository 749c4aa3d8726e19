"""A row of Table 1 at the paper's own scale, stretch by stretch.

A row has five stages. They are Adam at a constant rate, the paper's second phase from the switch, Adam at a cosine
rate, our second phase from the same switch, and the curvature at twelve points. A stretch ends with the time it is
given, between two epochs, steps or points. Our second phase alone does not: what it remembers is too large a file. It
is begun where its time suffices, and again from the switch if it is interrupted.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convexlab.machine.environment import describe_process, dtype_name
from convexlab.machine.memory import available_memory
from convexlab.probing import ProbeOptions
from convexlab.problems import ImageProblem, build_problem
from convexlab.runs import Row
from convexlab.training.phases import LARGE, PhaseTwo, phase_two
from convexlab.training.second_phase import Resort, Step, second_phase_steps
from paper.adam_run import AdamRun, State
from paper.protocols import ADAM, COSINE, FIXED, PAPERS, Best
from paper.row_file import RowFile
from paper.table import TableCase, source
from paper.truth import curvature_at

__all__ = ["CURVATURE", "STAGES", "Clock", "FullScale", "points_of", "train_row"]

CURVATURE = "curvature"
STAGES = (ADAM, PAPERS, COSINE, FIXED, CURVATURE)
"""In this order; the names of the protocols are those of the smaller studies."""
_SAVE_EVERY = 60.0  # Seconds.
_HEADROOM = 1.5  # Of the time that our second phase is expected to take.
_ROUNDING = 1e-9  # Thirds of a gradient equivalent do not add up to whole numbers exactly.


@dataclass(frozen=True)
class FullScale:
    """What all rows have in common."""

    record_every: int = 5
    """Epochs of Adam between two at which the loss over the whole training set is measured; the last one is, too."""
    before: tuple[float, ...] = (0.0, 0.01, 0.05, 0.1, 0.2)
    """Shares of all epochs at which Adam's curvature is measured; besides them at the switch and at its end."""
    behind: tuple[float, ...] = (0.01, 0.05, 0.2, 0.5, 1.0)
    """Shares of the steps of the paper's second phase at which the curvature is measured."""
    probe: ProbeOptions = field(default_factory=lambda: ProbeOptions(density_probes=1))
    papers: str = "cg-golden"
    ours: str = LARGE


class Clock:
    """When a stretch ends.

    Args:
        seconds: from now on; None is no end.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._end = math.inf if seconds is None else time.time() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.time()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be begun."""
        return self.left <= 0

    def share(self, place: int, rows: int, jobs: int) -> Clock:
        """Return that of a row which begins now, so that those behind it have their part too.

        Args:
            place: of the row, from 0.
            rows: in all.
            jobs: rows side by side.
        """
        return Clock(None) if self._end == math.inf else Clock(self.left / math.ceil((rows - place) / jobs))


def points_of(case: TableCase, scale: FullScale) -> list[tuple[str, int]]:
    """Return (protocol, epoch) of the points where curvature is measured: along the two phases, then Adam's end."""
    steps = case.epochs - case.switch
    before = [min(case.switch, round(share * case.epochs)) for share in scale.before]
    behind = [case.switch + max(1, round(share * steps)) for share in scale.behind]
    along = [(ADAM, epoch) for epoch in (*before, case.switch)] + [(PAPERS, epoch) for epoch in behind]
    return list(dict.fromkeys([*along, (ADAM, case.epochs)]))


def train_row(
    case: TableCase, folder: Path, scale: FullScale, clock: Clock, *, jobs: int = 1, place: int = 0, rows: int = 1
) -> Row:
    """Go on with a row until its stretch ends or it is done, and return its record.

    Args:
        case: what is trained; a ``train_size`` of 0 is all there is.
        folder: where its file is, and goes.
        scale: how.
        clock: of all rows together.
        jobs: rows side by side on one device, which share its memory.
        place: of this row among them.
        rows: how many there are.

    Returns:
        ``case``, ``parameters``, ``examples`` (K), ``validation_examples``, ``overdetermination`` (Q), ``protocols``,
        ``points`` (the curvature, by "protocol epoch"), ``stretches`` and ``under_way``. The last is None when all is
        done; else it has the stage, ``done`` of ``of``, a ``note``, and the latest ``train_loss``.
    """
    file = RowFile.of(case, folder)
    if file.record["stretches"] and file.record["under_way"] is None:
        return file.record
    torch.set_num_threads(1)
    began, clock = time.time(), clock.share(place, rows, jobs)
    problem = _problem(case, jobs)
    file.record |= {
        "parameters": problem.objective.size,
        "examples": problem.examples,
        "validation_examples": problem.dataset.validation_size,
        "overdetermination": problem.overdetermination,
    }
    training = _Training(case, scale, problem, file, clock)
    with problem.objective.captured() as replayer, contextlib.suppress(_StretchOver):
        training.go_on()
    made_by = describe_process(problem.objective.device, dtype_name(problem.objective.dtype))
    reasons = dict(replayer.reasons) if replayer is not None else {}
    if training.adam_reason:
        reasons["step of Adam"] = training.adam_reason
    file.record["stretches"].append({"seconds": time.time() - began, "made_by": made_by, "not_captured": reasons})
    file.save()
    return file.record


def _problem(case: TableCase, jobs: int) -> ImageProblem:
    problem = build_problem(
        case.model,
        source(case.dataset),
        "mse",
        train_size=case.train_size or None,
        seed=case.seed,
        batch_size=case.batch_size,
        device=case.device,
    )
    device = problem.objective.device
    free = available_memory(device)
    if device.type != "cpu" and free is not None:
        # Beside the graphs of a product there are recordings, and now and then a product in twice the precision.
        problem.objective.memory_budget = free // (4 * jobs)
    return problem


class _StretchOver(Exception):  # noqa: N818
    """The rest is left to the next stretch."""


@dataclass
class _Account:
    """What a protocol has come to so far."""

    best: Best
    cost: float = 0.0
    """Gradient equivalents, Adam's before the switch included; likewise the seconds and the evaluations."""
    seconds: float = 0.0
    steps: int = 0
    """Of the second phase."""
    values: int = 0
    gradients: int = 0
    at_equal_cost: Row | None = None
    """What the best was worth when the cost of Adam's epochs was spent; None before that."""
    reached: Row | None = None
    """``cost`` and ``seconds`` at which a wanted loss was reached."""
    ended: str | None = None
    """Why the second phase ended early."""

    def as_state(self) -> dict[str, Any]:
        """Return what `from_state` takes."""
        plain = {name: value for name, value in vars(self).items() if name != "best"}
        curve = [list(point) for point in self.best.curve]
        return plain | {"best": {"loss": self.best.loss, "weights": self.best.weights, "curve": curve}}

    @classmethod
    def from_state(cls, state: dict[str, Any], problem: ImageProblem) -> _Account:
        """Return an account that goes on from a state."""
        best, device = state["best"], problem.objective.device
        weights = None if best["weights"] is None else best["weights"].to(device)
        points = [(epoch, cost, loss) for epoch, cost, loss in best["curve"]]
        return cls(**state | {"best": Best(problem, best["loss"], weights, points)})

    def spent(self) -> Row:
        """Return cost and seconds."""
        return {"cost": self.cost, "seconds": self.seconds}

    def take(self, step: Step, optimizer: Any, epoch: int) -> None:
        """Take in a step of a second phase, which ended at what the paper counts as an epoch."""
        self.cost, self.seconds, self.steps = self.cost + step.cost, self.seconds + step.seconds, self.steps + 1
        self.values += optimizer.report.values
        self.gradients += optimizer.report.gradients
        self.ended = step.given_up
        self.best.take(epoch, self.cost, step.loss)


class _Training:
    """The stages of a row, from where its file has it."""

    def __init__(self, case: TableCase, scale: FullScale, problem: ImageProblem, file: RowFile, clock: Clock) -> None:
        self.case, self.scale, self.problem, self.file, self.clock = case, scale, problem, file, clock
        self.points = points_of(case, scale)
        self.adam_reason: str | None = None
        """Why Adam's steps were not replayed as graphs."""
        self._latest: float | None = None
        """The training loss last measured."""

    def go_on(self) -> None:
        """Do what is left.

        Raises:
            _StretchOver: the time is.
        """
        if ADAM not in self.protocols:
            self._adam(ADAM)
        if PAPERS not in self.protocols:
            self._papers()
        if COSINE not in self.protocols:
            self._adam(COSINE)
        if FIXED not in self.protocols:
            self._ours()
        self._curvature()
        self.file.record["under_way"] = None
        self.file.tensors.clear()

    @property
    def protocols(self) -> dict[str, Row]:
        """Those that have ended."""
        protocols: dict[str, Row] = self.file.record["protocols"]
        return protocols

    # Adam.

    def _adam(self, name: str) -> None:
        case = self.case
        run = AdamRun(self.problem, rate=case.rate, seed=case.seed, captured=True)
        account = self._resumed_adam(name, run)
        while True:
            self._record(name, run, account)
            if run.epoch == case.epochs:
                break
            self._between(name, run.epoch, case.epochs, lambda: _state_of(run) | {"account": account.as_state()})
            begin = time.perf_counter()
            run.train(None if name == ADAM else case.rate * 0.5 * (1 + math.cos(math.pi * run.epoch / case.epochs)))
            account.seconds += time.perf_counter() - begin
            account.cost, account.gradients = float(run.epoch), run.epoch
            self.adam_reason = run.not_captured
        self._finish(name, account, switch=None)

    def _record(self, name: str, run: AdamRun, account: _Account) -> None:
        """Measure the loss where it is wanted, and keep what later stages begin from."""
        case, best = self.case, account.best
        point = name == ADAM and (ADAM, run.epoch) in self.points
        wanted = point or run.epoch % self.scale.record_every == 0 or run.epoch in (case.switch, case.epochs)
        if not wanted or (best.curve and best.curve[-1][0] == run.epoch):
            return
        self._latest = run.record()["train_loss"]
        best.take(run.epoch, run.epoch, self._latest)
        if point:
            self._keep_point(ADAM, run.epoch)
        if name == ADAM and run.epoch == case.switch:
            self.file.tensors["switch"] = _state_of(run) | {"account": account.as_state()}

    def _resumed_adam(self, name: str, run: AdamRun) -> _Account:
        stored = self._stored(name)
        if stored is None:
            return _Account(Best(self.problem))
        self._restore(run, stored)
        return self._account_of(stored)

    def _restore(self, run: AdamRun, stored: dict[str, Any]) -> None:
        adam = run.adam.state_dict() | {"state": stored["adam"]}
        weights = stored["weights"].to(self.problem.objective.device)
        run.restore(State(stored["epoch"], weights, adam, stored["order"], *stored["norms"]))

    # The second phases.

    def _papers(self) -> None:
        case, phase = self.case, phase_two(self.scale.papers)
        account, optimizer, resort = self._begun(phase)
        stored = self._stored(PAPERS)
        if stored is not None:
            account = self._account_of(stored)
            self.problem.objective.write(stored["weights"].to(self.problem.objective.device))
            optimizer.load_state_dict(stored["optimizer"])
            resort = Resort(None, stored["resort"])

        def state() -> dict[str, Any]:
            return {
                "weights": self.problem.objective.flat_parameters(),
                "optimizer": optimizer.state_dict(),
                "resort": resort.state_dict(),
                "account": account.as_state(),
            }

        most = case.epochs - case.switch
        for step in self._steps(optimizer, phase, resort):
            self._look_at(account, step)
            account.take(step, optimizer, case.switch + account.steps + 1)
            if (PAPERS, case.switch + account.steps) in self.points:
                self._keep_point(PAPERS, case.switch + account.steps)
            if account.steps == most:
                break
            self._between(PAPERS, account.steps, most, state)
        if account.steps < most:
            account.ended = account.ended or "no direction lowers the loss any more"
        self._finish(PAPERS, account, switch=case.switch)

    def _ours(self) -> None:
        case, papers = self.case, self.protocols[PAPERS]
        self._require_time(papers)
        phase = phase_two(self.scale.ours)
        account, optimizer, resort = self._begun(phase)
        most, target = max(float(case.epochs), papers["cost"]), papers["train_loss"]
        for step in self._steps(optimizer, phase, resort, most - account.cost):
            self._look_at(account, step)
            account.take(step, optimizer, case.switch + account.steps + 1)
            if account.reached is None and target is not None and step.loss <= target:
                account.reached = account.spent()
            if account.at_equal_cost is None:
                if self.clock.over:
                    note = "was interrupted, and begins again from the switch"
                    self._leave(FIXED, int(account.cost), case.epochs, note)
            elif account.reached is not None or self.clock.over:
                account.ended = None if account.reached is not None else "the time was up"
                break
        self._finish(FIXED, account, switch=case.switch)

    def _require_time(self, papers: Row) -> None:
        """Begin our second phase only where its time suffices up to equal cost, at the paper's seconds a gradient."""
        case = self.case
        spent = papers["cost"] - case.switch
        each = (papers["seconds"] - self._seconds_to_switch()) / spent if spent else 0.0
        needed = _HEADROOM * each * (case.epochs - case.switch)
        if needed > self.clock.left:
            self._leave(FIXED, 0, case.epochs, f"needs about {math.ceil(needed):,} seconds in one stretch")

    def _begun(self, phase: PhaseTwo) -> tuple[_Account, Any, Resort]:
        """Return the account at the switch, where the model stands again, and a second phase that takes over there."""
        run = AdamRun(self.problem, rate=self.case.rate, seed=self.case.seed, watched=False)
        self._restore(run, self.file.tensors["switch"])
        account = self._account_of(self.file.tensors["switch"])
        account.seconds = self._seconds_to_switch()
        optimizer = phase.build(self.problem.model.parameters(), run.adam, self.problem.examples or 1)
        # Algorithm 1 has no way back to Adam: only a search that fails twice ends the phase.
        return account, optimizer, Resort(None)

    def _steps(self, optimizer: Any, phase: PhaseTwo, resort: Resort, budget: float = math.inf) -> Iterator[Step]:
        objective = self.problem.objective
        # A value, for the record alone, where the search has left no gradient: the rule on norms does not ask.
        return second_phase_steps(
            optimizer, phase, objective, resort, budget=budget, measure=lambda: (objective.value(), math.nan)
        )

    def _seconds_to_switch(self) -> float:
        """Return Adam's share of its seconds, every epoch taken to be as long as the other."""
        return float(self.protocols[ADAM]["seconds"]) * self.case.switch / self.case.epochs

    def _look_at(self, account: _Account, step: Step) -> None:
        """Before a step is taken in that leads beyond the cost of Adam's epochs, judge the best so far."""
        self._latest = step.loss
        if account.at_equal_cost is None and account.cost + step.cost > self.case.epochs + _ROUNDING:
            account.at_equal_cost = account.best.judged_aside() | account.spent()

    # Curvature.

    def _curvature(self) -> None:
        measured: dict[str, Row] = self.file.record["points"]
        ended = self.case.switch + self.protocols[PAPERS]["steps"]
        wanted = [(name, epoch) for name, epoch in self.points if name != PAPERS or epoch <= ended]
        took = 0.0
        for name, epoch in wanted:
            key = f"{name} {epoch}"
            if key in measured:
                continue
            self._between(CURVATURE, len(measured), len(wanted))
            if took > self.clock.left:
                self._leave(CURVATURE, len(measured), len(wanted), f"a point takes about {math.ceil(took):,} seconds")
            begin = time.perf_counter()
            weights = self.file.tensors[f"point {key}"].to(self.problem.objective.device)
            measured[key] = {"protocol": name, "epoch": epoch} | curvature_at(self.problem, weights, self.scale.probe)
            del self.file.tensors[f"point {key}"]
            took = time.perf_counter() - begin

    def _keep_point(self, name: str, epoch: int) -> None:
        self.file.tensors[f"point {name} {epoch}"] = self.problem.objective.flat_parameters()

    # What all stages have in common.

    def _account_of(self, stored: dict[str, Any]) -> _Account:
        account = _Account.from_state(stored["account"], self.problem)
        self._latest = account.best.curve[-1][2] if account.best.curve else None
        return account

    def _stored(self, name: str) -> dict[str, Any] | None:
        stored: dict[str, Any] | None = self.file.tensors.get("stage")
        return stored if stored is not None and stored["name"] == name else None

    def _between(self, name: str, done: int, of: int, state: Callable[[], dict[str, Any]] = dict) -> None:
        """Stand between two epochs, steps or points: save now and then, and end the stretch when it is over.

        Raises:
            _StretchOver: it is.
        """
        if not self.clock.over and time.time() - self.file.saved < _SAVE_EVERY:
            return
        self.file.tensors["stage"] = {"name": name} | state()
        if self.clock.over:
            self._leave(name, done, of)
        self._under_way(name, done, of)
        self.file.save()

    def _leave(self, stage: str, done: int, of: int, note: str = "") -> None:
        """Leave the rest to the next stretch.

        Raises:
            _StretchOver: always.
        """
        self._under_way(stage, done, of, note)
        raise _StretchOver

    def _under_way(self, stage: str, done: int, of: int, note: str = "") -> None:
        known = {"train_loss": self._latest}
        self.file.record["under_way"] = {"stage": stage, "done": done, "of": of, "note": note} | known

    def _finish(self, name: str, account: _Account, *, switch: int | None) -> None:
        """Take what a stage has led to into the record."""
        judged, best = account.best.judged(), account.best
        self.protocols[name] = judged | {
            "switch": switch,
            "last_loss": best.curve[-1][2],
            "cost": account.cost,
            "seconds": account.seconds,
            "steps": account.steps,
            "values": account.values,
            "gradients": account.gradients,
            "at_equal_cost": account.at_equal_cost or judged | account.spent(),
            "reached": account.reached,
            "ended": account.ended,
            "curve": [list(point) for point in best.curve],
        }
        self.file.tensors.pop("stage", None)
        self._under_way(name, 1, 1)
        self.file.save()


def _state_of(run: AdamRun) -> dict[str, Any]:
    state = run.state()
    adam: dict[int, dict[str, Tensor]] = state.adam["state"]
    return {
        "epoch": state.epoch,
        "weights": state.weights,
        "adam": adam,
        "order": state.order,
        "norms": [state.best_loss, state.largest_norm],
    }

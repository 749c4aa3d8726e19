"""Two-phase training: Adam until the switch, then a second-order method, beside Adam alone at equal cost."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from convexlab.checkpoints import load_weights, read_checkpoint
from convexlab.detection import Detector, FixedEpoch, Watch
from convexlab.errors import FailureError, MisuseError, unknown_name
from convexlab.importing import check_trusted
from convexlab.machine.atomic import remove_folder
from convexlab.machine.environment import describe_process, dtype_name
from convexlab.machine.lock import create, held_alone
from convexlab.machine.ranks import Ranks, current, together
from convexlab.probing import probe
from convexlab.problems import Problem
from convexlab.progress import Listener, Log, Progress, silent
from convexlab.runs import Row, Run, refuse_file, write_json
from convexlab.runs.schema import VERSION
from convexlab.training.config import FROM_PYTHON, TwoPhaseConfig
from convexlab.training.hand_over import HandOver
from convexlab.training.journal import Journal, log_row
from convexlab.training.oracle import Oracle, hindsight
from convexlab.training.outcome import checkpoint_every, keep_best, write_summary, write_weights
from convexlab.training.phases import choose_phase_two
from convexlab.training.state import check_tensors, naming_state
from convexlab.training.switch import detector_of, expectation_of, switch_row
from convexlab.training.trajectory import Trajectory

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["default_directory", "train_two_phase"]

# Records, and measurements for a detector, along a budget of steps that each see the whole batch.
_RECORDS = 500
# Validations along a run, besides start, switch and end.
_VALIDATIONS = 20
# Settings that may name code or files.
_NAMES = ("objective", "model", "dataset", "loss", "data")
# Steps of the short Krylov run made for every probed checkpoint of a training run; `convexlab probe` makes long ones.
_PROBE_STEPS = 12
# Images from which on these see every second one only: with all of them they took half as long as the training.
_HALVED = 250
# Of the loss along an extreme eigenvector: twelve values for both, a tenth of what such a short probe costs.
_SLICE_POINTS = 7


def train_two_phase(
    *,
    out: str | Path | None = None,
    resume: bool = False,
    trust: bool = False,
    progress: Listener = silent,
    log: Log | None = None,
    group: ProcessGroup | None = None,
    **options: Any,
) -> Run:
    """Train in two phases, and with Adam alone at equal cost, from the same start; what `convexlab train` calls.

    Args:
        out: the run directory; None makes a new one under ``runs/``.
        resume: go on with the run in ``out``, under the settings stored there.
        trust: import code and read files that those settings name. Without it, only names of this package are taken
            from them, and names that the user gives again.
        progress: called with how far the work is.
        log: called with the numbers of every row of ``metrics.jsonl`` and ``probe.jsonl`` as they come, and the epoch.
            An example is a `convexlab.integrations.tensorboard.TensorBoard`, which ``--tensorboard`` makes.
        group: torch.distributed's default process group, ``torch.distributed.group.WORLD``. All its ranks call this and
            train together, each with a part of the examples; rank 0 writes. A run may be resumed with another number of
            ranks, which sum in another order. Its losses are then the same to rounding. None is this process alone.
        **options: the fields of `TwoPhaseConfig`, which are the command line's options.

    Returns:
        The run directory; with several seeds, the directory that holds one a seed.

    Raises:
        MisuseError: an option is out of range, or the directory exists already; raised before any work.
        FailureError: the loss or its gradient is infinite or NaN at the start; then nothing is stored. Or it became so
            for one of the seeds; then the run is finished, and its summary says so.
    """
    ranks = _ranks(group)
    with together(ranks), held_alone(ranks.agreed(lambda: _place(out, resume, options))) as path:
        run, config = _open(path, resume, trust, options)
        if config.seeds == 1:
            _train(run, config, progress, log)
            _raise_where_diverged(run)
            return run
        for seed in range(config.seed, config.seed + config.seeds):
            member = Run(run.path / f"seed-{seed}")
            single = dataclasses.replace(config, seed=seed, seeds=1)
            with held_alone(member.path):
                member.clean()
                series = None if log is None else _prefixed(log, f"seed-{seed}/")
                _train(member, single, _labelled(progress, f"seed {seed}: "), series, parent=(run, config))
        write_json(run.summary_path, _over_seeds(run))
        _raise_where_diverged(run)
        return run


def _ranks(group: ProcessGroup | None) -> Ranks:
    if group is not None and group is not torch.distributed.group.WORLD:
        raise MisuseError(
            "training is shared out to all processes of torch.distributed or to none: expected "
            f"group=torch.distributed.group.WORLD or None, got {group!r}."
        )
    return Ranks.of(group)


def _raise_where_diverged(run: Run) -> None:
    """Raise a FailureError if a run did, or that of a seed; all is stored by then."""
    for member in run.members:
        outcome = (member.summary or {}).get("two_phase") or {}
        if outcome.get("diverged") is not None:
            raise FailureError(
                f"the training loss became infinite or NaN in epoch {outcome['diverged']} of {str(member.path)!r}. Try "
                f"a smaller --lr. Its best weights, of epoch {outcome['epoch']}, are kept."
            )


def _labelled(progress: Listener, label: str) -> Listener:
    return lambda step: progress(dataclasses.replace(step, task=label + step.task))


def _prefixed(log: Log, prefix: str) -> Log:
    return lambda numbers, epoch: log({prefix + name: value for name, value in numbers.items()}, epoch)


def _place(out: str | Path | None, resume: bool, options: dict[str, Any]) -> Path:
    """Return the run directory, made anew where none is named."""
    if resume and out is None:
        raise MisuseError("--resume needs the run directory to go on with. Name it by --out.")
    path = default_directory(TwoPhaseConfig.of(options)) if out is None else Path(out)
    refuse_file(path)
    if resume and not path.exists():
        Run.open(path)  # Which says what is missing.
    return path


def _open(path: Path, resume: bool, trust: bool, options: dict[str, Any]) -> tuple[Run, TwoPhaseConfig]:
    """Return what is trained, and where: a run that was begun, or a new one."""
    run = Run(path)
    run.clean()
    if run.is_empty():  # Also where an earlier process was killed before it had stored anything.
        return run, TwoPhaseConfig.of(options)
    if not resume:
        raise MisuseError(
            f"{str(path)!r} exists already. Choose another --out, or go on with the run in it by --resume."
        )
    return run, _stored(Run.open(path), trust, options)


def _stored(run: Run, trust: bool, options: dict[str, Any]) -> TwoPhaseConfig:
    """Return the settings of a run that is gone on with.

    Raises:
        MisuseError: it is no training run, its objective is missing, or the options differ from the stored ones.
    """
    stored = run.config
    if stored.get("kind") == "probe":
        raise MisuseError(f"{str(run.path)!r} holds a probe of checkpoints, not a training run. Check --out.")
    if stored.get("host"):
        raise MisuseError(
            f"{str(run.path)!r} was trained by {stored['host']}: resume it there, from a checkpoint of its own."
        )
    if stored.get("objective") == FROM_PYTHON:
        if options.get("objective") is None or isinstance(options["objective"], str):
            raise MisuseError(
                f"{str(run.path)!r} was begun with an objective from Python. Go on with it there: "
                "cl.train_two_phase(out=..., resume=True, objective=...), the same objective as before."
            )
        stored["objective"] = options["objective"]
    named = {name: stored[name] for name in _NAMES if isinstance(stored.get(name), str)}
    check_trusted({k: name for k, name in named.items() if options.get(k) != name}, run.config_path, trust=trust)
    config = TwoPhaseConfig.of(stored)
    for name, value in options.items():
        if name not in config.as_dict():
            raise unknown_name("option", name, config.as_dict())
        begun = getattr(config, name)
        if begun != value:
            settings = f"{name}={begun!r}, not {value!r}"
            if config.objective is not None and name in _NAMES and name != "objective":
                settings = f"objective={config.as_dict()['objective']!r}, which comes with its {name}: got {value!r}"
            raise MisuseError(
                f"{str(run.path)!r} was begun with {settings}. Leave the option out to resume it, or begin another run."
            )
    return config


def default_directory(config: TwoPhaseConfig) -> Path:
    """Make a run directory named after data set and model, or the objective, and the present time."""
    name = f"{config.setting.run_label}-{datetime.now():%Y%m%d-%H%M%S}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in (Path("runs") / name for name in names) if create(path))


def _train(
    run: Run,
    config: TwoPhaseConfig,
    progress: Listener,
    log: Log | None,
    parent: tuple[Run, TwoPhaseConfig] | None = None,
) -> None:
    """Train one seed; ``parent`` is the run over several seeds that it belongs to."""
    at_hand = config.as_dict()["objective"] == FROM_PYTHON
    problem = None
    if run.summary is not None:
        remove_folder(run.state_path)  # Where it was killed once the summary was there.
    if run.summary is None or at_hand:
        problem = config.setting.build(config.device)
        problem.share_out(current())
    if run.summary is None:
        assert problem is not None
        if at_hand and run.checkpoint_path(0).exists():
            load_weights(problem.model, read_checkpoint(run.checkpoint_path(0)))  # Where the run began.
            problem = dataclasses.replace(problem)
        problem.objective.require_one_function()
        training = _TwoPhaseTraining(run, config, problem, progress, log)
        # Only now is it known that there is something to train, and nothing of a run that is refused is left behind.
        for directory, settings in filter(None, (parent, (run, config))):
            if not directory.config_path.exists():
                training.start()
                made_by = describe_process(problem.objective.device, dtype_name(problem.objective.dtype))
                directory.write_config(settings.as_dict(), made_by)
        training.train()
    if config.probe_every != 0:
        probed = probe(
            [run.path],
            # By the names of the settings, whatever the checkpoints say by now.
            objective=problem if at_hand else config.objective,
            model=config.model,
            dataset=config.dataset,
            loss=config.loss,
            data=config.data,
            probe_size=_probe_size(run, config),
            checkpoints=_to_probe(run, config),
            max_steps=_PROBE_STEPS,
            density_probes=1,
            slice_points=_SLICE_POINTS,
            device=config.device,
            resume=True,
            other_options=True,
            progress=progress,
            group=current().group,
        )
        if log is not None:
            for row in probed.rows:
                log_row(log, row, "probe")
    if at_hand and problem is not None:
        load_weights(problem.model, read_checkpoint(run.checkpoints[-1]))


def _probe_size(run: Run, config: TwoPhaseConfig) -> int | None:
    """Return how many of the images the short probes take; None is all."""
    size = ((run.summary or {}).get("dataset") or {}).get("train_size")
    images = config.objective is None and config.data is None
    return int(size) // 2 if images and size and size >= _HALVED else None


def _to_probe(run: Run, config: TwoPhaseConfig) -> list[Path]:
    """Return the start, the switch and the end, or every ``probe_every``-th epoch as well."""
    summary = run.summary or {}
    stored, every = run.checkpoints, config.probe_every or 0
    switch = (summary.get("switch") or {}).get("epoch")

    def wanted(path: Path) -> bool:
        epoch = int(path.stem.rpartition("-")[2])
        return path in (stored[0], stored[-1]) or epoch == switch or (every > 0 and epoch % every == 0)

    return [path for path in stored if wanted(path)]


class _TwoPhaseTraining:
    """The trajectories of one seed, in the order in which they can share work."""

    def __init__(self, run: Run, config: TwoPhaseConfig, problem: Problem, progress: Listener, log: Log | None) -> None:
        self.run = run
        self.config = config
        self.problem = problem
        self.progress = progress
        self.journal = Journal(run, log)
        self.choice = choose_phase_two(config.phase_two, list(problem.model.parameters()))
        self.hand_over = HandOver(self.choice.name, self.choice.phase, problem, float(config.epochs))
        self.oracle = Oracle(run, config, self.journal, self.hand_over, progress)
        self.every = math.ceil(config.epochs / _RECORDS) if problem.whole_batch else 1
        """Epochs between two records, and between two updates of a detector."""
        self._start: tuple[float, float] | None = None
        self.at_start = problem.measures()
        """The validation's numbers where every trajectory begins. One that is of no use is refused here, before any
        work."""

    def start(self) -> tuple[float, float]:
        """Return loss and gradient norm where every trajectory begins; they are measured once.

        Raises:
            FailureError: one of them is not finite.
        """
        if self._start is None:
            self.problem.reset()
            self._start = Trajectory("start", self.problem, lr=self.config.lr, seed=self.config.seed).measure()
        return self._start

    def train(self) -> None:
        """Train whatever is not done yet, and write the summary."""
        self._announce()
        try:
            two_phase = self.two_phase()
            result = two_phase.summary()
            baselines: dict[str, Row] = {}
            # Where Adam diverged before any switch, there is nothing to compare: it is the baseline.
            compared = two_phase.diverged is None or two_phase.switch is not None
            if not self.config.no_baseline and compared:
                # Rounded up, in the baselines' favour: Adam is paid in whole epochs.
                epochs = math.ceil(two_phase.cost - 1e-9)
                baselines = {
                    "adam-constant": self.adam_constant(epochs).summary(),
                    "adam-cosine": self.adam_cosine(epochs).summary(),
                }
            oracle = None
            if self.config.oracle_every is not None and compared:
                oracle = hindsight(self.oracle.ask(self._begin), result["train_loss"])
        finally:
            self.journal.flush()
        write_summary(self.run, self.config, self.choice, two_phase, result, baselines=baselines, oracle=oracle)
        self.journal.close()

    def _announce(self) -> None:
        """Name the tasks to come, so that the end of the first task is not taken for the end of all."""
        config = self.config
        asked = {
            "two-phase": True,
            "adam-constant": not config.no_baseline,
            "adam-cosine": not config.no_baseline,
            "oracle": config.oracle_every is not None,
            "probe": config.probe_every != 0,
        }
        for name in filter(asked.__getitem__, asked):
            self.progress(Progress(name, 0.0, float(config.epochs), planned=True))

    def two_phase(self) -> Trajectory:
        """Adam until the detector fires, then the second phase; Adam again if that fails."""
        trajectory = self._begin("two-phase")
        with trajectory.until_it_diverges():
            self._both_phases(trajectory)
        if trajectory.diverged is not None:
            keep_best(self.run, self.config, trajectory)
            return trajectory
        self._checkpoint(trajectory)
        self.journal.save("two-phase", trajectory.state())
        return trajectory

    def _both_phases(self, trajectory: Trajectory) -> None:
        if trajectory.switch is None:
            self._adam_until_switch(trajectory)
        assert trajectory.switch is not None
        if trajectory.switch["epoch"] is not None:
            self.hand_over.follow(trajectory, self.journal.largest_norm("two-phase"), self._record_second_phase)
            last = self.journal.rows("two-phase")[-1]
            if last["epoch"] != trajectory.epoch or not last.keys() >= self.at_start.keys():
                # No step could be paid any more, though the end did not seem near.
                self.journal.forget_after("two-phase", trajectory.epoch - 1)
                self._record(trajectory, landmark=True)

    def adam_constant(self, epochs: int) -> Trajectory:
        """Adam at its constant rate; up to the switch it is the two-phase run, so it starts from there."""
        return self._adam_alone(self._begin("adam-constant", shared="switch"), epochs)

    def adam_cosine(self, epochs: int) -> Trajectory:
        """Adam with a rate that falls as a half cosine to zero over the whole budget."""
        trajectory = self._begin("adam-cosine")
        return self._adam_alone(
            trajectory, epochs, lambda done: self.config.lr * 0.5 * (1 + math.cos(math.pi * done / epochs))
        )

    def _adam_alone(
        self, trajectory: Trajectory, epochs: int, learning_rate: Callable[[float], float] | None = None
    ) -> Trajectory:
        while trajectory.epoch < epochs:
            trajectory.adam_epoch(learning_rate)
            last = trajectory.epoch == epochs
            if not (last or self._due(trajectory)):
                continue
            with trajectory.until_it_diverges():
                trajectory.measure()
            if trajectory.diverged is not None:
                break
            self._record(trajectory, budget=epochs, landmark=last)
        else:
            self.journal.save(trajectory.name, trajectory.state())
        return trajectory

    def _begin(self, name: str, shared: str | None = None) -> Trajectory:
        """Return a trajectory where it was left off, or at the shared state, or at the common start."""
        self.problem.reset()
        trajectory = Trajectory(name, self.problem, lr=self.config.lr, seed=self.config.seed)
        source = name if shared is None or self.journal.holds(name) else shared
        state = self.journal.load(source)
        if state is not None:
            with naming_state(self.journal.path(source)):
                check_tensors(state, self.problem.model)
                trajectory.restore(state, self.hand_over.build)
            self._forget_after(trajectory)
            return trajectory
        self._forget_after(trajectory, -1)
        trajectory.stand(*self.start())
        self._record(trajectory, landmark=True)
        return trajectory

    def _forget_after(self, trajectory: Trajectory, epoch: int | None = None) -> None:
        """Drop the rows beyond an epoch, by default the trajectory's; until the switch they are the baseline's too."""
        shared = trajectory.name == "two-phase" and trajectory.switch is None
        for name in (trajectory.name, "adam-constant") if shared else (trajectory.name,):
            self.journal.forget_after(name, trajectory.epoch if epoch is None else epoch)

    def _adam_until_switch(self, trajectory: Trajectory) -> None:
        detector = self._detector(trajectory)
        budget, share = self.config.epochs, detector.cost
        # A switch that was fixed beforehand needs no watch.
        watch = None if isinstance(detector, FixedEpoch) else self._watch(trajectory, detector)
        losses: list[float] = []
        while not detector.fired and trajectory.cost + 1 + share <= budget:
            losses.append(trajectory.adam_epoch(watch=watch))
            signals: dict[str, float | None] | None = None
            if watch is None:
                signals = {"loss": losses[-1], "gradient_norm": math.nan}
                detector.update(loss=losses[-1], gradient_norm=math.nan)
            elif trajectory.epoch % self.every == 0:
                with trajectory.account.timed("detector"):
                    watch.update(loss=fmean(losses), cost=float(len(losses)))
                losses.clear()
                signals = vars(watch.history[-1])
                trajectory.account.costs["detector"] = watch.spent
                trajectory.watch = watch.state_dict()
            last = detector.fired or trajectory.cost + 1 + share > budget
            if last or self._due(trajectory):
                trajectory.measure()
                self._record(trajectory, signals=signals, landmark=last)
        if watch is not None:
            watch.close()
        trajectory.switch = switch_row(
            self.config, trajectory, detector.reason, fired=detector.fired, budget=str(budget)
        )
        if not self.config.no_baseline:
            # What the constant-rate baseline will find.
            self.journal.save("switch", trajectory.adam_state())
        self._checkpoint(trajectory)
        self.journal.save("two-phase", trajectory.state())
        expected = expectation_of(self.config, trajectory)
        if expected is not None:
            self.progress(Progress(trajectory.name, trajectory.cost, float(budget), f"switch: {expected}", unit="cost"))

    def _watch(self, trajectory: Trajectory, detector: Detector) -> Watch:
        watch = Watch(self.problem.objective, trajectory.adam, detector=detector, share=detector.cost, every=1)
        if trajectory.watch:
            watch.load_state_dict(trajectory.watch)
        return watch

    def _detector(self, trajectory: Trajectory) -> Detector:
        """Return the detector, with all that it was given until here."""
        detector = detector_of(self.config)
        if isinstance(detector, FixedEpoch):
            for _ in range(trajectory.epoch):
                detector.update(loss=math.nan, gradient_norm=math.nan)
            return detector
        for row in self.journal.rows("two-phase"):
            if "told" in row and not detector.fired:
                detector.update(**{name: math.nan if value is None else value for name, value in row["told"].items()})
        return detector

    def _due(self, trajectory: Trajectory) -> bool:
        """Whether this epoch is recorded."""
        epoch = trajectory.epoch
        kept = trajectory.name == "two-phase" and epoch % checkpoint_every(self.config) == 0
        return kept or epoch % self.every == 0 or epoch in self.oracle.epochs

    def _record_second_phase(self, trajectory: Trajectory) -> None:
        # The end of the budget is near: another step may not follow.
        last = trajectory.cost + 1 > self.config.epochs
        if last or self._due(trajectory):
            if trajectory.phase == "adam":
                trajectory.measure()
            self._record(trajectory, landmark=last)

    def _record(
        self,
        trajectory: Trajectory,
        budget: int | None = None,
        signals: Mapping[str, float | None] | None = None,
        *,
        landmark: bool = False,
    ) -> None:
        """Write down an epoch that was measured.

        ``budget`` is what progress says is the total, ``signals`` what the detector was given. At a landmark the
        validation is made in any case.
        """
        measures: dict[str, float] = {}
        if trajectory.phase == "start":
            measures = self.at_start
        elif landmark or trajectory.epoch % self._validate_every() == 0:
            measures = self.problem.measures()
        rows = [dataclasses.replace(trajectory.row(), measures=dict(measures), signals=dict(signals or {}))]
        two_phase = trajectory.name == "two-phase"
        shared = two_phase and trajectory.phase in {"start", "adam"} and trajectory.switch is None
        if shared and not self.config.no_baseline:
            rows.append(
                dataclasses.replace(
                    trajectory.row("adam-constant", trajectory.account.of_adam()), measures=dict(measures)
                )
            )
        self.journal.append(*(row.as_row() for row in rows))
        if shared or trajectory.name == "adam-constant":
            # Before the epoch's own state: what is written last says that the epoch is done.
            self.oracle.keep(trajectory)
        if two_phase and trajectory.epoch % checkpoint_every(self.config) == 0:
            self._checkpoint(trajectory)
        note = f"{trajectory.phase}, epoch {trajectory.epoch}, loss {trajectory.train_loss:.3g}"
        step = Progress(trajectory.name, trajectory.cost, float(budget or self.config.epochs), note, unit="cost")
        if trajectory.epoch % self.every == 0:
            self.journal.report(trajectory.name, trajectory.state, lambda: self.progress(step))
        else:  # Between two updates, a watch has begun an epoch that its state does not hold.
            self.progress(step)

    def _validate_every(self) -> int:
        """Return the epochs between two validations: of those that are recorded."""
        return self.every * math.ceil(self.config.epochs / _VALIDATIONS / self.every)

    def _checkpoint(self, trajectory: Trajectory) -> None:
        write_weights(self.run, self.config, trajectory)


def _over_seeds(run: Run) -> Row:
    members = [member.summary or {} for member in run.members]
    return {
        "schema": VERSION,
        "seeds": [member["seed"] for member in members],
        "model": members[0]["model"],
        "dataset": members[0]["dataset"],
        "loss": members[0]["loss"],
        "runs": [member.path.name for member in run.members],
        "switch": [member["switch"] for member in members],
        "two_phase": [member["two_phase"] for member in members],
        "baselines": [member["baselines"] for member in members],
        "oracle": [member.get("oracle") for member in members],
    }

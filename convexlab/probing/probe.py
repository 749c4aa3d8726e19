"""Curvature along a row of checkpoints: those of a run, or any others with a model, a data set and a loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from convexlab.checkpoints import CheckpointHeader, check_fit, read_header, reread
from convexlab.errors import MisuseError
from convexlab.machine.capture import capture_asked
from convexlab.machine.environment import describe_process, dtype_name
from convexlab.machine.lock import held_alone
from convexlab.machine.precision import Precision, require_precision
from convexlab.machine.ranks import Ranks, together
from convexlab.objective import Objective, Products
from convexlab.probing.dealing import checkpoints_to_deal, examples_of, has_room, measure_dealt, words_of
from convexlab.probing.jobs import Shared, bytes_of_runs, check_jobs, jobs_that_fit, measure_at_once
from convexlab.probing.loss import ProbedLoss, build_probed_loss
from convexlab.probing.measuring import Item, digest_of_options, digest_of_weights, measure
from convexlab.probing.path import TrainingPath
from convexlab.probing.places import Place, check_free, files_of, names_of, places_of, target_of, times_of
from convexlab.probing.point import ProbeOptions
from convexlab.probing.teller import Teller
from convexlab.problems import Problem, Setting, setting_of
from convexlab.problems.objectives import Factory
from convexlab.progress import Listener, Progress, silent
from convexlab.runs import Row, Run, write_json, write_json_lines
from convexlab.runs.columns import to_frame, write_csv
from convexlab.runs.plane import read_plane
from convexlab.runs.rows import ProbedCheckpoint

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Probe", "probe"]

Keep = Literal["nothing", "these weights", "these weights and options"]

# The plane of the training path costs at most this share of what the rows of a probe cost.
_PLANE_SHARE = 0.05


@dataclass(frozen=True)
class Probe:
    """The curvature of a row of checkpoints."""

    run: Run
    """Where the rows are stored."""
    rows: list[Row]
    """Rows of the checkpoints along the axis, those without a place on it last. They are as in ``probe.jsonl``: None
    where a number is not finite."""

    @property
    def checkpoints(self) -> list[ProbedCheckpoint]:
        """The same with attributes."""
        return [ProbedCheckpoint.from_row(row) for row in self.rows]

    def to_frame(self) -> Any:
        """Return the rows as a ``pandas.DataFrame``; densities and slices, which are lists, are left out.

        Raises:
            MisuseError: pandas is not installed.
        """
        return to_frame(self.rows)

    def to_csv(self, path: str | Path) -> Path:
        """Write the same as CSV, which needs no other package, and return the path."""
        return write_csv(self.rows, path)


def probe(
    paths: Place | Sequence[Place],
    *,
    model: str | None = None,
    dataset: str | None = None,
    loss: str | None = None,
    data: str | None = None,
    objective: str | Factory | Problem | Objective | None = None,
    train_size: int | None = None,
    probe_size: int | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    device: str = "auto",
    confidence: float = 0.999,
    max_steps: int | None = None,
    density_probes: int = 1,
    density_steps: int = 32,
    top: int = 0,
    key: str | None = None,
    axis: str | None = None,
    products: Products = "auto",
    precision: Precision = "full",
    slice_points: int = 13,
    plane_points: int = 13,
    checkpoints: Sequence[Path] | None = None,
    out: str | Path | None = None,
    jobs: int = 1,
    resume: bool = False,
    other_options: bool = False,
    trust: bool = False,
    progress: Listener = silent,
    group: ProcessGroup | None = None,
) -> Probe:
    """Measure the curvature of the training loss at every checkpoint; what `convexlab probe` calls.

    The curvature along both extreme eigenvectors is also measured on fresh examples, at most as many as the loss has:
    see `Sampling`. The loss is evaluated along these eigenvectors, and on the plane that holds most of the path through
    all checkpoints of one training (``landscape.json``). One checkpoint is in memory at a time.

    Args:
        paths: run directories, checkpoint files, or a mix; one or several.
        model: name or factory; None is that of the checkpoint's metadata. Likewise ``dataset``, ``loss``,
            ``objective``, ``train_size``, ``probe_size``, ``seed`` and ``dtype``.
        dataset: see ``model``.
        loss: see ``model``.
        data: what returns batches of any kind, in place of a data set, as for
            `convexlab.problems.loaders.build_from_batches`; see ``model``.
        objective: any other loss with its model: its name, a factory, or the `Objective` or `Problem` itself, as for
            `build_objective`. Then there is no ``model``, ``dataset``, ``loss`` or ``probe_size``, and nothing is said
            of fresh examples.
        train_size: see ``model``.
        probe_size: the number of training examples in a stratified sample, whose loss is probed. The rows also have
            what this says of the other examples; see ``model``. None, where a checkpoint does not say, is all.
        seed: of the training subset and the sample; see ``model``. The random vectors have seeds of their own, another
            at every epoch.
        dtype: see ``model``.
        device: where to compute.
        confidence: of the bounds, over the random start.
        max_steps: products of the first Krylov run at most; None is what a verdict needs.
        density_probes: Krylov runs that the density and its negative mass are averaged over.
        density_steps: products of each of these runs after the first.
        top: number of largest eigenvalues to measure, with the gradient's share in the space of their eigenvectors.
            They come from the same Krylov run, which is made longer where ``max_steps`` allows that.
        products: how the Hessian multiplies, see `Objective.hessian`: ``"differences"`` is for losses that torch cannot
            differentiate twice.
        precision: the precision of the products, see `Objective.hessian`; bound and verdict allow for the error of
            ``"bf16"`` and ``"tf32"``.
        key: the name of the weights in PyTorch files, with dots for names within names. None takes the first of the
            common ones.
        axis: the axis along which the checkpoints lie, ``"epoch"`` or ``"step"``, as in the files or their names. None
            is epochs where any has its epoch, and steps elsewhere. A checkpoint with neither has no place on the axis.
        slice_points: number of points of the loss along each extreme eigenvector, odd; 0 makes no slice.
        plane_points: number of points of the loss along the first direction of the path's plane; 0 makes no plane.
        checkpoints: only these of a run directory's checkpoints; the path still goes through all.
        out: where ``probe.jsonl`` goes; None is the run directory, or for bare files a new folder under ``runs/``.
        jobs: checkpoints measured at a time, each in a process of its own with its share of the threads. They are fewer
            where memory does not suffice. Rows are those of one job with as many threads. A script that asks for
            several has to begin its work under ``if __name__ == "__main__":``, as `multiprocessing` says.
        resume: keep the rows in ``out`` that are of these weights and options; others are measured again.
        other_options: with ``resume``, also keep rows of these weights that were measured with other options.
        trust: import code and read files that the checkpoints' metadata name. Without it, only names of this package
            are taken from the metadata.
        progress: called with how far the work is.
        group: a process group of torch.distributed, whose ranks all call this and measure together; rank 0 writes. The
            ranks share the examples of a checkpoint, or take one checkpoint each where that is cheaper
            (`dealing.checkpoints_to_deal`). None is this process alone.

    Returns:
        The rows, one a checkpoint, which are also stored in ``out``.

    Raises:
        MisuseError: there is nothing to probe, a checkpoint is damaged or does not fit the model, or a name is unknown.
            Also where only the metadata name code or files, without ``trust``.
    """
    options = ProbeOptions(
        confidence=confidence,
        max_steps=max_steps,
        density_probes=density_probes,
        density_steps=density_steps,
        top=top,
        products=products,
        precision=precision,
        slice_points=slice_points,
    )
    if plane_points and plane_points < 3:
        raise MisuseError(f"expected plane_points of at least 3, or 0 for no plane, got {plane_points!r}.")
    overrides = {
        "model": model,
        "dataset": dataset,
        "loss": loss,
        "data": data,
        "objective": objective,
        "train_size": train_size,
        "probe_size": probe_size,
        "seed": seed,
        "dtype": dtype,
    }
    places, ranks = places_of(paths), Ranks.of(group)
    headers = _read(places, checkpoints, key, axis)
    settings = {path: setting_of(header, overrides, trust=trust) for path, header in headers.every.items()}
    check_jobs(jobs, settings.values(), ranks)
    target = target_of(places, out, settings[headers.wanted[0].path])
    with together(ranks), held_alone(target.path):
        target.clean()
        if not resume:
            check_free(target, places, out)
        keep: Keep = "nothing" if not resume else "these weights" if other_options else "these weights and options"
        plan = _decide(
            headers, places, settings, target, options, keep, jobs, with_plane=bool(plane_points), device=device
        )
        if plan.jobs > 1:
            shared = Shared(options, target.path, device, plan.jobs, _threads_of(plan.jobs))
            measure_at_once(plan.missing, shared, plan.rows.write, progress)
        else:
            _measure_here(plan, options, ranks, progress)
        if not resume:
            plan.rows.keep({item.name for item in plan.items})
        progress(Progress("probe", len(plan.missing), len(plan.missing), unit="checkpoints"))
        result = Probe(target, _Rows(target, must_be_sound=True).of(item.name for item in plan.items))
        if plan.path is not None:
            _write_plane(plan, plan.path, result.checkpoints, plane_points, device, progress)
        return result


def _measure_here(plan: _Plan, options: ProbeOptions, ranks: Ranks, progress: Listener) -> None:
    """Measure the missing checkpoints in this process, or in this and the other ranks."""
    with contextlib.ExitStack() as stack:
        for loss in plan.losses.values():
            stack.enter_context(loss.objective.captured(wanted=capture_asked()))
        for done in range(_measure_dealt(plan, options, ranks, progress), len(plan.missing)):
            progress(Progress("probe", done, len(plan.missing), plan.missing[done].name, unit="checkpoints"))
            plan.rows.write(_measured(plan, options, progress, done))


def _measured(plan: _Plan, options: ProbeOptions, progress: Listener, done: int) -> ProbedCheckpoint:
    item = plan.missing[done]
    teller = Teller(progress, item.name, done, len(plan.missing))
    return measure(item, plan.losses[item.setting], options, plan.target, teller)


def _measure_dealt(plan: _Plan, options: ProbeOptions, ranks: Ranks, progress: Listener) -> int:
    """Measure as many of the missing checkpoints as are dealt to the ranks, and return how many those are."""
    missing, losses = plan.missing, list(plan.losses.values())
    if ranks.size == 1 or not missing:
        return 0
    parameters = max(loss.objective.size for loss in losses)
    examples = list(map(examples_of, losses))
    dealt = checkpoints_to_deal(
        len(missing),
        ranks.size,
        parameters=parameters,
        examples=None if None in examples else max(filter(None, examples), default=0),
        products=options.most_steps(parameters),
        fits=has_room(ranks, losses, lambda: bytes_of_runs(losses, options)),
    )
    sentence = words_of(dealt, len(missing), ranks.size)
    progress(Progress("probe", 0, len(missing), sentence, landmark=True, unit="checkpoints"))
    for begin in range(0, dealt, ranks.size):
        progress(Progress("probe", begin, len(missing), sentence, unit="checkpoints"))
        places = range(begin, min(begin + ranks.size, dealt))
        measures = [partial(_measured, plan, options, progress, place) for place in places]
        for row in measure_dealt(ranks, losses, measures):
            plan.rows.write(row)
    return dealt


class _Rows:
    """The rows of ``probe.jsonl``, by epoch: those that are there, as they were stored, until new ones replace them."""

    def __init__(self, run: Run, *, must_be_sound: bool) -> None:
        """Read the file; a damaged one is none, unless its rows are to be kept."""
        self._path = run.probe_path
        self._rows: dict[str, tuple[ProbedCheckpoint, Row]] = {}
        try:
            rows = run.probe
        except MisuseError:
            if must_be_sound:
                raise
            rows = []
        for row in rows:
            checkpoint = ProbedCheckpoint.from_row(row)
            self._rows[checkpoint.checkpoint] = checkpoint, row

    def of_name(self, name: str) -> ProbedCheckpoint | None:
        """Return the row of a checkpoint, if there is one."""
        return self._rows[name][0] if name in self._rows else None

    def of(self, names: Iterable[str]) -> list[Row]:
        """Return rows in the order of their names."""
        return [self._rows[name][1] for name in names]

    def keep(self, names: Collection[str]) -> None:
        """Drop all other rows."""
        if self._rows.keys() - set(names):
            self._rows = {name: row for name, row in self._rows.items() if name in names}
            self._store()

    def write(self, row: ProbedCheckpoint) -> None:
        """Add a row, and write the file."""
        self._rows[row.checkpoint] = row, row.as_row()
        self._store()

    def _store(self) -> None:
        ordered = sorted(self._rows.values(), key=lambda item: _place_of(item[0]))
        write_json_lines(self._path, [stored for _, stored in ordered])


def _place_of(row: ProbedCheckpoint) -> tuple[float, str]:
    return math.inf if row.epoch is None else row.epoch, row.checkpoint


@dataclass(frozen=True)
class _Headers:
    """The facts on the checkpoints that are known before any is loaded."""

    every: dict[Path, CheckpointHeader]
    wanted: list[CheckpointHeader]
    axis: str
    """The axis along which they lie: "epoch" or "step"."""
    times: dict[Path, int | None]
    """Place of each along the axis; None where it is not known."""


@dataclass(frozen=True)
class _Plan:
    """The work: checkpoints, losses, and the place of the results."""

    target: Run
    items: list[Item]
    missing: list[Item]
    """The checkpoints of these that have no row."""
    rows: _Rows
    losses: dict[Setting, ProbedLoss]
    """Names of the missing ones."""
    jobs: int
    """Number of checkpoints measured at a time."""
    path: TrainingPath | None
    """None where no plane is measured."""
    plane_key: str | None
    """Key of the plane that is kept."""


def _read(places: Sequence[Path], wanted: Sequence[Path] | None, key: str | None, axis: str | None) -> _Headers:
    every = {file: read_header(file, key) for file in files_of(places, None)}
    axis_there, times = times_of(list(every.values()), axis)
    return _Headers(
        every, [every[file] for file in files_of(places, wanted)], axis_there, dict(zip(every, times, strict=True))
    )


def _decide(
    headers: _Headers,
    places: Sequence[Path],
    settings: Mapping[Path, Setting],
    target: Run,
    options: ProbeOptions,
    keep: Keep,
    jobs: int,
    *,
    with_plane: bool,
    device: str,
) -> _Plan:
    """Plan the work, and refuse what is impossible; then write the settings, the first file."""
    names = dict(zip(headers.every, names_of(list(headers.every), places, target), strict=True))
    items = [
        Item(names[header.path], headers.times[header.path], headers.axis, header, settings[header.path])
        for header in headers.wanted
    ]
    items.sort(key=lambda item: math.inf if item.epoch is None else item.epoch)
    # What the report will read: a damaged file is to be found now, not when everything is measured.
    for present, part in ((target.config_path, "config"), (target.metrics_path, "metrics"), (target.path, "summary")):
        if present.exists():
            getattr(target, part)
    rows = _Rows(target, must_be_sound=keep != "nothing")
    missing = [item for item in items if not _is_kept(item, rows.of_name(item.name), options, keep)]
    path = _path(headers, names, settings) if with_plane else None
    plane = read_plane(target.landscape_path) if keep != "nothing" and path else None
    losses = _losses(missing, device)
    for loss in losses.values():
        require_precision(options.precision, loss.objective.device, loss.objective.dtype)
    if path and path.setting in losses:
        for header in headers.every.values():
            check_fit(losses[path.setting].objective.model, header, by_objective=path.setting.objective is not None)
    at_once = min(jobs, len(missing))
    if at_once > 1:
        at_once = jobs_that_fit(at_once, list(losses.values()), options)
    if missing and not target.config_path.exists():
        objective = losses[missing[0].setting].objective
        made_by = describe_process(objective.device, dtype_name(objective.dtype))
        made_by |= {"jobs": at_once, "threads": _threads_of(at_once)} if at_once > 1 else {}
        target.write_config({"kind": "probe"} | items[0].setting.names, made_by)
    return _Plan(target, items, missing, rows, losses, at_once, path, plane.key if plane else None)


def _threads_of(jobs: int) -> int:
    """Return each job's share of the threads."""
    return max(1, torch.get_num_threads() // jobs)


def _is_kept(item: Item, row: ProbedCheckpoint | None, options: ProbeOptions, keep: Keep) -> bool:
    """Return whether a checkpoint's row is not measured again."""
    if keep == "nothing" or row is None or row.failure:  # What failed, for want of memory, may not fail again.
        return False
    if row.key is None:  # Of an earlier version, without a key to compare.
        return keep == "these weights"
    weights, _, decided = row.key.partition("-")
    same = weights == digest_of_weights(reread(item.header))
    return same and (keep == "these weights" or decided == digest_of_options(item, options))


def _losses(items: Sequence[Item], device: str) -> dict[Setting, ProbedLoss]:
    """Return the loss of every setting.

    Raises:
        MisuseError: a setting that cannot be put together, or a checkpoint that does not fit its model.
    """
    losses: dict[Setting, ProbedLoss] = {}
    for item in items:
        if item.setting not in losses:
            losses[item.setting] = build_probed_loss(item.setting, device)
        by_objective = item.setting.objective is not None
        check_fit(losses[item.setting].objective.model, item.header, by_objective=by_objective)
    return losses


def _path(headers: _Headers, names: Mapping[Path, str], setting: Mapping[Path, Setting]) -> TrainingPath | None:
    """Return checkpoints as a path; None where fewer than three have a place, or they are of several trainings."""
    known = sorted((time, file) for file, time in headers.times.items() if time is not None)
    settings = {setting[file] for _, file in known}
    if len(known) < 3 or len(settings) > 1 or len({time for time, _ in known}) < len(known):
        return None
    return TrainingPath(
        setting=settings.pop(),
        epochs=[time for time, _ in known],
        names=[names[file] for _, file in known],
        headers=[headers.every[file] for _, file in known],
    )


def _write_plane(
    plan: _Plan,
    path: TrainingPath,
    checkpoints: Sequence[ProbedCheckpoint],
    points: int,
    device: str,
    progress: Listener,
) -> None:
    """Measure the loss on the plane of the path, unless it is that of the plane there is."""
    budget = _PLANE_SHARE * sum(checkpoint.gradient_equivalents or 0.0 for checkpoint in checkpoints)
    key = path.key(points, budget)
    if key == plan.plane_key:
        return
    loss = plan.losses.get(path.setting) or build_probed_loss(path.setting, device)
    plane = path.measure(loss, plan.target.path, key=key, points=points, budget=budget, progress=progress)
    if plane is not None:
        write_json(plan.target.landscape_path, plane.as_row())

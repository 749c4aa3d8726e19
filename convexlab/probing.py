"""Curvature along a row of checkpoints: those of a run, or any others with a model, a data set and a loss."""

from __future__ import annotations

import itertools
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convexlab.checkpoints import Checkpoint, load_weights, read_checkpoint, write_checkpoint
from convexlab.curvature.bounds import check_confidence
from convexlab.curvature.density import density_of
from convexlab.curvature.effort import Meter
from convexlab.curvature.lanczos import Lanczos, random_run, random_unit_vector
from convexlab.curvature.slices import check_points, extreme_slices
from convexlab.curvature.verdict import Verdict, judge, steps_to_resolve
from convexlab.errors import FailureError, MisuseError
from convexlab.linalg.operators import MatrixVectorProduct
from convexlab.linalg.vectors import dot, norm
from convexlab.objective import Objective
from convexlab.problem import Problem
from convexlab.progress import Listener, Progress, silent
from convexlab.runs import Row, Run, write_json, write_json_lines
from convexlab.runs.plane import read_plane
from convexlab.sampling_error import sampling_error
from convexlab.subjects import Setting, setting_of
from convexlab.training_path import TrainingPath

__all__ = ["Probe", "ProbeOptions", "probe", "probe_objective", "probe_point"]

Place = str | os.PathLike[str] | Run
"""Where checkpoints are: a run, its directory, or a checkpoint file."""

# Both ends are bounded to this part of the range, even where the verdict is clear before.
_TOLERANCE = 1e-2
# Of what the rows of a probe cost, what the plane of the training path may cost on top.
_PLANE_SHARE = 0.05
# Nodes with less weight than this are not seen in any picture.
_NEGLIGIBLE_WEIGHT = 1e-12


@dataclass(frozen=True)
class Probe:
    """The curvature of a row of checkpoints."""

    run: Run
    """Where the rows are stored."""
    rows: list[Row]
    """One a checkpoint, in the order asked for; as stored in ``probe.jsonl``, so None where a number is not finite."""


@dataclass(frozen=True)
class ProbeOptions:
    """How a checkpoint is measured."""

    floor: float = 1e-3
    """Negative curvature below this fraction of the largest is not searched for."""
    confidence: float = 0.999
    """Of the bounds, over the random start."""
    max_steps: int | None = None
    """Products of the first Krylov run at most; None is what a verdict needs."""
    density_probes: int = 2
    """Krylov runs that the density, its negative mass and the trace are averaged over."""
    density_steps: int = 32
    """Products of each of these but the first."""
    seed: int = 0
    """Of the Krylov runs' starts."""
    slice_points: int = 13
    """Of the loss along either extreme eigenvector, an odd number; 0 is no slice."""

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        check_confidence(self.confidence)
        if self.density_probes < 1 or self.density_steps < 1:
            raise MisuseError(
                f"expected at least one density probe and step, got {self.density_probes!r} and {self.density_steps!r}."
            )
        if self.max_steps is not None and self.max_steps < 1:
            raise MisuseError(f"expected max_steps of at least 1, got {self.max_steps!r}.")
        if self.slice_points:
            check_points(self.slice_points)


def probe(
    paths: Place | Sequence[Place],
    *,
    model: str | None = None,
    dataset: str | None = None,
    loss: str | None = None,
    objective: str | None = None,
    train_size: int | None = None,
    probe_size: int | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    device: str = "auto",
    confidence: float = 0.999,
    max_steps: int | None = None,
    density_probes: int = 2,
    density_steps: int = 32,
    slice_points: int = 13,
    plane_points: int = 13,
    checkpoints: Sequence[Path] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Listener = silent,
) -> Probe:
    """Measure the curvature of the training loss at every checkpoint; what `convexlab probe` calls.

    Both extreme eigenvectors are also tried on examples that they were not found on, at most as many as the loss has:
    see `sampling_error`, and ``sampling_summary`` in the rows. The loss itself is evaluated along them (``slices`` in
    the rows), and on the plane that holds most of the path through all checkpoints of one training: ``landscape.json``.

    Args:
        paths: run directories, checkpoint files, or a mix; one or several.
        model: name or factory; None is what the checkpoint says of itself. Likewise ``dataset``, ``loss``,
            ``objective``, ``train_size``, ``probe_size``, ``seed`` and ``dtype``.
        dataset: see ``model``.
        loss: see ``model``.
        objective: name or factory of any other loss with its model, as for `build_objective`; then there is no
            ``model``, ``dataset``, ``loss`` or ``probe_size``, and nothing is said of fresh examples.
        train_size: see ``model``.
        probe_size: the curvature is that of the loss of a stratified sample of so many training examples, and the
            rows say what it says of the others; see ``model``. None, where a checkpoint does not say, is all.
        seed: of the training subset and the sample; see ``model``. The Krylov runs start from a fixed seed of their
            own.
        dtype: see ``model``.
        device: where to compute.
        confidence: of the bounds, over the random start.
        max_steps: products of the first Krylov run at most; None is what a verdict needs.
        density_probes: Krylov runs that the density, its negative mass and the trace are averaged over.
        density_steps: products of each of these but the first.
        slice_points: of the loss along either extreme eigenvector, an odd number; 0 is no slice.
        plane_points: of the loss along the first direction of the path's plane; 0 is no plane.
        checkpoints: of a run directory's checkpoints, only these; the path goes through all.
        out: where ``probe.jsonl`` goes; None is the run directory, or for bare files a new folder under ``runs/``.
        resume: keep the rows that ``out`` has already.
        progress: told where the work stands.

    Raises:
        MisuseError: nothing to probe, a checkpoint that is damaged or does not fit the model, unknown names.
    """
    options = ProbeOptions(
        confidence=confidence,
        max_steps=max_steps,
        density_probes=density_probes,
        density_steps=density_steps,
        slice_points=slice_points,
    )
    if plane_points and plane_points < 3:
        raise MisuseError(f"expected plane_points of at least 3, or 0 for no plane, got {plane_points!r}.")
    places = _places(paths)
    files = _files(places, checkpoints)
    overrides = {
        "model": model,
        "dataset": dataset,
        "loss": loss,
        "objective": objective,
        "train_size": train_size,
        "probe_size": probe_size,
        "seed": seed,
        "dtype": dtype,
    }
    every = {path: read_checkpoint(path) for path in _files(places, None)}
    loaded = [every[path] for path in files]
    settings = [setting_of(checkpoint, overrides) for checkpoint in loaded]
    target = _target(places, out, settings[0], resume)
    named = dict(zip(every, _names(list(every), places, target), strict=True))
    names = [named[path] for path in files]
    rows = {row["checkpoint"]: row for row in target.probe} if resume else {}
    missing = [item for item in zip(names, loaded, settings, strict=True) if item[0] not in rows]
    path = _path(every, named, overrides) if plane_points else None
    stored = read_plane(target.landscape_path) if resume and path else None
    subjects: dict[Setting, Problem | Objective] = {}
    for _, checkpoint, setting in missing:
        if setting not in subjects:
            subjects[setting] = setting.build(device)
        load_weights(subjects[setting].model, checkpoint)
    if path and settings[0] in subjects:
        for checkpoint in path.checkpoints:
            load_weights(subjects[settings[0]].model, checkpoint)
    if missing and not target.config_path.exists():
        # Only now is it known that there is something to measure.
        write_json(target.config_path, {"kind": "probe"} | settings[0].names)
    for done, (name, checkpoint, setting) in enumerate(missing):
        progress(Progress("probe", done, len(missing), name))
        subject = subjects[setting]
        load_weights(subject.model, checkpoint)
        if isinstance(subject, Objective):
            measured, (row, verdict) = subject, probe_objective(subject, options)
        else:
            measured, (row, verdict) = subject.objective, probe_point(subject, options)
        epoch = _epoch(checkpoint, names.index(name))
        identity = {"checkpoint": name, "epoch": epoch, "phase": checkpoint.metadata.get("phase")}
        witness = _save_witness(target, name, measured, verdict)
        rows[name] = identity | row | {"witness": witness} | setting.sizes(subject)
        write_json_lines(target.probe_path, sorted(rows.values(), key=lambda item: (item["epoch"], item["checkpoint"])))
    progress(Progress("probe", len(missing), len(missing)))
    kept = {row["checkpoint"]: row for row in target.probe}
    result = Probe(target, [kept[name] for name in names])
    budget = _PLANE_SHARE * sum(row["gradient_equivalents"] or 0.0 for row in result.rows)
    if path and (stored is None or stored.key != path.key(plane_points, budget)):
        subject = subjects.get(settings[0]) or settings[0].build(device)
        plane = path.measure(subject, plane_points, budget, progress)
        if plane is not None:
            write_json(target.landscape_path, plane.as_row())
    return result


def _path(loaded: dict[Path, Checkpoint], named: dict[Path, str], overrides: Mapping[str, Any]) -> TrainingPath | None:
    """Return checkpoints as a path; None where fewer than three are, or where they are of several trainings."""
    epochs = [_epoch(checkpoint, position) for position, checkpoint in enumerate(loaded.values())]
    settings = {setting_of(checkpoint, overrides) for checkpoint in loaded.values()}
    if len(loaded) < 3 or len(settings) > 1 or len(set(epochs)) < len(epochs):
        return None
    order = sorted(zip(epochs, loaded, strict=True))
    return TrainingPath(
        setting=settings.pop(),
        epochs=[epoch for epoch, _ in order],
        names=[named[path] for _, path in order],
        checkpoints=[loaded[path] for _, path in order],
    )


def probe_point(problem: Problem, options: ProbeOptions) -> tuple[Row, Verdict | None]:
    """Measure loss, gradient and curvature at the model's present parameters.

    The first Krylov run serves the ends of the spectrum, the verdict, and as the first probe of the density.

    Returns:
        The numbers of a row of ``probe.jsonl``, and the verdict they contain; None where the loss, its gradient or a
        product with its Hessian is not finite.
    """
    with Meter(problem.objective) as meter:
        row, verdict = _measured(problem.objective, options, meter)
        row |= sampling_error(problem, verdict)
        row |= _slices(problem.objective, verdict, row, options)
        return row | _effort(meter, verdict), verdict


def probe_objective(objective: Objective, options: ProbeOptions, *, sliced: bool = True) -> tuple[Row, Verdict | None]:
    """Measure the same of any objective, with or without slices, but nothing on fresh examples: it knows of none."""
    with Meter(objective) as meter:
        row, verdict = _measured(objective, options, meter)
        if sliced:
            row |= _slices(objective, verdict, row, options)
        return row | _effort(meter, verdict), verdict


def _slices(objective: Objective, verdict: Verdict | None, row: Row, options: ProbeOptions) -> Row:
    return {"slices": extreme_slices(objective, verdict, row["train_loss"], options.slice_points)}


def _effort(meter: Meter, verdict: Verdict | None) -> Row:
    effort = meter.effort(products=verdict.effort.products if verdict else 0)
    return {name: getattr(effort, name) for name in ("gradient_equivalents", "seconds", "peak_memory")}


def _measured(objective: Objective, options: ProbeOptions, meter: Meter) -> tuple[Row, Verdict | None]:
    value, gradient = objective.value_and_gradient()
    gradient_norm = float(norm(gradient))
    row: Row = {"train_loss": value, "gradient_norm": gradient_norm}
    if not (math.isfinite(value) and math.isfinite(gradient_norm)):
        reason = f"The loss is {value} here, its gradient's norm {gradient_norm}: curvature has no meaning."
        return row | _nothing(reason), None
    try:
        measured, verdict = _curvature(objective, gradient, options, meter)
    except FailureError as error:
        return row | _nothing(f"Nothing can be said about curvature here: {error}"), None
    return row | measured, verdict


def _curvature(objective: Objective, gradient: Tensor, options: ProbeOptions, meter: Meter) -> tuple[Row, Verdict]:
    operator = objective.hessian()
    generator = torch.Generator().manual_seed(options.seed)
    steps = steps_to_resolve(operator.shape[0], options.floor, options.confidence)
    first = Lanczos(operator, random_unit_vector(operator, generator), min(steps, options.max_steps or steps))
    verdict = judge(first, floor=options.floor, confidence=options.confidence, tolerance=_TOLERANCE, meter=meter)
    others = (random_run(operator, generator, options.density_steps) for _ in range(options.density_probes - 1))
    density = density_of(itertools.chain([first], others), meter)
    trace, trace_error = density.moment(1)
    # What is nearer to zero than the verdict looks, the density does not resolve either.
    mass, mass_error = density.mass_below(-max(density.zero_width, options.floor * verdict.scale))
    seen = density.weights > _NEGLIGIBLE_WEIGHT
    ends = verdict.extremes
    return {
        "gradient_curvature": _along(gradient, operator),
        "smallest": ends.smallest,
        "smallest_lower_bound": ends.smallest_lower_bound,
        "smallest_residual": ends.smallest_residual,
        "smallest_slope": float(dot(gradient, ends.smallest_vector)),
        "largest": ends.largest,
        "largest_residual": ends.largest_residual,
        "largest_slope": float(dot(gradient, ends.largest_vector)),
        "negative_mass": mass,
        "negative_mass_standard_error": mass_error,
        "trace": trace,
        "trace_standard_error": trace_error,
        "second_difference": verdict.second_difference,
        "verdict": verdict.kind,
        "verdict_summary": verdict.summary(),
        "rounding_floor": verdict.rounding_floor,
        "confidence": options.confidence,
        "floor": options.floor,
        "steps": verdict.steps,
        "density": {"nodes": density.nodes[seen].tolist(), "weights": density.weights[seen].tolist()},
    }, verdict


def _along(gradient: Tensor, operator: MatrixVectorProduct) -> float | None:
    """Return gᵀHg / gᵀg; None where the gradient is zero."""
    square = float(dot(gradient, gradient))
    return float(dot(gradient, operator.matvec(gradient))) / square if square else None


def _nothing(reason: str) -> Row:
    names = (
        "gradient_curvature smallest smallest_lower_bound smallest_residual smallest_slope largest largest_residual "
        "largest_slope negative_mass negative_mass_standard_error trace trace_standard_error second_difference "
        "rounding_floor confidence floor density"
    )
    return dict.fromkeys(names.split()) | {
        "verdict": "unresolved",
        "verdict_summary": reason,
        "steps": 0,
    }


def _places(paths: Place | Sequence[Place]) -> list[Path]:
    several = [paths] if isinstance(paths, str | os.PathLike | Run) else paths
    return [place.path if isinstance(place, Run) else Path(place) for place in several]


def _files(places: Sequence[Path], wanted: Sequence[Path] | None) -> list[Path]:
    files: list[Path] = []
    for path in places:
        files.extend(_of_run(path, wanted) if path.is_dir() else [path])
    if not files:
        raise MisuseError("nothing to probe: name a run directory or checkpoint files.")
    return list(dict.fromkeys(files))


def _of_run(path: Path, wanted: Sequence[Path] | None) -> Iterable[Path]:
    run = Run.open(path)
    if any(member.path != run.path for member in run.members):
        members = ", ".join(str(member.path) for member in run.members)
        raise MisuseError(f"{str(path)!r} holds the runs of several seeds. Probe one of them: {members}.")
    files = run.checkpoints
    if not files:
        raise MisuseError(f"run {str(path)!r} has no checkpoints yet.")
    return [file for file in files if wanted is None or file in wanted]


def _target(places: Sequence[Path], out: str | Path | None, setting: Setting, resume: bool) -> Run:
    """Return the directory that takes the rows: ``out``, the one run that is probed, or a new one."""
    if out is None and len(places) == 1 and places[0].is_dir():
        return Run(places[0])
    run = Run(Path(out) if out is not None else Path("runs") / f"probe-{setting.label}")
    if run.probe_path.exists() and not resume:
        raise MisuseError(f"{str(run.probe_path)!r} exists already. Choose another --out, or add to it by --resume.")
    return run


def _names(files: Sequence[Path], places: Sequence[Path], target: Run) -> list[str]:
    """Return what each row is known by: the file name of a run's own checkpoint, else the path as given.

    Own are those of the one run that is probed, and of the run that takes the rows.
    """
    runs = [target.path, *(place for place in places[:1] if len(places) == 1 and place.is_dir())]
    own = {(run / "checkpoints").resolve() for run in runs}
    return [path.name if path.parent.resolve() in own else str(path) for path in files]


def _epoch(checkpoint: Checkpoint, position: int) -> int:
    """Return the epoch that the checkpoint names, in its metadata or in its file name, or its place in the row."""
    for text in (checkpoint.metadata.get("epoch", ""), checkpoint.path.stem.rpartition("-")[2]):
        if text.isdecimal():
            return int(text)
    return position


def _save_witness(target: Run, name: str, objective: Objective, verdict: Verdict | None) -> str | None:
    """Store the direction of negative curvature, so that anyone can check it; return its path in the run."""
    if verdict is None or verdict.witness is None:
        return None
    # Two paths may end in the same file name; the checksum tells them apart.
    stem = Path(name).stem if Path(name).name == name else f"{Path(name).stem}-{zlib.crc32(name.encode()):08x}"
    path = target.path / "witnesses" / f"{stem}.safetensors"
    described = {
        "curvature": repr(verdict.curvature),
        "rounding_floor": repr(verdict.rounding_floor),
        "parameters": ",".join(objective.parameter_names),
    }
    write_checkpoint(path, {"witness": verdict.witness}, described)
    return str(path.relative_to(target.path))

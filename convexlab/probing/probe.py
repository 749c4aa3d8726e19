"""Curvature along a row of checkpoints: those of a run, or any others with a model, a data set and a loss."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convexlab.checkpoints import Checkpoint, load_weights, read_checkpoint, write_checkpoint
from convexlab.curvature.verdict import Verdict
from convexlab.errors import MisuseError
from convexlab.objective import Objective
from convexlab.probing.path import TrainingPath
from convexlab.probing.places import Place, epoch_of, files_of, names_of, places_of, target_of
from convexlab.probing.point import ProbeOptions, probe_point, probe_sliced
from convexlab.problems import ImageProblem, Problem, Setting, setting_of
from convexlab.problems.objectives import Factory
from convexlab.progress import Listener, Progress, silent
from convexlab.runs import Row, Run, write_json, write_json_lines
from convexlab.runs.plane import read_plane
from convexlab.runs.rows import ProbedCheckpoint

__all__ = ["Probe", "probe"]

# Of what the rows of a probe cost, what the plane of the training path may cost on top.
_PLANE_SHARE = 0.05


@dataclass(frozen=True)
class Probe:
    """The curvature of a row of checkpoints."""

    run: Run
    """Where the rows are stored."""
    rows: list[Row]
    """One a checkpoint, in the order asked for; as stored in ``probe.jsonl``, so None where a number is not finite."""

    @property
    def checkpoints(self) -> list[ProbedCheckpoint]:
        """The same with attributes."""
        return [ProbedCheckpoint.from_row(row) for row in self.rows]


def probe(
    paths: Place | Sequence[Place],
    *,
    model: str | None = None,
    dataset: str | None = None,
    loss: str | None = None,
    objective: str | Factory | Problem | Objective | None = None,
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
    see `Sampling` in the rows. The loss itself is evaluated along them (``slices`` in
    the rows), and on the plane that holds most of the path through all checkpoints of one training: ``landscape.json``.

    Args:
        paths: run directories, checkpoint files, or a mix; one or several.
        model: name or factory; None is what the checkpoint says of itself. Likewise ``dataset``, ``loss``,
            ``objective``, ``train_size``, ``probe_size``, ``seed`` and ``dtype``.
        dataset: see ``model``.
        loss: see ``model``.
        objective: any other loss with its model: its name, a factory, or the `Objective` or `Problem` itself, as for
            `build_objective`; then there is no ``model``, ``dataset``, ``loss`` or ``probe_size``, and nothing is said
            of fresh examples.
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
    places = places_of(paths)
    files = files_of(places, checkpoints)
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
    every = {path: read_checkpoint(path) for path in files_of(places, None)}
    loaded = [every[path] for path in files]
    settings = [setting_of(checkpoint, overrides) for checkpoint in loaded]
    target = target_of(places, out, settings[0], resume)
    named = dict(zip(every, names_of(list(every), places, target), strict=True))
    names = [named[path] for path in files]
    rows = _by_name(target.probe) if resume else {}
    missing = [item for item in zip(names, loaded, settings, strict=True) if item[0] not in rows]
    path = _path(every, named, overrides) if plane_points else None
    stored = read_plane(target.landscape_path) if resume and path else None
    subjects: dict[Setting, Problem] = {}
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
        measured = subject.objective
        row, verdict = (
            probe_point(subject, options) if isinstance(subject, ImageProblem) else probe_sliced(measured, options)
        )
        row = replace(
            row,
            checkpoint=name,
            epoch=epoch_of(checkpoint, names.index(name)),
            phase=checkpoint.metadata.get("phase", ""),
            witness=_save_witness(target, name, measured, verdict),
            **setting.sizes(subject),
        )
        rows[name] = row.as_row()
        write_json_lines(target.probe_path, sorted(rows.values(), key=_by_epoch))
    progress(Progress("probe", len(missing), len(missing)))
    kept = _by_name(target.probe)
    result = Probe(target, [kept[name] for name in names])
    budget = _PLANE_SHARE * sum(checkpoint.gradient_equivalents or 0.0 for checkpoint in result.checkpoints)
    if path and (stored is None or stored.key != path.key(plane_points, budget)):
        subject = subjects.get(settings[0]) or settings[0].build(device)
        plane = path.measure(subject, plane_points, budget, progress)
        if plane is not None:
            write_json(target.landscape_path, plane.as_row())
    return result


def _by_name(rows: Sequence[Row]) -> dict[str, Row]:
    return {ProbedCheckpoint.from_row(row).checkpoint: row for row in rows}


def _by_epoch(row: Row) -> tuple[float, str]:
    checkpoint = ProbedCheckpoint.from_row(row)
    return math.inf if checkpoint.epoch is None else checkpoint.epoch, checkpoint.checkpoint


def _path(loaded: dict[Path, Checkpoint], named: dict[Path, str], overrides: Mapping[str, Any]) -> TrainingPath | None:
    """Return checkpoints as a path; None where fewer than three are, or where they are of several trainings."""
    epochs = [epoch_of(checkpoint, position) for position, checkpoint in enumerate(loaded.values())]
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

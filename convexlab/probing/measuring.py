"""One checkpoint loaded, and its row."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from convexlab.checkpoints import (
    Checkpoint,
    CheckpointHeader,
    add_tensors,
    load_weights,
    read_moments,
    reread,
    write_checkpoint,
)
from convexlab.curvature.adam_metric import AdamMetric, metric_of
from convexlab.curvature.verdict import Verdict
from convexlab.errors import MisuseError
from convexlab.machine.atomic import make_folder
from convexlab.objective import Objective
from convexlab.objective.cost import Cost
from convexlab.probing.loss import ProbedLoss
from convexlab.probing.point import ProbeOptions, probe_point
from convexlab.probing.teller import Teller
from convexlab.problems import Setting
from convexlab.runs import Run
from convexlab.runs.files import digest_of
from convexlab.runs.rows import ProbedCheckpoint

__all__ = ["Item", "digest_of_options", "digest_of_weights", "measure"]


@dataclass(frozen=True)
class Item:
    """A checkpoint to be probed."""

    name: str
    epoch: int | None
    """Where it is along the axis."""
    axis: str
    header: CheckpointHeader
    setting: Setting


def measure(item: Item, loss: ProbedLoss, options: ProbeOptions, target: Run, teller: Teller) -> ProbedCheckpoint:
    """Return the row of a checkpoint, which is loaded now; its witness is written.

    The row is the same whichever checkpoints were measured before with this loss.
    """
    weights = _load(loss.objective, item.header)
    loss.objective.require_one_function()  # Once a setting, and not charged to any row.
    # Other random vectors at every checkpoint: so the errors along a row of checkpoints are independent.
    place = item.header.path.name if item.epoch is None else item.epoch
    metric = _metric(item.header.path, loss.objective)
    seed = zlib.crc32(f"{options.seed} {place}".encode())
    with _charged_from_zero(loss.objective):
        row, verdict = probe_point(loss, replace(options, seed=seed), metric, teller)
    return replace(
        row,
        checkpoint=item.name,
        epoch=item.epoch,
        axis=item.axis,
        phase=item.header.metadata.get("phase", ""),
        witness=_save_witness(target, item.name, loss.objective, verdict),
        key=f"{weights}-{digest_of_options(item, options)}",
    )


def digest_of_weights(checkpoint: Checkpoint) -> str:
    """Return what tells weights from others."""
    digest = hashlib.sha256()
    add_tensors(digest, checkpoint)
    return digest.hexdigest()[:16]


def digest_of_options(item: Item, options: ProbeOptions) -> str:
    """Return what tells all from others that decides a row beside the weights."""
    # Rows that are older than the choice of a precision have the full one.
    decisive = {name: value for name, value in vars(options).items() if (name, value) != ("precision", "full")}
    return digest_of([item.setting.as_row, decisive, {"epoch": item.epoch}])


@contextmanager
def _charged_from_zero(objective: Objective) -> Iterator[None]:
    """Count the cost from zero within the block: the rounding of a sum depends on what was there before."""
    before, objective.cost = objective.cost, Cost()
    try:
        yield
    finally:
        objective.cost = before + objective.cost


def _load(objective: Objective, header: CheckpointHeader) -> str:
    """Put a checkpoint's weights into the model, and return their digest; the checkpoint is not held."""
    checkpoint = reread(header)
    load_weights(objective.model, checkpoint)
    return digest_of_weights(checkpoint)


def _metric(checkpoint: Path, objective: Objective) -> AdamMetric | None:
    """Return the metric of the Adam that led to a checkpoint; None where its moments are not stored, or fit nothing."""
    state = read_moments(checkpoint, objective.model)
    if state is None:
        return None
    parameters = dict(objective.model.named_parameters())
    places = {name: place for place, name in enumerate(parameters)}
    names = objective.parameter_names
    try:
        return metric_of(state, [places[name] for name in names], [parameters[name] for name in names], objective)
    except (MisuseError, TypeError, ValueError):  # Of another optimiser, of groups without one border, or damaged.
        return None


def _save_witness(target: Run, name: str, objective: Objective, verdict: Verdict | None) -> str | None:
    """Store the direction of negative curvature, so that anyone can check it; return its path in the run."""
    if verdict is None or verdict.witness is None:
        return None
    # Two paths may end in the same file name; the checksum tells them apart.
    stem = Path(name).stem if Path(name).name == name else f"{Path(name).stem}-{zlib.crc32(name.encode()):08x}"
    path = target.path / "witnesses" / f"{stem}.safetensors"
    make_folder(path.parent)
    described = {
        "curvature": repr(verdict.curvature),
        "rounding_floor": repr(verdict.rounding_floor),
        "parameters": ",".join(objective.parameter_names),
    }
    write_checkpoint(path, {"witness": verdict.witness}, described)
    return str(path.relative_to(target.path))

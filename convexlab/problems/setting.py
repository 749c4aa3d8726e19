"""What a checkpoint is evaluated with: what it says of itself, and what is asked for instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convexlab.checkpoints import Checkpoint, CheckpointHeader
from convexlab.errors import MisuseError
from convexlab.importing import check_trusted
from convexlab.objective import Objective
from convexlab.problems.images import build_problem
from convexlab.problems.loaders import build_from_batches
from convexlab.problems.objectives import Factory, build_objective
from convexlab.problems.problem import Problem
from convexlab.runs import Row

__all__ = ["Setting", "refuse_beside_data", "refuse_beside_objective", "setting_of"]

_NAMES = ("model", "dataset", "loss")
_KEYS = ("objective", *_NAMES, "data", "train_size", "probe_size", "seed", "dtype")
# Options that have no meaning where an objective is named, and where data are.
_OF_NAMES = (*_NAMES, "data", "probe_size")
_OF_IMAGES = ("dataset", "probe_size")


@dataclass(frozen=True)
class Setting:
    """An objective, or a model, a data set or data, and a loss; by name, or an objective at hand."""

    objective: str | Factory | Problem | Objective | None
    model: str
    dataset: str
    loss: str
    train_size: int | None
    probe_size: int | None
    seed: int
    dtype: str | None
    """None is float32, or what the objective's factory chose."""
    batch_size: int | None = None
    """Adam's, for training; None is the problem's default."""
    data: str | None = None
    """Function or files that give batches, in place of a data set."""

    def build(self, device: str) -> Problem:
        """Put it together, with fresh weights.

        Raises:
            MisuseError: an unknown name, or parts that do not fit each other.
        """
        common: dict[str, Any] = {
            "train_size": self.train_size,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "device": device,
        }
        if self.objective is not None:
            return build_objective(self.objective, dtype=self.dtype, **common)
        if self.data is not None:
            return build_from_batches(self.model, self.data, self.loss, dtype=self.dtype, **common)
        dtype = self.dtype or "float32"
        return build_problem(self.model, self.dataset, self.loss, probe_size=self.probe_size, dtype=dtype, **common)

    @property
    def names(self) -> Row:
        """What it was asked for by, for ``config.json`` and the metadata of checkpoints; none of an object at hand."""
        if self.objective is not None:
            return {"objective": self.objective} if isinstance(self.objective, str) else {}
        return {name: getattr(self, name) for name in (*_NAMES, "data") if getattr(self, name)}

    @property
    def as_row(self) -> Row:
        """All that decides the loss, as far as it has a name to store."""
        row = asdict(replace(self, objective=self.names.get("objective")))
        return {name: value for name, value in row.items() if name != "data" or value is not None}

    @property
    def label(self) -> str:
        """A word for the name of a probe's folder, never a path: that would lead elsewhere."""
        if self.objective is None:
            return Path(self.model.rpartition(":")[2]).name
        name = self.objective if isinstance(self.objective, str) else type(self.objective).__name__.lower()
        return Path(name.rpartition(":")[2]).name

    @property
    def run_label(self) -> str:
        """Likewise of a training run: data set and model, or the objective."""
        if self.objective is not None:
            return self.label
        source = (self.data or self.dataset).partition(":")[0]
        return f"{Path(source).name.removesuffix('.py')}-{self.label}"


def refuse_beside_objective(given: Mapping[str, Any]) -> None:
    """Refuse what has no meaning where an objective is named.

    Raises:
        MisuseError: a model, a data set, a loss or a sample is given, that is, not None.
    """
    for name in _OF_NAMES:
        if given.get(name) is not None:
            raise MisuseError(
                f"an objective comes with its model, data and loss: expected no {name} beside it, got {given[name]!r}. "
                "Leave one of them out."
            )


def refuse_beside_data(given: Mapping[str, Any]) -> None:
    """Refuse what has no meaning where data are named, if they are.

    Raises:
        MisuseError: a data set or a sample is given beside them.
    """
    for name in _OF_IMAGES:
        if given.get("data") is not None and given.get(name) is not None:
            raise MisuseError(
                f"data {given['data']!r} are all the batches there are: expected no {name} beside them, got "
                f"{given[name]!r}. Leave one of them out."
            )


def setting_of(
    checkpoint: Checkpoint | CheckpointHeader, overrides: Mapping[str, Any], *, trust: bool = False
) -> Setting:
    """Return what a checkpoint says of itself, overridden by what is not None.

    Args:
        checkpoint: whose metadata may come from anyone.
        overrides: what the user asks for, by the same keys.
        trust: take names that need code from the metadata too; else see `check_trusted`.

    Raises:
        MisuseError: a name is missing, or an objective is named beside a model, a data set or a loss. Also where the
            metadata are damaged, or name code that the user does not trust.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    merged = _still_true({key: checkpoint.metadata[key] for key in _KEYS if key in checkpoint.metadata}, given)
    named = ("objective", *_NAMES, "data")
    stored = {name: merged[name] for name in named if name in merged and name not in given}
    check_trusted(stored, checkpoint.path, trust=trust)
    merged |= given
    if "objective" not in merged:
        _require_names(checkpoint, merged)
    try:
        train_size, probe_size = (int(merged[key]) if key in merged else None for key in ("train_size", "probe_size"))
        seed = int(merged.get("seed", 0))
    except ValueError as error:
        raise MisuseError(f"checkpoint {str(checkpoint.path)!r} has damaged metadata ({error}).") from error
    model, dataset, loss = (merged.get(name, "") for name in _NAMES)
    return Setting(
        merged.get("objective"),
        model,
        dataset,
        loss,
        train_size,
        probe_size,
        seed=seed,
        dtype=merged.get("dtype"),
        data=merged.get("data"),
    )


def _still_true(stored: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says of itself that what was given instead leaves true.

    Raises:
        MisuseError: what was given contradicts itself.
    """
    dropped: set[str] = set()
    if "objective" in given:
        refuse_beside_objective(given)
        dropped |= {*_OF_NAMES, "train_size", "seed"} if given["objective"] != stored.get("objective") else set()
    elif any(name in given for name in (*_NAMES, "data")):
        dropped.add("objective")
    refuse_beside_data(given)
    for source, other in (("dataset", "data"), ("data", "dataset")):
        if source in given:
            dropped.add(other)
        if given.get(source, stored.get(source)) != stored.get(source):
            dropped |= {"train_size", "probe_size", "seed"}  # The subset was taken of another data set.
    if "train_size" in given:
        dropped.add("probe_size")  # Whoever names the training set means all of it.
    return {key: value for key, value in stored.items() if key not in dropped}


def _require_names(checkpoint: Checkpoint | CheckpointHeader, merged: Mapping[str, Any]) -> None:
    for name in _NAMES:
        if name not in merged and not (name == "dataset" and "data" in merged):
            by_data = ", your own batches by --data file.py:loader" if name == "dataset" else ""
            raise MisuseError(
                f"checkpoint {str(checkpoint.path)!r} does not say which {name} it belongs to. Name it by --{name}"
                f"{by_data}, or a loss of another kind, such as a physics-informed network's, by --objective."
            )

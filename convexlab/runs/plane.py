"""The loss on the plane of a training path: `landscape.json` of a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convexlab.errors import MisuseError
from convexlab.runs.files import Row, read_json
from convexlab.runs.schema import Schema

__all__ = ["PathPlane", "Waypoint", "read_plane"]


@dataclass(frozen=True)
class Waypoint:
    """A checkpoint of a path, by its place on the plane."""

    checkpoint: str
    epoch: int
    phase: str
    x: float
    y: float
    off_plane: float
    """Distance from the plane: the loss there is not that of the plane below."""


@dataclass(frozen=True)
class PathPlane:
    """The loss on a plane through the last checkpoint, in units of distance between weights."""

    key: str
    """Key of the inputs; with another key the plane has to be made again."""
    checkpoints: tuple[Waypoint, ...]
    """By epoch; the last is at the origin."""
    explained_variance: tuple[float, float]
    """Shares of the variance of the checkpoints' weights along x and y."""
    x: tuple[float, ...]
    """(p,), rising."""
    y: tuple[float, ...]
    """(q,), rising."""
    losses: tuple[tuple[float, ...], ...]
    """(q, p), NaN where one is not finite."""
    examples: int | None
    """Examples that the loss is the mean over, drawn at random from those of the training loss; None is all."""
    train_size: int | None
    """None where nothing counts them."""
    gradient_equivalents: float
    seconds: float

    def as_row(self) -> Row:
        """Return what `landscape.json` holds."""
        return {"schema": 1} | asdict(self)


def read_plane(path: Path) -> PathPlane | None:
    """Return what `landscape.json` holds; None where there is no such file.

    Raises:
        MisuseError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return _parsed(read_json(path, Schema({})))
    except (MisuseError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = str(error) if isinstance(error, MisuseError) else f"{type(error).__name__}: {error}"
        raise MisuseError(
            f"cannot read {str(path)!r}, expected a loss on a plane as `convexlab probe` writes it ({reason}). Delete "
            "the file and probe again with --resume: only the plane is measured again."
        ) from error


def _parsed(row: Row) -> PathPlane:
    x, y = _numbers(row["x"]), _numbers(row["y"])
    losses = tuple(tuple(math.nan if loss is None else float(loss) for loss in line) for line in row["losses"])
    if [len(line) for line in losses] != [len(x)] * len(y) or min(len(x), len(y)) < 3:
        raise ValueError(f"{len(losses)} rows of losses for {len(y)} times {len(x)} points")
    if sorted(set(x)) != list(x) or sorted(set(y)) != list(y):
        raise ValueError("the coordinates of the grid do not rise")
    first, second = _numbers(row["explained_variance"])
    checkpoints = tuple(map(_waypoint, row["checkpoints"]))
    if len(checkpoints) < 3:
        raise ValueError(f"{len(checkpoints)} checkpoints, where a plane takes three")
    if (row["examples"] is None) != (row["train_size"] is None):
        raise ValueError("examples and train_size are known both or neither")
    return PathPlane(
        key=str(row["key"]),
        checkpoints=checkpoints,
        explained_variance=(first, second),
        x=x,
        y=y,
        losses=losses,
        examples=None if row["examples"] is None else int(row["examples"]),
        train_size=None if row["train_size"] is None else int(row["train_size"]),
        gradient_equivalents=float(row["gradient_equivalents"]),
        seconds=float(row["seconds"]),
    )


def _waypoint(row: Row) -> Waypoint:
    x, y, off_plane = _numbers([row["x"], row["y"], row["off_plane"]])
    return Waypoint(str(row["checkpoint"]), int(row["epoch"]), str(row["phase"]), x, y, off_plane)


def _numbers(values: Any) -> tuple[float, ...]:
    numbers = tuple(map(float, values))
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a coordinate is not finite")
    return numbers

"""Where checkpoints are, where their rows go, and what they are called there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from convexlab.checkpoints import CheckpointHeader, is_weights_folder
from convexlab.errors import MisuseError, unknown_name
from convexlab.problems import Setting
from convexlab.runs import Run, refuse_file

__all__ = ["AXES", "Place", "check_free", "files_of", "names_of", "places_of", "target_of", "times_of"]

AXES = ("epoch", "step")
"""Along which checkpoints may lie."""

_ENDINGS = frozenset({".bin", ".ckpt", ".pt", ".pth", ".safetensors"})

Place = str | os.PathLike[str] | Run
"""Where checkpoints are: a run, its directory, or a checkpoint file."""


def places_of(paths: Place | Sequence[Place]) -> list[Path]:
    """Return one place or several as a list of paths."""
    several = [paths] if isinstance(paths, str | os.PathLike | Run) else paths
    return [place.path if isinstance(place, Run) else Path(place) for place in several]


def files_of(places: Sequence[Path], wanted: Sequence[Path] | None) -> list[Path]:
    """Return the checkpoint files at these places: of a run directory all that are wanted, None being all.

    Raises:
        MisuseError: there are no checkpoints, or a directory is no run, or a run of several seeds.
    """
    files: list[Path] = []
    for path in places:
        if path.is_dir() and not is_weights_folder(path):
            files.extend(_of_trainer(path) or _of_run(path, wanted))
        else:
            files.append(path)
    if not files:
        raise MisuseError("nothing to probe: name a run directory or checkpoint files.")
    return list(dict.fromkeys(files))


def _of_trainer(path: Path) -> list[Path]:
    """Return the folders of weights within a folder, as Hugging Face's trainer leaves them: ``checkpoint-100`` ..."""
    return [folder for folder in sorted(path.glob("checkpoint-*")) if is_weights_folder(folder)]


def _of_run(path: Path, wanted: Sequence[Path] | None) -> Iterable[Path]:
    if not Run(path).config_path.is_file() and (ending := _common_ending(path)):
        raise MisuseError(
            f"{str(path)!r} is not a run directory: expected it to hold config.json, got a folder of "
            f"checkpoints. Name its files: {path / ending}"
        )
    run = Run.open(path)
    if any(member.path != run.path for member in run.members):
        members = ", ".join(str(member.path) for member in run.members)
        raise MisuseError(f"{str(path)!r} holds the runs of several seeds. Probe one of them: {members}.")
    files = run.checkpoints
    if not files:
        raise MisuseError(
            f"run {str(path)!r} has no checkpoints yet: expected files in its folder 'checkpoints'. Wait until it has "
            f"stored some, or go on with it by `convexlab train two-phase --resume --out {shlex.quote(str(path))}`."
        )
    return [file for file in files if wanted is None or file in wanted]


def _common_ending(folder: Path) -> str:
    """Return a pattern for the checkpoints in a folder, by the ending of the first; "" if there is none."""
    endings = (path.suffix for path in sorted(folder.iterdir()) if path.suffix in _ENDINGS)
    return f"*{ending}" if (ending := next(endings, "")) else ""


def target_of(places: Sequence[Path], out: str | Path | None, setting: Setting) -> Run:
    """Return the directory that takes the rows: ``out``, the one run that is probed, or a new one.

    Raises:
        MisuseError: it is a file.
    """
    if _is_of_run(places, out):
        return Run(places[0])
    if out is not None:
        refuse_file(Path(out))
    return Run(Path(out) if out is not None else Path("runs") / f"probe-{setting.label}")


def check_free(target: Run, places: Sequence[Path], out: str | Path | None) -> None:
    """Raise a MisuseError if there are rows in a directory that is not the one run that is probed."""
    if target.probe_path.exists() and not _is_of_run(places, out):
        raise MisuseError(f"{str(target.probe_path)!r} exists already. Choose another --out, or add to it by --resume.")


def _is_of_run(places: Sequence[Path], out: str | Path | None) -> bool:
    return out is None and _is_run(places)


def _is_run(places: Sequence[Path]) -> bool:
    """Return whether there is one place, which is a run's directory."""
    return len(places) == 1 and (places[0] / "config.json").is_file() and not is_weights_folder(places[0])


def times_of(headers: Sequence[CheckpointHeader], axis: str | None) -> tuple[str, list[int | None]]:
    """Return along which axis checkpoints lie, "epoch" or "step", and where; None for what does not say.

    Args:
        headers: of the checkpoints.
        axis: the one that is asked for; None is epochs where any says its epoch, and steps elsewhere.

    Raises:
        MisuseError: another axis.
    """
    if axis not in {None, *AXES}:
        raise unknown_name("axis", str(axis), AXES)
    if axis is None:
        steps_only = all(header.time.epoch is None for header in headers)
        axis = "step" if steps_only and any(header.time.step is not None for header in headers) else "epoch"
    return axis, [getattr(header.time, axis) for header in headers]


def names_of(files: Sequence[Path], places: Sequence[Path], target: Run) -> list[str]:
    """Return the name of each row: the file name of a run's own checkpoint, or the path as given.

    A checkpoint is a run's own if the run is the one that is probed, or the one that takes the rows.
    """
    runs = [target.path, *(places if _is_run(places) else [])]
    own = {(run / "checkpoints").resolve() for run in runs}
    return [path.name if path.parent.resolve() in own else str(path) for path in files]

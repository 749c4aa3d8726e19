"""The run directory on disk.

Layout (fixed)::

    RUN/config.json  metrics.jsonl  summary.json  report.html  probe.jsonl  landscape.json  oracle.jsonl
    RUN/checkpoints/epoch-00000.safetensors ...

Every file appears whole or not at all.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from convexlab.errors import DamageWarning, MisuseError, unknown_name
from convexlab.machine.atomic import clean
from convexlab.machine.lock import LOCK
from convexlab.runs.columns import to_frame, write_csv
from convexlab.runs.files import Row, read_json, read_json_lines, write_json
from convexlab.runs.rows import CONFIG, METRICS, ORACLE, PROBE, SUMMARY
from convexlab.runs.schema import VERSION, Schema

__all__ = ["Run", "refuse_file"]

# Of runs that may have been meant.
_MOST_NAMED = 3


class Run:
    """A run directory; every property reads the disk afresh.

    A run over several seeds is a directory of such directories: ``members`` lists them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the directory; nothing is read yet."""
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Return the run at ``path``.

        Raises:
            MisuseError: there is no run directory.
        """
        run = cls(path)
        if not run.config_path.is_file():
            raise MisuseError(
                f"{str(run.path)!r} is not a run directory: expected it to hold config.json, as written by `convexlab "
                f"train two-phase`. {_what_to_do(run.path)}"
            )
        return run

    @property
    def config_path(self) -> Path:
        """Where the settings are."""
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        """Where the loss and the gradient norm of every epoch are."""
        return self.path / "metrics.jsonl"

    @property
    def summary_path(self) -> Path:
        """Where the result is."""
        return self.path / "summary.json"

    @property
    def probe_path(self) -> Path:
        """Where the curvature of every probed checkpoint is."""
        return self.path / "probe.jsonl"

    @property
    def landscape_path(self) -> Path:
        """Where the loss on the plane of the training path is."""
        return self.path / "landscape.json"

    @property
    def oracle_path(self) -> Path:
        """Where the outcome of every switch is that the oracle tried."""
        return self.path / "oracle.jsonl"

    @property
    def state_path(self) -> Path:
        """Where a run under way keeps its state, for a resumption; removed when the run is finished."""
        return self.path / "state"

    @property
    def report_path(self) -> Path:
        """Where the page for people is."""
        return self.path / "report.html"

    @property
    def config(self) -> Row:
        """The settings.

        Raises:
            MisuseError: the file cannot be read, or a field in it is not what it has to be; so do those below.
        """
        return {name: value for name, value in self._config.items() if name not in ("schema", "made_by")}

    @property
    def made_by(self) -> Row:
        """Command line, versions and machine that the settings were first used with; empty in an older run."""
        return self._config.get("made_by") or {}

    @property
    def _config(self) -> Row:
        return read_json(self.config_path, CONFIG)

    def write_config(self, settings: Row, made_by: Row) -> None:
        """Write the settings, and how they were first used."""
        write_json(self.config_path, {"schema": VERSION} | settings | ({"made_by": made_by} if made_by else {}))

    @property
    def summary(self) -> Row | None:
        """The result, or None while the run is not finished."""
        return read_json(self.summary_path, SUMMARY) if self.summary_path.is_file() else None

    @property
    def metrics(self) -> list[Row]:
        """One row an epoch and run, in the order of writing."""
        return self._rows(self.metrics_path, METRICS)

    @property
    def probe(self) -> list[Row]:
        """One row a probed checkpoint."""
        return self._rows(self.probe_path, PROBE)

    @property
    def oracle(self) -> list[Row]:
        """One row a switch that the oracle tried, by epoch."""
        return self._rows(self.oracle_path, ORACLE)

    def to_frame(self, file: str = "metrics") -> Any:
        """Return a file of rows as a ``pandas.DataFrame``, nested fields as ``outer.inner``; lists are left out.

        Args:
            file: "metrics", "probe" or "oracle".

        Raises:
            MisuseError: another name, pandas is not installed, or the file cannot be read.
        """
        return to_frame(self._file(file))

    def to_csv(self, path: str | os.PathLike[str], file: str = "metrics") -> Path:
        """Write the same as CSV, which needs no other package, and return the path."""
        return write_csv(self._file(file), path)

    def _file(self, name: str) -> list[Row]:
        files = {"metrics": Run.metrics, "probe": Run.probe, "oracle": Run.oracle}
        if name not in files:
            raise unknown_name("file of rows", name, files)
        rows: list[Row] = files[name].__get__(self)
        return rows

    @staticmethod
    def _rows(path: Path, schema: Schema) -> list[Row]:
        rows, torn = read_json_lines(path, schema)
        if torn is not None:
            warnings.warn(f"{torn}.", DamageWarning, stacklevel=3)
        return rows

    @property
    def checkpoints(self) -> list[Path]:
        """The two-phase run's checkpoints, by epoch."""
        return sorted((self.path / "checkpoints").glob("epoch-*.safetensors"), key=_numeric)

    def clean(self) -> None:
        """Remove the files of writers that were killed; only for the process that holds the directory's lock."""
        for folder in (self.path, *self.path.glob("seed-*")):
            for part in ("", "checkpoints", "checkpoints/adam", "witnesses", "state"):
                clean(folder / part)

    def is_empty(self) -> bool:
        """Whether nothing was stored yet."""
        return all(path.name == LOCK or path.is_dir() for path in self.path.rglob("*"))

    def checkpoint_path(self, epoch: int) -> Path:
        """Where the checkpoint after ``epoch`` epochs is, or would be."""
        return self.path / "checkpoints" / f"epoch-{epoch:05d}.safetensors"

    @property
    def members(self) -> list[Run]:
        """The single-seed runs: itself, or its sub-directories when it spans several seeds."""
        folders = (path.parent for path in self.path.glob("seed-*/config.json"))
        return [Run(folder) for folder in sorted(folders, key=_numeric)] or [self]


def refuse_file(path: Path) -> None:
    """Refuse a path for a run, or for what is measured of one, that is a file.

    Raises:
        MisuseError: it is.
    """
    if path.exists() and not path.is_dir():
        raise MisuseError(f"{str(path)!r} is a file: expected a folder, or a new name for one. Choose another --out.")


def _what_to_do(path: Path) -> str:
    """Return what to name in place of a path that is no run: the runs in it, or the one that it is in."""
    if not path.exists():
        return "There is nothing of that name; check the path, which is taken from the current folder."
    within = [config.parent for config in sorted(path.glob("*/config.json"))]
    runs = [run for run in (*within, path.parent) if Run(run).config_path.is_file()]
    if not runs:
        return "Name the folder of a run."
    others = ", ..." if len(runs) > _MOST_NAMED else ""
    return f"Did you mean {' or '.join(repr(str(run)) for run in runs[:_MOST_NAMED])}{others}?"


def _numeric(path: Path) -> tuple[int, str]:
    """Order names by the number that they end in, also where it has more digits than the others."""
    return len(path.name), path.name

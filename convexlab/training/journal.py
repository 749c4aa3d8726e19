"""The files of a run under way, written after every epoch, from which it is resumed."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from convexlab.errors import FailureError
from convexlab.machine.atomic import make_folder, remove, remove_folder, write_atomically
from convexlab.machine.ranks import current
from convexlab.progress import Log
from convexlab.runs import Row, Run, write_json_lines
from convexlab.runs.columns import finite_numbers
from convexlab.runs.files import digest_of
from convexlab.training.state import read_state

__all__ = ["Journal", "log_row"]

# Saving takes at most this share of the time.
_SHARE = 0.1
# Of a row, what an epoch is gone on from; a validation may be added to it later.
_DECISIVE = ("epoch", "phase", "gradient_equivalents", "train_loss", "gradient_norm", "told")


def log_row(log: Log, row: Mapping[str, Any], group: str) -> None:
    """Log the numbers of a row at its epoch, under the name of a group; a row of no epoch has no place."""
    numbers = finite_numbers(row)
    epoch = numbers.pop("epoch", None)
    if epoch is not None:
        log({f"{group}/{name}": value for name, value in numbers.items()}, round(epoch))


class Journal:
    """Rows of ``metrics.jsonl`` and, while the run is not finished, a state a trajectory under ``RUN/state``.

    Rows and checkpoints are written before the state of their epoch, so the state proves that the epoch is done. A
    state names the files before it, and a run is not resumed without these.
    """

    def __init__(self, run: Run, log: Log | None = None) -> None:
        """Read the stored files; rows beyond a trajectory's state belong to an epoch that will be repeated.

        ``log`` is called with the numbers of each row that is added, named ``run/number``.
        """
        self._log = log
        self.run = run
        self.folder = run.state_path
        self._rows = run.metrics
        self._unwritten = False
        self._saved, self._took = 0.0, 0.0

    def rows(self, name: str) -> list[Row]:
        """Return the rows of one trajectory."""
        return [row for row in self._rows if row["run"] == name]

    def append(self, *rows: Row) -> None:
        """Add rows; they are written with the next state, or by `flush`."""
        self._rows.extend(rows)
        self._unwritten = True
        if self._log is not None:
            for row in rows:
                log_row(self._log, row, row["run"])

    def largest_norm(self, name: str, until: float = math.inf) -> float | None:
        """Return the largest gradient norm after Adam's epochs of a trajectory, to an epoch; None without any."""
        adam = (row for row in self.rows(name) if row["phase"] == "adam" and row["epoch"] <= until)
        return max((row["gradient_norm"] for row in adam), default=None)

    def flush(self) -> None:
        """Write the rows that are not written yet."""
        if self._unwritten:
            write_json_lines(self.run.metrics_path, self._rows)
            self._unwritten = False

    def forget_after(self, name: str, epoch: int) -> None:
        """Drop the rows of one trajectory beyond ``epoch``."""
        self._rows = [row for row in self._rows if row["run"] != name or row["epoch"] <= epoch]

    @property
    def due(self) -> bool:
        """Whether a save now takes at most a tenth of the time since the last one; all ranks go by one clock."""
        return current().agreed(lambda: (time.monotonic() - self._saved) * _SHARE >= self._took)

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Store the rows, then a state: numbers, strings and tensors, in dicts and lists."""
        begin = time.monotonic()
        self.flush()
        current().by_writer(lambda: self._store(name, state))
        self._saved = time.monotonic()
        self._took = self._saved - begin

    def _store(self, name: str, state: Mapping[str, Any]) -> None:
        make_folder(self.folder)
        buffer = io.BytesIO()
        torch.save(dict(state) | {"schema": 1, "rows": self._marks(), "checkpoints": self._checkpoints()}, buffer)
        write_atomically(self.path(name), buffer.getvalue())

    def report(self, name: str, state: Callable[[], Mapping[str, Any]], tell: Callable[[], None]) -> None:
        """Store a state if it is time to, and report progress; a listener that ends the work then finds it stored."""
        stored = self.due
        if stored:
            self.save(name, state())
        try:
            tell()
        except BaseException:
            if not stored:
                self.save(name, state())
            raise

    def load(self, name: str) -> dict[str, Any] | None:
        """Return a stored state, or None.

        Raises:
            FailureError: the file is damaged, or the files that it was stored after are missing.
        """
        path = self.path(name)
        if not path.is_file():
            return None
        state = read_state(path)
        for run, (count, digest) in state.pop("rows").items():
            if self._mark(self.rows(run)[:count]) != [count, digest]:
                raise FailureError(
                    f"cannot resume from {str(path)!r}: expected {str(self.run.metrics_path)!r} to hold the {count} "
                    f"rows of {run!r} that it was written after, got others. Restore that file, or delete the folder "
                    f"{str(self.folder)!r} to train again from the start."
                )
        if missing := sorted(set(state.pop("checkpoints")) - set(self._checkpoints())):
            raise FailureError(
                f"cannot resume from {str(path)!r}: {missing[0]!r} is missing among the checkpoints. Restore it, or "
                f"delete the folder {str(self.folder)!r} to train again from the start."
            )
        return state

    def _marks(self) -> dict[str, list[Any]]:
        """Return number and digest of the rows of every trajectory."""
        return {run: self._mark(self.rows(run)) for run in dict.fromkeys(row["run"] for row in self._rows)}

    def _mark(self, rows: list[Row]) -> list[Any]:
        return [len(rows), digest_of([{name: row.get(name) for name in _DECISIVE} for row in rows])]

    def _checkpoints(self) -> list[str]:
        return [path.name for path in self.run.checkpoints]

    def holds(self, name: str) -> bool:
        """Return whether there is a state of that name."""
        return self.path(name).is_file()

    def drop(self, name: str) -> None:
        """Remove a state, if it is there."""
        remove(self.path(name))

    def close(self) -> None:
        """Remove the states: the run is finished."""
        remove_folder(self.folder)

    def path(self, name: str) -> Path:
        """Return where a state is, or would be."""
        return self.folder / f"{name}.pt"

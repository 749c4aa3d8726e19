"""What a run under way leaves on disk after every epoch, and how it is taken up again."""

from __future__ import annotations

import io
import pickle
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from convexlab.errors import FailureError
from convexlab.machine.atomic import write_atomically
from convexlab.runs import Row, Run, write_json_lines

__all__ = ["Journal"]

# Saving takes at most this share of the time.
_SHARE = 0.1


class Journal:
    """Rows of ``metrics.jsonl`` and, while the run is not finished, a state a trajectory under ``RUN/state``.

    Rows are written before the state of their epoch: what is written last says that the epoch is done.
    """

    def __init__(self, run: Run) -> None:
        """Read what is there; rows beyond a trajectory's state belong to an epoch that will be done again."""
        self.run = run
        self._folder = run.path / "state"
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
        """Whether a save now takes at most a tenth of the time since the last one."""
        return (time.monotonic() - self._saved) * _SHARE >= self._took

    def save(self, name: str, state: Mapping[str, Any]) -> None:
        """Store the rows, then a state: numbers, strings and tensors, in dicts and lists."""
        begin = time.monotonic()
        self.flush()
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_atomically(self._path(name), buffer.getvalue())
        self._saved = time.monotonic()
        self._took = self._saved - begin

    def load(self, name: str) -> dict[str, Any] | None:
        """Return a stored state, or None.

        Raises:
            FailureError: the file is damaged.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise FailureError(
                f"cannot resume from {str(path)!r}: the file is damaged. Delete the folder {str(self._folder)!r} to "
                "train again from the start."
            ) from error
        return state

    def holds(self, name: str) -> bool:
        """Return whether there is a state of that name."""
        return self._path(name).is_file()

    def drop(self, name: str) -> None:
        """Remove a state, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the states: the run is finished."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pt"

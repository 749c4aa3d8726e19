"""The file of a row that is trained in stretches: its record, and the tensors from which it goes on."""

from __future__ import annotations

import io
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import FailureError, MisuseError
from convexlab.machine.atomic import write_atomically
from convexlab.runs import Row
from convexlab.wording.numbers import byte_size
from paper.table import TableCase

__all__ = ["LARGEST_FILE", "RowFile", "read_row"]

LARGEST_FILE = 16 * 2**20
"""Bytes."""


@dataclass
class RowFile:
    """A row's file; it appears whole or not at all."""

    path: Path
    record: Row
    """What JSON can hold; see `train_row`."""
    tensors: dict[str, Any]
    """What the stages go on from, by name, nested."""
    saved: float = 0.0
    """When, in seconds of the epoch."""

    @classmethod
    def of(cls, case: TableCase, folder: Path) -> RowFile:
        """Read the file of a row, or begin one.

        Raises:
            MisuseError: the file is damaged, or of a row with other settings; the device may be another.
        """
        path = _path(case, folder)
        if not path.exists():
            record: Row = {"case": asdict(case), "protocols": {}, "points": {}, "stretches": [], "under_way": None}
            return cls(path, record, {})
        content = _read(path)
        known = content["record"]["case"]
        if known | {"device": case.device} != asdict(case):
            raise MisuseError(
                f"{str(path)!r} is of a row with other settings: {known}. Move it elsewhere to train this one."
            )
        return cls(path, content["record"], content["tensors"], time.time())

    def save(self) -> None:
        """Write it.

        Raises:
            FailureError: it is larger than `LARGEST_FILE`.
        """
        buffer = io.BytesIO()
        torch.save({"record": json.dumps(self.record), "tensors": _on_host(self.tensors)}, buffer)
        if buffer.tell() > LARGEST_FILE:
            raise FailureError(
                f"the state of {self.path.name} takes {byte_size(buffer.tell())}, above {byte_size(LARGEST_FILE)}."
            )
        write_atomically(self.path, buffer.getvalue())
        self.saved = time.time()


def read_row(case: TableCase, folder: Path) -> Row | None:
    """Return the record of a row as far as it has come; None where it was not begun.

    Raises:
        MisuseError: its file is damaged.
    """
    path = _path(case, folder)
    return _read(path)["record"] if path.exists() else None


def _path(case: TableCase, folder: Path) -> Path:
    return folder / f"{case.key}.pt"


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return {"record": json.loads(content["record"]), "tensors": content["tensors"]}
    except Exception as error:
        raise MisuseError(
            f"cannot read {str(path)!r}: expected the state of a row ({type(error).__name__}). Delete it to train the "
            "row from its start."
        ) from error


def _on_host(value: Any) -> Any:
    """Return a copy on the CPU that shares no storage, as a view would be stored with all that it is a view of."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    return [_on_host(item) for item in value] if isinstance(value, list) else value

"""JSON files of a run: objects, and rows a line each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from convexlab.errors import MisuseError
from convexlab.machine.atomic import write_atomically

__all__ = ["Row", "read_json", "read_json_lines", "write_json", "write_json_lines"]

Row = dict[str, Any]


def _strict(value: Any) -> Any:
    """Replace what JSON has no word for: a NaN or an infinity becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write one JSON object, atomically."""
    write_atomically(path, (json.dumps(_strict(value), indent=2, allow_nan=False) + "\n").encode())


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    lines = (json.dumps(_strict(row), allow_nan=False) + "\n" for row in rows)
    write_atomically(path, "".join(lines).encode())


def read_json(path: Path) -> Row:
    """Read one JSON object.

    Raises:
        MisuseError: the file cannot be read, or holds something else.
    """
    return _parse(_read_text(path), f"cannot read {str(path)!r}: its content")


def read_json_lines(path: Path) -> Iterator[Row]:
    """Yield one JSON object a line; none where there is no such file.

    Raises:
        MisuseError: the file cannot be read, or a line holds something else.
    """
    if not path.is_file():
        return
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield _parse(line, f"cannot read {str(path)!r}: line {number}")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MisuseError(f"cannot read {str(path)!r}: expected text in UTF-8 ({error}).") from error


def _parse(text: str, what: str) -> Row:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MisuseError(f"{what} is not JSON ({error}). Expected one object.") from error
    if not isinstance(value, dict):
        raise MisuseError(f"{what} is {type(value).__name__}, expected one JSON object.")
    return value

"""JSON files of a run: objects, and rows a line each, which carry their checksums."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from convexlab.errors import MisuseError
from convexlab.machine.atomic import write_atomically
from convexlab.runs.schema import Schema
from convexlab.wording.numbers import byte_size

__all__ = ["Row", "digest_of", "read_json", "read_json_lines", "write_json", "write_json_lines"]

Row = dict[str, Any]

_KEY = "checksum"
_DIGITS = 16
# As it is written: the last field, so that it is taken off and checked as text, whatever the numbers before it.
_CHECKSUM = re.compile(rf',(\s*)"{_KEY}": "([0-9a-f]{{{_DIGITS}}})"(\s*}})')
# More than any file that is written here; JSON in memory takes about ten times as much.
_LARGEST = 2**28


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
    """Write one JSON object with its checksum, atomically."""
    text = json.dumps(_strict(value), indent=2, allow_nan=False)
    write_atomically(path, (_signed(text, "\n  ", "\n}") + "\n").encode())


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, each with a checksum of it and all before it, atomically."""
    lines, before = [], ""
    for row in rows:
        line = _signed(json.dumps(_strict(row), allow_nan=False), " ", "}", before)
        before = line[-_DIGITS - 2 : -2]
        lines.append(f"{line}\n")
    write_atomically(path, "".join(lines).encode())


def _signed(text: str, space: str, end: str, before: str = "") -> str:
    """Return the text of an object with its checksum as the last field; of an empty one as it is."""
    if text == "{}":
        return text
    return f'{text[: -len(end)]},{space}"{_KEY}": "{_digest(before + text)}"{end}'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def digest_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a digest of rows as they are stored."""
    return _digest("".join(json.dumps(_strict(row), allow_nan=False) for row in rows))


def read_json(path: Path, schema: Schema | None = None) -> Row:
    """Read one JSON object.

    Raises:
        MisuseError: the file cannot be read, holds something else, was changed, or a field is not of its kind. The
            message names file and field, what was expected and what came.
    """
    where = f"cannot read {str(path)!r}: its content"
    return _parse(_read_text(path), where, schema)[0]


def read_json_lines(path: Path, schema: Schema | None = None) -> tuple[list[Row], str | None]:
    """Read one JSON object a line; none where there is no such file.

    Returns:
        The rows, and None, or what is wrong with the last line: it broke off, and is left out.

    Raises:
        MisuseError: as `read_json` does, with the line.
    """
    if not path.is_file():
        return [], None
    rows: list[Row] = []
    before = ""
    text = _read_text(path)
    lines = text.split("\n")
    last = len(lines) if lines[-1].strip() else None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row, before = _parse(line, f"cannot read {str(path)!r}: line {number}", schema, before)
        except _TornError as error:
            # Whoever writes ends every line: this one was cut when the file was copied.
            if number == last and rows:
                return rows, f"line {number} of {str(path)!r} broke off, and is left out"
            raise MisuseError(str(error)) from error
        rows.append(row)
    return rows, None


class _TornError(MisuseError):
    """What is no JSON: it may be the beginning of it."""


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            size, most = byte_size(path.stat().st_size), byte_size(_LARGEST)
            raise MisuseError(f"cannot read {str(path)!r}: it takes {size}, expected at most {most}.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MisuseError(f"cannot read {str(path)!r}: expected text in UTF-8 ({error}).") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON's")


def _parse(text: str, what: str, schema: Schema | None, before: str = "") -> tuple[Row, str]:
    """Return an object without its checksum, and the checksum."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _TornError(f"{what} is not JSON ({error}). Expected one object.") from error
    if not isinstance(value, dict):
        raise MisuseError(f"{what} is {type(value).__name__}, expected one JSON object.")
    stored = value.pop(_KEY, None)
    if stored is not None:
        match = _CHECKSUM.fullmatch(text.rstrip(), text.rfind(","))
        plain = f"{text[: match.start()]}{match[3]}" if match else ""
        if match is None or _digest(before + plain) != match[2]:
            raise MisuseError(
                f"{what} does not fit its checksum {str(stored)[:40]!r}: it was changed or damaged, or a line before "
                "it is missing. Restore it from where it came; what has no checksum is read as it is."
            )
    if schema is not None:
        schema.check(value, what)
    return value, stored or ""

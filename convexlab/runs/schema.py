"""What the fields of a run's files may hold: kinds and ranges, checked where a file is read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convexlab.errors import MisuseError

__all__ = [
    "VERSION",
    "Kind",
    "Schema",
    "anything",
    "flag",
    "list_of",
    "number",
    "object_of",
    "text",
    "whole",
]

VERSION = 1
"""Version of the files that are written; a file without `schema` is older, and read as such."""


@dataclass(frozen=True)
class Kind:
    """What a field may hold, beside null: a missing number is null everywhere."""

    expected: str
    """In words."""
    fits: Callable[[Any], bool]


anything = Kind("anything", lambda value: True)
text = Kind("a text", lambda value: isinstance(value, str))
flag = Kind("true or false", lambda value: isinstance(value, bool))


def number(least: float = -sys.float_info.max, most: float = sys.float_info.max) -> Kind:
    """A finite number within bounds."""
    bounds = (
        "" if least == -most else f" from {least:g}" if most == sys.float_info.max else f" from {least:g} to {most:g}"
    )

    def fits(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

    return Kind(f"a number{bounds}", fits)


def whole(least: int = 0, most: int = 2**63 - 1) -> Kind:
    """A whole number within bounds; 3.0 is one."""

    def fits(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and least <= value <= most and value % 1 == 0

    return Kind(f"a whole number from {least}", fits)


def list_of(kind: Kind) -> Kind:
    """A list whose items are all of a kind, or null."""

    def fits(value: Any) -> bool:
        return isinstance(value, list) and all(item is None or kind.fits(item) for item in value)

    return Kind(f"a list, each of it {kind.expected}", fits)


def object_of(kinds: Mapping[str, Kind] | None = None, others: Kind = anything) -> Kind:
    """An object with fields of these kinds, any of which may be missing, and all others of one kind."""
    known = dict(kinds or {})

    def fits(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        return all(item is None or known.get(name, others).fits(item) for name, item in value.items())

    words = [f"{name!r} {kind.expected}" for name, kind in known.items()]
    rest = [] if others is anything else [f"others {others.expected}"]
    return Kind(f"an object ({', '.join(words + rest)})" if words + rest else "an object", fits)


@dataclass(frozen=True)
class Schema:
    """The fields of a file, or of each of its rows."""

    fields: Mapping[str, Kind]
    others: Kind = anything
    """Kind of fields that are not named: those of later versions, and of a problem's validation."""
    required: tuple[str, ...] = field(default=())

    def check(self, row: Mapping[str, Any], where: str) -> None:
        """Raise a MisuseError that says what is wrong with a row, if anything is."""
        version = row.get("schema")
        if version is not None and not (isinstance(version, int) and version <= VERSION):
            raise MisuseError(
                f"{where} has schema {version!r}: expected at most {VERSION}, which is what this version reads. "
                "Install the version of ConvexLab that wrote it, or a later one."
            )
        for name in self.required:
            if row.get(name) is None:
                raise MisuseError(f"{where} lacks field {name!r}: expected {self.fields[name].expected}.")
        for name, value in row.items():
            kind = self.fields.get(name, self.others)
            if value is not None and not kind.fits(value):
                came = repr(value)
                raise MisuseError(
                    f"{where}, field {name!r}: expected {kind.expected}, got "
                    f"{came if len(came) <= 60 else came[:57] + '...'}."
                )

"""Rows as a table: CSV without any other package, or a pandas frame for those who have it."""

from __future__ import annotations

import csv
import importlib
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from convexlab.errors import MisuseError
from convexlab.machine.atomic import write_atomically

__all__ = ["csv_text", "finite_numbers", "flat", "to_frame", "write_csv"]

# What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection), wide forms among them.
_FORMULA = tuple("=+-@\t\n＝＋－＠")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


def flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested objects as columns of their own, named ``outer.inner``."""
    columns: dict[str, Any] = {}
    for key, value in row.items():
        columns |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return columns


def finite_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what a logger of series takes of a row: its finite numbers, nested ones too."""
    numbers = {name: value for name, value in flat(row).items() if isinstance(value, int | float)}
    return {
        name: float(value) for name, value in numbers.items() if not isinstance(value, bool) and math.isfinite(value)
    }


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV; a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([_guarded(cell) for cell in row] for row in (columns, *rows))
    return file.getvalue()


def write_csv(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Write rows as CSV, nested objects as columns of their own and lists left out, and return the path."""
    columns, table = _table(rows)
    write_atomically(Path(path), csv_text(columns, [[row.get(name) for name in columns] for row in table]).encode())
    return Path(path)


def to_frame(rows: Iterable[Mapping[str, Any]]) -> Any:
    """Return rows as a ``pandas.DataFrame``, with the columns of `write_csv`.

    Raises:
        MisuseError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise MisuseError(
            "expected pandas to be installed, for a frame. Install it (pip install pandas), or write CSV: to_csv(path)."
        ) from error
    columns, table = _table(rows)
    return pandas.DataFrame(table, columns=columns)


def _table(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    table = [{name: value for name, value in flat(row).items() if not isinstance(value, list)} for row in rows]
    return list(dict.fromkeys(name for row in table for name in row)), table


def _guarded(cell: Any) -> Any:
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    # The writer quotes line feeds only, and readers end a row at a carriage return.
    text = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text

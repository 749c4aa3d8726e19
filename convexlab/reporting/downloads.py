"""The data behind a page, inside the page: links that save a file, with no script and no request."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from convexlab.reporting.digest import Digest
from convexlab.reporting.numbers import count, plain_number
from convexlab.reporting.tables import Table
from convexlab.runs.rows import Row, text_of

__all__ = ["LARGEST", "Download", "csv_text", "run_downloads", "table_download"]

# Bytes of a page with its data: less than 2 MB, which mail and code hosts still show.
LARGEST = 1_950_000

# What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection), wide forms among them.
_FORMULA = tuple("=+-@\t\n＝＋－＠")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
# Of the characters that a URL's path and an attribute in double quotes both allow: each is one byte instead of three.
_AS_THEY_ARE = ",:;/?@!$*()=+"
# A spectral density has hundreds of nodes a checkpoint, and the page has it as a figure.
_BULKY = ("density",)


@dataclass(frozen=True)
class Download:
    """A file in the page; without an address where it did not fit."""

    file: str
    href: str
    note: str
    """What it holds, and what was left out of it."""


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV; a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([_guarded(cell) for cell in row] for row in (columns, *rows))
    return file.getvalue()


def _guarded(cell: Any) -> Any:
    if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
        return cell
    # The writer quotes line feeds only, and readers end a row at a carriage return.
    text = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _href(kind: str, text: str) -> str:
    return f"data:{kind};charset=utf-8,{quote(text.encode('utf-8', 'replace'), safe=_AS_THEY_ARE)}"


def _slug(text: str, longest: int = 60) -> str:
    """A file name on any system."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text)[:longest].strip("-").lower() or "data"


def table_download(table: Table, name: str = "") -> Download:
    """Return a table of the page as CSV, its numbers as a program reads them."""
    rows = [[plain_number(cell.text) for cell in row] for row in table.rows]
    text = csv_text([column.title for column in table.columns], rows)
    return Download(f"{_slug(name or table.caption)}.csv", _href("text/csv", text), "this table as CSV")


def run_downloads(digest: Digest, room: int) -> list[Download]:
    """Return a run's metrics as CSV, its summary and its probed checkpoints as JSON.

    Args:
        digest: the run.
        room: bytes that the addresses together may take. Metrics that do not fit are thinned; what then does not is
            named and left out.
    """
    found = []
    for name, kind, value, note in _parts(digest):
        made = _json(f"{_slug(digest.label)}-{name}", value, note, room) if kind == "json" else None
        made = made or _metrics(f"{_slug(digest.label)}-{name}", value, room)
        found.append(made)
        room -= len(made.href)
    return found


def _parts(digest: Digest) -> list[tuple[str, str, Any, str]]:
    """The files there are, the smallest first: it is the last one that is thinned."""
    summary, probe, metrics = digest.records
    rows = [{key: value for key, value in row.items() if key not in _BULKY} for row in probe]
    left_out = ", without the spectral densities" if any(row.get(key) for row in probe for key in _BULKY) else ""
    checkpoints = f"{len(rows)} checkpoint{'' if len(rows) == 1 else 's'}"
    parts = [
        ("summary.json", "json", summary, "what the run reached"),
        ("probe.json", "json", rows, f"{checkpoints}{left_out}"),
        ("metrics.csv", "csv", metrics, ""),
    ]
    return [part for part in parts if part[2]]


def _json(file: str, value: Any, note: str, room: int) -> Download:
    href = _href("application/json", json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    if len(href) > room:
        return Download(file, "", f"{note}; too large for this page, see the run's directory")
    return Download(file, href, note)


def _metrics(file: str, rows: Sequence[Row], room: int) -> Download:
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    step = 1
    while step <= len(flat):
        kept = _every(flat, step)
        href = _href("text/csv", csv_text(columns, [[row.get(key) for key in columns] for row in kept]))
        if len(href) <= room:
            thinned = "" if step == 1 else f", one in {step} of {count(len(flat))} to keep this page small"
            return Download(file, href, f"{count(len(kept))} rows{thinned}")
        step = max(step + 1, math.ceil(step * len(href) / max(room, 1)))
    return Download(file, "", f"{count(len(flat))} rows; too large for this page, see the run's directory")


def _every(rows: Sequence[Row], step: int) -> list[Row]:
    """Return the first row of each training run and every ``step``-th after it."""
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        by_run.setdefault(text_of(row, "run"), []).append(row)
    return [row for group in by_run.values() for row in group[::step]]


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested objects as columns of their own, named ``outer.inner``."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat

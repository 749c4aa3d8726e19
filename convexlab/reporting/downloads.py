"""The data behind a page, inside the page: links that save a file, with no script and no request."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from convexlab.reporting.tables import Table
from convexlab.wording.numbers import plain_number

__all__ = ["LARGEST", "Download", "csv_text", "data_address", "file_name", "table_download"]

# Bytes of a page with its data: less than 2 MB, which mail and code hosts still show.
LARGEST = 1_950_000

# What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection), wide forms among them.
_FORMULA = tuple("=+-@\t\n＝＋－＠")
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
# Of the characters that a URL's path and an attribute in double quotes both allow: each is one byte instead of three.
_AS_THEY_ARE = ",:;/?@!$*()=+"


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


def data_address(kind: str, text: str) -> str:
    """Return an address that is the data themselves."""
    return f"data:{kind};charset=utf-8,{quote(text.encode('utf-8', 'replace'), safe=_AS_THEY_ARE)}"


def file_name(text: str, longest: int = 60) -> str:
    """A file name on any system."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text)[:longest].strip("-").lower() or "data"


def table_download(table: Table, name: str = "") -> Download:
    """Return a table of the page as CSV, its numbers as a program reads them."""
    rows = [[plain_number(cell.text) for cell in row] for row in table.rows]
    text = csv_text([column.title for column in table.columns], rows)
    return Download(
        f"{file_name(name or table.caption.split('. ')[0])}.csv", data_address("text/csv", text), "this table as CSV"
    )

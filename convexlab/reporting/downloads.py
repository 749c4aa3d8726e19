"""The data behind a page, inside the page: links that save a file, with no script and no request."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from convexlab.reporting.tables import Table
from convexlab.runs.columns import csv_text
from convexlab.wording.numbers import plain_number

__all__ = ["LARGEST", "Download", "data_address", "file_name", "table_download"]

# Bytes of a page with its data: less than 2 MB, which mail and code hosts still show.
LARGEST = 1_950_000

# Of the characters that a URL's path and an attribute in double quotes both allow: each is one byte instead of three.
_AS_THEY_ARE = ",:;/?@!$*()=+"


@dataclass(frozen=True)
class Download:
    """A file in the page; its address is empty where it did not fit."""

    file: str
    href: str
    note: str
    """What the file holds, and what was left out of it."""


def data_address(kind: str, text: str) -> str:
    """Return a ``data:`` address, which holds the data itself."""
    return f"data:{kind};charset=utf-8,{quote(text.encode('utf-8', 'replace'), safe=_AS_THEY_ARE)}"


def file_name(text: str, longest: int = 60) -> str:
    """Return a file name that is valid on any system."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text)[:longest].strip("-").lower() or "data"


def table_download(table: Table, name: str = "") -> Download:
    """Return a table of the page as CSV, with numbers in a form that programs read."""
    rows = [[plain_number(cell.text) for cell in row] for row in table.rows]
    text = csv_text([column.title for column in table.columns], rows)
    return Download(
        f"{file_name(name or table.caption.split('. ')[0])}.csv", data_address("text/csv", text), "this table as CSV"
    )

"""Tables of text, ready for a page or a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convexlab.wording.numbers import MISSING, short

__all__ = ["Cell", "Column", "Table", "make_table", "pairs_table", "shown"]


@dataclass(frozen=True)
class Cell:
    """One cell; the first of a row is its heading."""

    text: str
    strong: bool = False
    link: str = ""
    """The target of a link: an anchor with its #, or a file beside the page."""


@dataclass(frozen=True)
class Column:
    """A column's heading, and whether it holds numbers."""

    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table with caption; the first column heads the rows."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


def make_table(caption: str, columns: Sequence[Column | str], rows: Iterable[Sequence[Cell | str]]) -> Table:
    """Make a table of plain texts and cells, without its empty columns."""
    heads = [Column(column) if isinstance(column, str) else column for column in columns]
    body = [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    kept = [i for i in range(len(heads)) if i == 0 or any(row[i].text not in ("", MISSING) for row in body)]
    return Table(caption, tuple(heads[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in body))


def shown(value: Any) -> str:
    """Return a setting as text."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value))
    if isinstance(value, float):
        return short(value)
    return str(value)


def pairs_table(caption: str, pairs: Mapping[str, Any]) -> Table:
    """Return a table of names and their values."""
    rows = [(Cell(key.replace("_", " ")), shown(value)) for key, value in pairs.items()]
    return make_table(caption, [Column("Name", False), Column("Value", False)], rows)

"""The sentences and tables of a page in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from convexlab.reporting.contents import Contents, Section, contents_of
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.tables import Cell, Table
from convexlab.wording.numbers import typeset

__all__ = ["markdown_text"]

# What Markdown, or HTML within it, would take for markup.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#~$&])")
# Line ends too; what holds a number and its unit together stays.
_SPACES = re.compile("[^\\S\N{NO-BREAK SPACE}]+")


def markdown_text(runs: Sequence[RunFacts]) -> str:
    """Return the page of runs in Markdown (GitHub's tables); text that came from a run is escaped."""
    contents = contents_of(runs, drawn=False)
    blocks = [
        f"# {_escaped(contents.title)}",
        *map(_escaped, contents.headline),
        *_glance(contents),
        *_claims(contents),
    ]
    if contents.several:
        blocks += _tables([contents.comparison, contents.measures])
    for section in contents.sections:
        if contents.several:
            blocks += [f"## {_escaped(section.facts.label)}", *map(_escaped, section.headline)]
        blocks += _section(section)
    blocks += ["## Settings and environment", *map(_escaped, contents.repeats)]
    blocks += _tables([*contents.settings, contents.environment])
    return "\n\n".join(blocks) + "\n"


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\1", _SPACES.sub(" ", text).strip())


def _glance(contents: Contents) -> Iterator[str]:
    """Yield the facts at a glance as one list."""
    if len(contents.tiles) > 1:
        yield "\n".join(
            f"- {_escaped(tile.label)}{'' if tile.label.endswith('?') else ':'} **{_escaped(tile.value)}**"
            f"{f' ({_escaped(tile.note)})' if tile.note else ''}"
            for tile in contents.tiles
        )


def _claims(contents: Contents) -> Iterator[str]:
    claims = contents.claims
    if claims.sentences:
        yield f"## What the paper claims, and {'these runs' if contents.several else 'this run'}"
        yield from map(_escaped, [*claims.sentences, claims.about])
        yield from _tables([claims.counts, claims.runs])


def _section(section: Section) -> Iterator[str]:
    switch = section.facts.switch
    if switch is not None and switch.reason:
        yield f"The switch, by {_escaped(switch.detector or 'nobody')}: {_escaped(typeset(switch.reason))}"
    if section.oracle is not None:
        yield from map(_escaped, section.oracle.paragraphs)
        yield from _tables([section.oracle.table])
    yield from _tables([section.results])
    if section.verdicts:
        yield "\n".join(
            f"- {_escaped(verdict.where)}: **{_escaped(verdict.name)}**. {_escaped(verdict.sentence)}"
            for verdict in section.verdicts
        )
    yield from _tables([section.curvature, section.top, section.cost])


def _tables(tables: Iterable[Table | None]) -> Iterator[str]:
    """Yield each table after its caption."""
    for table in tables:
        if table is not None:
            yield _escaped(table.caption)
            yield "\n".join(_lines(table))


def _lines(table: Table) -> Iterator[str]:
    yield _line(_escaped(column.title) for column in table.columns)
    yield _line("---:" if column.numeric else "---" for column in table.columns)
    for row in table.rows:
        yield _line(map(_cell, row))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    return f"**{_escaped(cell.text)}**" if cell.strong and cell.text else _escaped(cell.text)

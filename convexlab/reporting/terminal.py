"""Runs for a terminal: the headline, and the few numbers that matter as tables."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from convexlab.errors import MisuseError
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.facts.runs import read_runs
from convexlab.reporting.parts.tables import comparison_table, curvature_summary, results_table, top_table
from convexlab.reporting.tables import Cell, Column, Table
from convexlab.reporting.words.claims import claim_sentences
from convexlab.reporting.words.run import curvature_headline, judgement, place
from convexlab.reporting.words.several import headline_of
from convexlab.runs import Run
from convexlab.wording.terminal import printable

__all__ = ["claims_text", "comparison_text", "curvature_text", "run_text"]

# Columns, where there is no terminal to ask.
_WIDTH = 100
# Columns of the page's table of results that are left out here, and those with a heading that is too wide.
_LEFT_OUT = frozenset({"Model variant", "Q", "Best epoch"})
_SHORTER = {"Gradient equivalents": "Cost"}
# The page says them in full.
_CLAIMS = "The paper's claims. 1: the loss is first non-convex, then convex. 2: in between, the gradient norm peaks."


def run_text(run: Run) -> str:
    """Return a run for `click.echo`: tables of results and of curvature, then the page's headline.

    Args:
        run: of one seed or of several, or a probe of files.

    Raises:
        MisuseError: there is no such run.
    """
    runs = read_runs([run])
    console = _console()
    for facts in runs:
        for table in filter(None, (_short(results_table(facts)), curvature_summary(facts), top_table(facts))):
            _print_table(console, table)
    _print_sentences(console, headline_of(runs))
    return _printed(console)


def curvature_text(run: Run, *, verbose: bool = False) -> str:
    """Return the curvature measured along a run, as a table and sentences for `click.echo`.

    Args:
        run: with one seed, or a probe of files.
        verbose: describe every checkpoint in words, not only those where nothing could be measured.

    Raises:
        MisuseError: there is no such run.
    """
    console = _console()
    for facts in read_runs([run]):
        for table in filter(None, (curvature_summary(facts), top_table(facts))):
            _print_table(console, table)
        in_words = [c for c in facts.probe if verbose or c.smallest is None]
        _print_sentences(console, [f"{place(c)}: {judgement(c)}\n" for c in in_words])
        _print_sentences(console, curvature_headline(facts))
    return _printed(console)


def comparison_text(runs: Sequence[Run]) -> str:
    """Return several runs side by side.

    Raises:
        MisuseError: there are fewer than two runs, each seed counted as one.
    """
    facts = read_runs(runs)
    if len(facts) < 2:
        raise MisuseError("expected at least two runs to compare, got one. `convexlab show` prints one.")
    console = _console()
    _print_table(console, comparison_table(facts, [""] * len(facts)))
    _print_sentences(console, [*headline_of(facts), *_claims(facts)])
    return _printed(console)


def claims_text(runs: Sequence[Run]) -> str:
    """Return the outcomes of the paper's claims for runs; empty where no curvature was measured.

    Raises:
        MisuseError: there is no such run.
    """
    console = _console()
    _print_sentences(console, _claims(read_runs(runs)))
    return _printed(console)


def _claims(runs: Sequence[RunFacts]) -> list[str]:
    sentences = claim_sentences(runs)
    return [_CLAIMS, *sentences] if sentences else []


def _console() -> Console:
    width, _ = shutil.get_terminal_size((_WIDTH, 24))
    return Console(
        file=io.StringIO(), width=width, force_terminal=True, highlight=False, emoji=False, legacy_windows=False
    )


def _printed(console: Console) -> str:
    """Return the printed text; `click.echo` removes the sequences for bold type where they have no effect."""
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())


def _print_table(console: Console, table: Table) -> None:
    # Columns of a table that is too wide move together.
    for spaces in (2, 1, 0):
        grid = _set(table, spaces)
        if _width_of(grid, console) <= console.width:
            break
    # A narrow terminal breaks its lines, and nothing is cut off.
    console.print(grid, crop=False)


def _width_of(grid: RichTable, console: Console) -> int:
    return max(map(Segment.get_line_length, Segment.split_lines(console.render(grid))))


def _print_sentences(console: Console, sentences: Iterable[str]) -> None:
    for sentence in sentences:
        console.print(_text(sentence))


def _short(table: Table | None) -> Table | None:
    """Return a table of results without the columns that are equal in all rows."""
    if table is None:
        return None
    kept = {index: column for index, column in enumerate(table.columns) if column.title not in _LEFT_OUT}
    columns = tuple(replace(column, title=_SHORTER.get(column.title, column.title)) for column in kept.values())
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return Table("Each at its best epoch; cost in gradient equivalents", columns, rows)


def _set(table: Table, spaces: int) -> RichTable:
    grid = RichTable(
        title=_text(table.caption),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, spaces, 0, 0),
    )
    for index, column in enumerate(table.columns):
        texts = [column.title, *(row[index].text for row in table.rows)]
        grid.add_column(
            _heading(column),
            justify="right" if column.numeric else "left",
            no_wrap=index == 0,
            min_width=max(len(word) for text in texts for word in text.split(" ")),  # No word is broken.
        )
    for row in table.rows:
        grid.add_row(*map(_cell, row))
    return grid


def _heading(column: Column) -> Text:
    return Text(printable(column.title), style="bold")


def _cell(cell: Cell) -> Text:
    return Text(printable(cell.text), style="bold" if cell.strong else "")


def _text(sentence: str) -> Text:
    return Text(printable(sentence))

"""The part of a run's page on the best switch in hindsight."""

from __future__ import annotations

from dataclasses import dataclass

from convexlab.reporting.charts.hindsight import oracle_chart
from convexlab.reporting.charts.svg import Chart
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.tables import Cell, Column, Table, make_table
from convexlab.reporting.words.hindsight import oracle_paragraphs
from convexlab.reporting.words.measures import measure_heading, measure_value
from convexlab.wording.numbers import count, number

__all__ = ["OraclePart", "oracle_part"]


@dataclass(frozen=True)
class OraclePart:
    """What stands under its heading."""

    paragraphs: list[str]
    chart: Chart | None
    table: Table | None


def oracle_part(facts: RunFacts, key: str, *, compact: bool, drawn: bool = True) -> OraclePart | None:
    """Return the part, words alone if the page is compact, without its chart if none is drawn; None without oracle."""
    if facts.oracle is None:
        return None
    words = oracle_paragraphs(facts)
    if compact:
        return OraclePart(words, None, None)
    return OraclePart(words, oracle_chart(facts, key) if drawn else None, _table(facts))


def _table(facts: RunFacts) -> Table | None:
    oracle = facts.oracle
    if oracle is None:
        return None
    ours = None if facts.two_phase is None else facts.two_phase.train_loss
    rows: list[list[Cell | str]] = [
        [
            Cell(f"epoch {count(tried.epoch)}"),
            Cell(number(tried.train_loss), strong=tried is oracle.best),
            number(tried.train_loss / ours if ours else None),
            *(measure_value(name, tried.outcome.measures.get(name)) for name in facts.measures),
            count(tried.outcome.cost),
            count(tried.resort),
        ]
        for tried in oracle.switches
    ]
    return make_table(
        "Every switch that was tried; the lowest training loss is in bold. Ratio: over the training loss of this run.",
        [
            Column("Switch", False),
            "Train loss",
            "Ratio",
            *map(measure_heading, facts.measures),
            "Gradient equivalents",
            "Gave up after epoch",
        ],
        rows,
    )

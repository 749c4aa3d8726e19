"""The files of a run as links that save them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from convexlab.reporting.downloads import Download, data_address, file_name
from convexlab.reporting.facts.run import RunFacts
from convexlab.runs.columns import csv_text, flat
from convexlab.runs.rows import Row, text_of, without_density
from convexlab.wording.numbers import count

__all__ = ["run_downloads"]


def run_downloads(facts: RunFacts, room: int) -> list[Download]:
    """Return a run's metrics as CSV, its summary and its probed checkpoints as JSON.

    Args:
        facts: the run.
        room: bytes that the addresses together may take. Metrics that do not fit are thinned. A file that still does
            not fit is named and left out.
    """
    downloads = []
    for name, kind, value, note in _parts(facts):
        made = _json(f"{file_name(facts.label)}-{name}", value, note, room) if kind == "json" else None
        made = made or _metrics(f"{file_name(facts.label)}-{name}", value, room)
        downloads.append(made)
        room -= len(made.href)
    return downloads


def _parts(facts: RunFacts) -> list[tuple[str, str, Any, str]]:
    """Return the files, the smallest first, so that the last one is thinned."""
    summary, probe, metrics = facts.records
    # The page has the densities as a figure.
    rows = [without_density(row) for row in probe]
    left_out = ", without the spectral densities" if any(checkpoint.nodes.size for checkpoint in facts.probe) else ""
    checkpoints = f"{len(rows)} checkpoint{'' if len(rows) == 1 else 's'}"
    parts = [
        ("summary.json", "json", summary, "what the run reached"),
        ("probe.json", "json", rows, f"{checkpoints}{left_out}"),
        ("metrics.csv", "csv", metrics, ""),
    ]
    return [part for part in parts if part[2]]


def _json(file: str, value: Any, note: str, room: int) -> Download:
    href = data_address("application/json", json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    if len(href) > room:
        return Download(file, "", f"{note}; too large for this page, see the run's directory")
    return Download(file, href, note)


def _metrics(file: str, rows: Sequence[Row], room: int) -> Download:
    table = [flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in table for key in row))
    step = 1
    while step <= len(table):
        kept = _every(table, step)
        href = data_address("text/csv", csv_text(columns, [[row.get(key) for key in columns] for row in kept]))
        if len(href) <= room:
            thinned = "" if step == 1 else f", one in {step} of {count(len(table))} to keep this page small"
            return Download(file, href, f"{count(len(kept))} rows{thinned}")
        step = max(step + 1, math.ceil(step * len(href) / max(room, 1)))
    return Download(file, "", f"{count(len(table))} rows; too large for this page, see the run's directory")


def _every(rows: Sequence[Row], step: int) -> list[Row]:
    """Return the first row of each training run and every ``step``-th after it."""
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        by_run.setdefault(text_of(row, "run"), []).append(row)
    return [row for group in by_run.values() for row in group[::step]]

"""The table of the verification suite: what was checked, against what, its error and the bound."""

from __future__ import annotations

from typing import NamedTuple

import pytest


class Row(NamedTuple):
    what: str
    oracle: str
    error: float
    bound: float


NAME = "verification"
"""Of the properties of a test that hold its rows: pytest-xdist carries them from the worker that ran it."""


def _rows(terminalreporter: pytest.TerminalReporter) -> list[Row]:
    """Return the rows of all tests, file by file, however the workers took turns."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    calls = sorted((report for report in reports if report.when == "call"), key=lambda report: report.location[0])
    return [Row(*value) for report in calls for name, value in report.user_properties if name == NAME]


def print_table(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the rows of the checks that ran, if any did."""
    rows = _rows(terminalreporter)
    if not rows:
        return
    cells = [("what", "oracle", "error", "bound", "")]
    cells += [(*row[:2], f"{row.error:.2g}", f"{row.bound:.2g}", "" if row.error <= row.bound else "!") for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    terminalreporter.section("verification")
    for what, oracle, error, bound, mark in cells:
        line = f"{what:{widths[0]}}  {oracle:{widths[1]}}  {error:>{widths[2]}}  {bound:>{widths[3]}} {mark}"
        terminalreporter.write_line(line.rstrip())
    held = sum(row.error <= row.bound for row in rows)
    terminalreporter.write_line(f"{held} of {len(rows)} errors are within their bounds.")

"""Every check of the verification suite is a row of one table: what, held against what, error, bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest


class Row(NamedTuple):
    what: str
    oracle: str
    error: float
    bound: float


NAME = "verification"
"""Of the properties of a test that hold its rows: pytest-xdist carries them from the worker that ran it."""
Record = Callable[[str, str, float, float], None]


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Return ``record(what, oracle, error, bound)``, which notes the row and asserts error <= bound."""

    def note(what: str, oracle: str, error: float, bound: float) -> None:
        row = Row(what, oracle, float(error), float(bound))
        record_property(NAME, tuple(row))
        assert row.error <= row.bound, f"{what}, against {oracle}: error {error:.3g}, bound {bound:.3g}"

    return note


def _rows(terminalreporter: pytest.TerminalReporter) -> list[Row]:
    """Return the rows of all tests, file by file, however the workers took turns."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    calls = sorted((report for report in reports if report.when == "call"), key=lambda report: report.location[0])
    return [Row(*value) for report in calls for name, value in report.user_properties if name == NAME]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
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

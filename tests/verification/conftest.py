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


ROWS = pytest.StashKey[list[Row]]()
Record = Callable[[str, str, float, float], None]


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> Record:
    """Return ``record(what, oracle, error, bound)``, which notes the row and asserts error <= bound."""
    rows = request.config.stash.setdefault(ROWS, [])

    def note(what: str, oracle: str, error: float, bound: float) -> None:
        row = Row(what, oracle, float(error), float(bound))
        rows.append(row)
        assert row.error <= row.bound, f"{what}, against {oracle}: error {error:.3g}, bound {bound:.3g}"

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
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

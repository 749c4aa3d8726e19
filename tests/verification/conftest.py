"""Every check of the verification suite is a row of one table: what, held against what, error, bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.verification.table import NAME, Row

Record = Callable[[str, str, float, float], None]


@pytest.fixture
def record(record_property: Callable[[str, object], None]) -> Record:
    """Return ``record(what, oracle, error, bound)``, which notes the row and asserts error <= bound."""

    def note(what: str, oracle: str, error: float, bound: float) -> None:
        row = Row(what, oracle, float(error), float(bound))
        record_property(NAME, tuple(row))
        assert row.error <= row.bound, f"{what}, against {oracle}: error {error:.3g}, bound {bound:.3g}"

    return note

"""The page of Table 1."""

from __future__ import annotations

from collections.abc import Sequence

from convexlab.reporting.study import Study
from convexlab.runs import Row

__all__ = ["table_study"]


def table_study(rows: Sequence[Row], command: str) -> Study:
    """Return the page."""
    raise NotImplementedError

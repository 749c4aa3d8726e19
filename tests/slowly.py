"""One assertion over many cases: a few of them each time, all of them with the slow tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], quick: int) -> list[Any]:
    """Return the cases for `pytest.mark.parametrize`, all but the first few marked as slow; tuples are spread."""
    marks = [(), pytest.mark.slow]
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks[place >= quick])
        for place, case in enumerate(cases)
    ]


def seeds(count: int, quick: int) -> pytest.MarkDecorator:
    """Return a parametrisation of ``seeds``, a range: the first few each time, the others with the slow tests."""
    ranges = mostly_slow([range(quick), range(quick, count)], quick=1)
    return pytest.mark.parametrize("seeds", ranges, ids=["few seeds", "the other seeds"])

"""Runs side by side: in the order of the cases, and an error of one is everyone's; in processes and in this one."""

from __future__ import annotations

import pytest
from paper.processes import side_by_side

every_count = pytest.mark.parametrize("jobs", [1, 2])


@every_count
def test_results_come_in_the_order_of_the_cases(jobs: int) -> None:
    assert side_by_side(int, ["3", "1", "2"], jobs=jobs) == [3, 1, 2]


@every_count
def test_an_error_of_the_work_is_raised(jobs: int) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        side_by_side(int, ["3", "one"], jobs=jobs)

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from convexlab.errors import MisuseError
from convexlab.wording.proportion import Proportion


@pytest.mark.parametrize(("count", "trials"), [(1, 4), (38, 40), (459, 1000)])
def test_the_interval_is_where_the_binomial_tails_are_small(count: int, trials: int) -> None:
    # Clopper and Pearson 1934; SciPy solves for the tails themselves, ours are quantiles of beta distributions.
    exact = binomtest(count, trials).proportion_ci(0.95, method="exact")
    assert Proportion(count, trials).interval == pytest.approx((exact.low, exact.high), rel=1e-9)


def test_none_and_all_have_closed_forms() -> None:
    # 0 of n: p where (1 - p)^n = 0.025.
    assert Proportion(0, 20).interval == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert Proportion(20, 20).interval == pytest.approx((0.025 ** (1 / 20), 1.0))


def test_it_counts_and_prints() -> None:
    found = Proportion.of(i < 38 for i in range(40))
    assert (found.count, found.trials, found.share) == (38, 40, 0.95)
    assert str(found).replace("\N{NO-BREAK SPACE}", " ") == "38 of 40 (95.0 %; 83.1 to 99.4 %)"


@pytest.mark.parametrize(("count", "trials"), [(0, 0), (-1, 3), (4, 3)])
def test_no_trials_or_more_hits_than_trials_is_misuse(count: int, trials: int) -> None:
    with pytest.raises(MisuseError, match=f"got {count} of {trials}"):
        Proportion(count, trials)

from __future__ import annotations

import pytest
from paper.proportion import Proportion
from scipy.stats import beta

from convexlab.errors import MisuseError


@pytest.mark.parametrize(("count", "trials"), [(1, 4), (38, 40), (459, 1000)])
def test_the_interval_is_the_quantiles_of_two_beta_distributions(count: int, trials: int) -> None:
    # Clopper and Pearson 1934, in the form of textbooks; SciPy's own solves for the binomial tails instead.
    low, high = Proportion(count, trials).interval
    assert low == pytest.approx(beta.ppf(0.025, count, trials - count + 1), rel=1e-9)
    assert high == pytest.approx(beta.ppf(0.975, count + 1, trials - count), rel=1e-9)


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

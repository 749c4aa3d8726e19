"""The arithmetic of costs."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convexlab.objective.cost import Cost

counts = st.floats(0, 1e6, allow_subnormal=False)
costs = st.builds(Cost, counts, counts, counts, counts, counts)


@pytest.mark.parametrize(
    ("cost", "equivalents"),
    [
        (Cost(), 0.0),
        (Cost(values=3), 1.0),
        (Cost(gradients=1), 1.0),
        (Cost(hessian_products=1), 2.0),
        (Cost(gauss_newton_products=3), 4.0),
        (Cost(seconds=1000), 0.0),
        (Cost(values=0.3, gradients=0.5, hessian_products=0.25), 1.1),
    ],
)
def test_gradient_equivalents(cost: Cost, equivalents: float) -> None:
    assert cost.gradient_equivalents == pytest.approx(equivalents, rel=1e-15)


@given(costs, costs, costs)
def test_costs_add_up(a: Cost, b: Cost, c: Cost) -> None:
    assert a + b == b + a
    assert a + Cost() == a
    assert a - a == Cost()
    assert (a + b).seconds == a.seconds + b.seconds
    # Three sums of three terms in another order, each rounded once.
    assert (a + b + c).gradient_equivalents == pytest.approx(
        a.gradient_equivalents + b.gradient_equivalents + c.gradient_equivalents, rel=1e-14
    )


@given(costs, st.floats(0, 100))
def test_costs_scale(a: Cost, factor: float) -> None:
    assert (a * factor).values == factor * a.values
    assert (a * factor).seconds == factor * a.seconds
    assert (a * 1) == a
    assert (a * 2) == a + a
    # A sum of products against a product of sums: five roundings.
    expected = factor * a.gradient_equivalents
    assert (a * factor).gradient_equivalents == pytest.approx(expected, rel=1e-14, abs=1e-300)


def test_sums_in_place_leave_the_summands() -> None:
    total = single = Cost(gradients=1)
    total += single
    assert single == Cost(gradients=1)
    assert total == Cost(gradients=2)
    with pytest.raises(FrozenInstanceError):
        single.gradients = 5

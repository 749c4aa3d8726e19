"""Bracketing, golden section and Brent: invariants, and the minima that SciPy finds."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from convexlab.optim.line_search import Brent, GoldenSection, Line, LineSearch
from convexlab.optim.line_search.bracketing import bracket
from convexlab.optim.line_search.interface import SearchStopped
from tests.optim.lines import Function, power

ROOT_OF_ROUNDING = math.sqrt(2.0**-52)
positive = st.floats(-6.0, 6.0).map(lambda exponent: 10.0**exponent)
both = pytest.mark.parametrize("kind", [GoldenSection, Brent])


def _check(function: Function, initial_step: float) -> None:
    line = function.line(max_evaluations=500)
    a, b, c = bracket(line, initial_step)
    assert 0.0 <= a.step < b.step < c.step
    assert a.value > b.value
    assert b.value <= c.value
    assert [point.value for point in (a, b)] == [function.value(point.step) for point in (a, b)]


@given(minimum=positive, exponent=st.floats(1.0, 6.0), initial_step=positive)
def test_bracket_of_a_unimodal_function_holds_its_minimum(minimum: float, exponent: float, initial_step: float) -> None:
    function = power(minimum, exponent)
    _check(function, initial_step)
    line = function.line()
    a, b, c = bracket(line, initial_step)
    assert line.best.value == b.value
    assert a.step < minimum < c.step or c.step == pytest.approx(minimum, rel=ROOT_OF_ROUNDING)


@given(frequency=st.floats(0.1, 50.0), height=st.floats(0.0, 0.9), initial_step=positive)
def test_bracket_of_a_function_with_many_minima(frequency: float, height: float, initial_step: float) -> None:
    function = Function(
        "waves",
        lambda a: (a - 1.0) ** 2 + height * math.cos(frequency * a),
        lambda a: 2.0 * (a - 1.0) - height * frequency * math.sin(frequency * a),
    )
    _check(function, initial_step)


@given(wall=positive, initial_step=positive)
def test_bracket_before_a_wall_of_infinite_loss(wall: float, initial_step: float) -> None:
    function = Function("wall", lambda a: -a if a < wall else math.inf, lambda a: -1.0)
    _check(function, initial_step)


@given(exponent=st.floats(-300.0, 300.0))
def test_bracket_does_not_know_the_scale_of_the_loss(exponent: float) -> None:
    # An absolute constant, such as the TINY of Numerical Recipes, would show at one end of this range.
    steps = [
        tuple(point.step for point in bracket(power(1.0, 2.0, scale).line(), 1e-3)) for scale in (1.0, 10.0**exponent)
    ]
    assert steps[1] == pytest.approx(steps[0], rel=1e-9)  # The parabola's extrapolation amplifies rounding.


def test_bracket_starts_where_a_decrease_can_be_seen() -> None:
    # At 1e-30 the loss 1 + (a - 1)^2 is 2 to the last bit, and stays so on the way down.
    function = power(1.0, 2.0, floor=1.0)
    assert function.value(1e-30) == function.value(0.0)
    a, _, c = bracket(function.line(), 1e-30)
    assert a.step < 1.0 < c.step


def test_bracket_stops_where_none_can_be_seen() -> None:
    function = Function("flat", lambda a: 1.0, lambda a: -1e-3)
    with pytest.raises(SearchStopped, match="rounding"):
        bracket(function.line(), 1.0)


@both
@given(minimum=positive, exponent=st.floats(1.2, 4.0), initial_step=positive)
def test_minimum_lies_within_the_tolerance(
    kind: type[LineSearch], minimum: float, exponent: float, initial_step: float
) -> None:
    for tolerance in (0.1, 1e-2, 1e-3):
        result = kind(tolerance=tolerance)(power(minimum, exponent).line(), initial_step)
        assert result.converged
        assert abs(result.step_size - minimum) <= 2.0 * tolerance * result.step_size


@both
@pytest.mark.parametrize(
    "function",
    [
        Function("exponential", lambda a: math.exp(a) - 5.0 * a, lambda a: math.exp(a) - 5.0),
        Function("rational", lambda a: -a / (a**2 + 2.0), lambda a: (a**2 - 2.0) / (a**2 + 2.0) ** 2),
        Function("logarithm", lambda a: a - 3.0 * math.log(a + 1.0), lambda a: 1.0 - 3.0 / (a + 1.0)),
    ],
    ids=lambda function: function.name,
)
def test_minimum_is_that_of_scipy(kind: type[LineSearch], function: Function) -> None:
    exact = scipy.optimize.minimize_scalar(function.value, bracket=(0.0, 1.0), method="brent", tol=1e-9).x
    result = kind(tolerance=1e-6)(function.line(), 0.1)
    assert abs(result.step_size - exact) <= 2e-6 * exact + 1e-9 * exact


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("initial_step", [0.01, 0.5, 7.0])
def test_brent_makes_the_moves_of_scipy(tolerance: float, initial_step: float) -> None:
    function = Function("exponential", lambda a: math.exp(a) - 5.0 * a, lambda a: math.exp(a) - 5.0)
    line = function.line()
    points = bracket(line, initial_step)
    steps: list[float] = []

    def record(a: float) -> float:
        steps.append(a)
        return function.value(a)

    scipy.optimize.brent(record, brack=tuple(point.step for point in points), tol=tolerance, full_output=True)
    ours: list[float] = []

    def evaluate(step: float, needs_slope: bool) -> tuple[float, float | None]:
        ours.append(step)
        return function.value(step), None

    result = Brent(tolerance=tolerance)(Line(evaluate, function.value(0.0), function.slope(0.0)), initial_step)
    # SciPy evaluates the bracket's three points first. Its golden ratio has seven digits (an error of 3e-8 in a step,
    # which the parabolas amplify), and it adds 1e-11 to the tolerance.
    assert ours[-len(steps[3:]) :] == pytest.approx(steps[3:], rel=1e-6)
    assert result.values == line.values + len(steps[3:])


@both
def test_tolerance_is_no_finer_than_values_resolve(kind: type[LineSearch]) -> None:
    coarse, fine = (kind(tolerance=tolerance)(power(1.0, 2.0, floor=1.0).line(), 0.3) for tolerance in (1.5e-8, 1e-15))
    assert fine.converged
    assert fine.values <= coarse.values


def test_golden_section_costs_what_the_ratio_says() -> None:
    # From a bracket of relative width w, ln(2 tolerance / w) / ln(0.618) divisions, rounded up, one value each.
    line = power(1.0, 2.0).line()
    a, _, c = bracket(line, 1.0 / 3.0)
    bracketing = line.values
    for tolerance in (1e-1, 1e-2, 1e-4):
        result = GoldenSection(tolerance=tolerance)(power(1.0, 2.0).line(), 1.0 / 3.0)
        divisions = math.log((c.step - a.step) / (2.0 * tolerance)) / math.log(0.5 * (1.0 + math.sqrt(5.0)))
        # The test is relative to points some way off the minimum, and the first point is not in the golden ratio.
        assert abs(result.values - bracketing - divisions) <= 3.0

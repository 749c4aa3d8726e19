"""What all line searches promise: counts, limits, failures as values, scale-freeness."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convexlab.errors import MisuseError
from convexlab.optim import line_search_names
from convexlab.optim.line_search import (
    Brent,
    GoldenSection,
    HagerZhang,
    Line,
    LineSearch,
    StrongWolfe,
    build_line_search,
)
from tests.optim.lines import BARRIER, DOWNHILL, MORE_THUENTE, NOWHERE, UPHILL, Function, power

SEARCHES = [build_line_search(name) for name in line_search_names()]
every_search = pytest.mark.parametrize("search", SEARCHES, ids=line_search_names())
steps = st.sampled_from([1e-8, 1e-3, 0.1, 10.0, 1e3, 1e8]) | st.floats(-8.0, 8.0).map(lambda exponent: 10.0**exponent)
powers_of_two = st.integers(-40, 40).map(lambda exponent: 2.0**exponent)


def test_names() -> None:
    assert set(line_search_names()) == {"golden-section", "brent", "strong-wolfe", "hager-zhang"}


@pytest.mark.parametrize(
    ("name", "kind"), list(zip(line_search_names(), (GoldenSection, Brent, StrongWolfe, HagerZhang), strict=True))
)
def test_build_by_name(name: str, kind: type[LineSearch]) -> None:
    assert build_line_search(name) == kind()


def test_build_passes_a_search_through() -> None:
    search = GoldenSection(tolerance=0.1)
    assert build_line_search(search) is search


def test_build_suggests_the_nearest_name() -> None:
    with pytest.raises(MisuseError, match="Did you mean 'hager-zhang'"):
        build_line_search("hager-zang")


def test_build_refuses_what_is_neither() -> None:
    with pytest.raises(MisuseError, match="got int"):
        build_line_search(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (GoldenSection, {"tolerance": 0.0}),
        (Brent, {"tolerance": 1.0}),
        (StrongWolfe, {"decrease": 0.2, "curvature": 0.1}),
        (HagerZhang, {"delta": 0.5}),
        (HagerZhang, {"sigma": 0.05}),
        (HagerZhang, {"rho": 1.0}),
        (HagerZhang, {"max_trials": 0}),
    ],
)
def test_settings_out_of_range(kind: type[LineSearch], settings: dict[str, float]) -> None:
    with pytest.raises(MisuseError, match=r"must|needs"):
        kind(**settings)


@pytest.mark.parametrize(
    ("value", "slope"), [(math.nan, -1.0), (math.inf, -1.0), (0.0, 0.0), (0.0, 1.0), (0.0, math.nan)]
)
def test_line_refuses_a_direction_that_does_not_descend(value: float, slope: float) -> None:
    with pytest.raises(MisuseError, match="direction of descent"):
        Line(lambda step, needs_slope: (step, None), value, slope)


@every_search
@pytest.mark.parametrize("step", [0.0, -1.0, math.inf, math.nan])
def test_initial_step_must_be_positive(search: LineSearch, step: float) -> None:
    with pytest.raises(MisuseError, match="positive and finite"):
        search(DOWNHILL.line(), step)


@every_search
@given(function=st.sampled_from([*MORE_THUENTE, BARRIER, DOWNHILL, UPHILL, NOWHERE]), step=steps)
def test_counts_are_the_calls_made(search: LineSearch, function: Function, step: float) -> None:
    calls = {True: 0, False: 0}

    def evaluate(step: float, needs_slope: bool) -> tuple[float, float | None]:
        calls[needs_slope] += 1
        return function.value(step), function.slope(step) if needs_slope else None

    result = search(Line(evaluate, function.value(0.0), function.slope(0.0)), step)
    assert (result.values, result.gradients) == (calls[False], calls[True])
    assert result.values + result.gradients <= search.max_trials


@every_search
@given(function=st.sampled_from([*MORE_THUENTE, BARRIER]), step=steps)
def test_result_is_a_point_of_the_function_and_no_higher(search: LineSearch, function: Function, step: float) -> None:
    result = search(function.line(), step)
    assert result.failed is None
    assert result.converged
    assert result.step_size > 0.0
    assert result.value == function.value(result.step_size)
    # Hager and Zhang's search may rise by its epsilon, 1e-6 relative, but does so only inside rounding.
    assert result.value < function.value(0.0)
    if result.slope is not None:
        assert result.slope == function.slope(result.step_size)


@every_search
def test_slope_is_none_exactly_where_it_was_not_evaluated(search: LineSearch) -> None:
    result = search(power(1.0, 2.0).line(), 0.3)
    assert (result.slope is None) == (result.gradients == 0)


@every_search
@given(function=st.sampled_from([UPHILL, NOWHERE]), step=steps)
def test_failure_is_a_value(search: LineSearch, function: Function, step: float) -> None:
    result = search(function.line(), step)
    assert result.failed is not None
    assert "no lower value was found" in result.failed
    assert (result.step_size, result.value, result.converged) == (0.0, function.value(0.0), False)


@every_search
def test_without_a_minimum_the_lowest_point_is_returned(search: LineSearch) -> None:
    result = search(DOWNHILL.line(), 1.0)
    assert result.failed is None
    assert not result.converged
    assert result.values + result.gradients == search.max_trials


@every_search
@given(limit=st.integers(1, 10), scale=st.floats(-20.0, 0.0).map(lambda exponent: 10.0**exponent))
def test_at_the_limit_the_best_point_is_returned(search: LineSearch, limit: int, scale: float) -> None:
    function = power(1.0, 4.0, scale)
    seen = [(0.0, function.value(0.0))]

    def evaluate(step: float, needs_slope: bool) -> tuple[float, float | None]:
        seen.append((step, function.value(step)))
        return function.value(step), function.slope(step) if needs_slope else None

    result = search(Line(evaluate, function.value(0.0), function.slope(0.0), max_evaluations=limit), 1e6)
    assert len(seen) - 1 <= limit
    best_step, best_value = min(seen, key=lambda point: point[1])
    if not result.converged:
        assert len(seen) - 1 == limit
        assert (result.step_size, result.value) == (best_step, best_value)
        assert (result.failed is None) == (best_step > 0.0)


@every_search
@given(function=st.sampled_from(MORE_THUENTE), scale=powers_of_two, step=steps)
def test_scaling_the_loss_changes_nothing(search: LineSearch, function: Function, scale: float, step: float) -> None:
    # A power of two scales every intermediate result exactly, so that not one bit of the steps may differ.
    scaled = Function("scaled", lambda a: scale * function.value(a), lambda a: scale * function.slope(a))
    plain, other = search(function.line(), step), search(scaled.line(), step)
    assert other == dataclasses.replace(
        plain, value=scale * plain.value, slope=None if plain.slope is None else scale * plain.slope
    )


@every_search
@given(function=st.sampled_from(MORE_THUENTE), scale=powers_of_two, step=steps)
def test_scaling_the_step_scales_the_result(search: LineSearch, function: Function, scale: float, step: float) -> None:
    scaled = Function("scaled", lambda a: function.value(scale * a), lambda a: scale * function.slope(scale * a))
    plain, other = search(function.line(), step), search(scaled.line(), step / scale)
    assert (other.step_size, other.value) == (plain.step_size / scale, plain.value)


@every_search
def test_next_step_keeps_the_first_order_change_on_a_scaled_direction(search: LineSearch) -> None:
    # The same parabola along a direction three times as long: the slope is three times as steep, the step a third.
    long = Function("long", lambda a: (3.0 * a - 1.0) ** 2, lambda a: 6.0 * (3.0 * a - 1.0))
    assert search.next_step(long.line(), 1.0, -2.0) == pytest.approx(1.0 / 3.0, rel=1e-12)


@every_search
def test_an_infinite_slope_is_a_step_too_long(search: LineSearch) -> None:
    function = Function("steep", lambda a: (a - 1.0) ** 2, lambda a: 2.0 * (a - 1.0) if a < 1.5 else math.inf)
    result = search(function.line(), 100.0)
    assert result.failed is None
    assert result.step_size < 2.0


@every_search
def test_a_wall_is_not_crept_up_to(search: LineSearch) -> None:
    # The loss falls up to the wall: there is no minimum, and a tenth of the step is not worth many evaluations.
    function = Function("wall", lambda a: -a if a < 1.0 else math.nan, lambda a: -1.0)
    result = search(function.line(), 0.3)
    assert result.failed is None
    assert 0.9 <= result.step_size < 1.0
    assert result.values + result.gradients <= 20

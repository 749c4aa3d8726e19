"""Against polynomials with known roots, and the tanh models' derivatives by hand and by SymPy."""

from __future__ import annotations

import numpy as np
import pytest
import sympy
import torch
from paper.scalar_landscape import (
    Region,
    count_changes,
    differentiate,
    norm_peaks,
    random_losses,
    squared_error,
    survey,
)
from scipy.optimize import fsolve

from convexlab.architectures import OneLayerTanh, TwoLayerTanh
from convexlab.errors import MisuseError

EPSILON = np.finfo(np.float64).eps
GRID = np.linspace(-3, 3, 601)


def two_wells(p: torch.Tensor) -> torch.Tensor:
    """(p² - 1)²: minima at ±1, a maximum at 0, inflections at ±1/√3."""
    return (p**2 - 1) ** 2


def well(p: torch.Tensor) -> torch.Tensor:
    """-1 / (1 + p²): a minimum at 0, inflections at ±1/√3, non-convex outside."""
    return -1 / (1 + p**2)


def test_two_wells() -> None:
    found = survey(two_wells, GRID + 0.003)  # no root on the grid
    assert found.minima == pytest.approx([-1, 1], rel=1e-14)
    assert found.maxima == pytest.approx([0], abs=1e-14)
    assert found.inflections == pytest.approx([-(3**-0.5), 3**-0.5], rel=1e-14)
    assert [region.convex for region in found.regions] == [True, False, True]
    assert found.convex_regions == (found.regions[0], found.regions[2])
    assert not found.is_simple


def test_of_equal_minima_the_nearest_to_zero_is_taken() -> None:
    found = survey(lambda p: ((p - 0.5) ** 2 - 1) ** 2, GRID)
    assert found.minima == pytest.approx([-0.5, 1.5], rel=1e-14)
    assert found.minimum == found.minima[0]


def test_one_well_is_the_papers_picture() -> None:
    found = survey(well, GRID + 0.003)
    assert found.is_simple
    left, right = found.branches
    assert (left.start, right.start) == (found.grid[0], found.grid[-1])
    assert left.inflections == left.entries == pytest.approx([-(3**-0.5)], rel=1e-13)
    assert right.inflections == right.entries == pytest.approx([3**-0.5], rel=1e-13)
    assert found.basin == found.branches
    # A maximum is flat: what rounding leaves is √ε of the scale, 1.5e-8, times the norm over its curvature, near 1.
    for branch in found.branches:
        assert norm_peaks(well, found, branch) == pytest.approx(branch.entries, abs=1e-6)


def test_the_basin_ends_at_the_maximum() -> None:
    # Tilted: the right well is lower; its left branch climbs over the maximum, its basin starts there.
    found = survey(lambda p: two_wells(p) - 0.1 * p, GRID)
    roots = np.sort(np.roots([4, 0, -4, -0.1]).real)
    assert (*found.minima, *found.maxima) == pytest.approx((roots[0], roots[2], roots[1]), rel=1e-13)
    assert found.minimum == found.minima[1]
    left, right = found.branches
    assert left.stationary == (found.minima[0], found.maxima[0])
    assert left.starts_convex
    assert left.inflections == found.inflections
    inner, outer = found.basin
    assert inner.start == found.maxima[0]
    assert inner.is_simple
    assert outer == right
    assert not outer.is_simple  # convex from the margin on: the norm only falls
    tilted = norm_peaks(lambda p: two_wells(p) - 0.1 * p, found, outer)
    assert tilted == outer.entries == ()


def test_branches_from_the_right_are_told_from_the_right() -> None:
    found = survey(lambda p: two_wells(p) + 0.1 * p, GRID)
    right = found.branches[1]
    assert right.stationary == (found.minima[1], found.maxima[0])
    assert right.inflections == found.inflections[::-1]
    assert right.entries == right.inflections[1:]


def test_a_root_on_the_grid_counts_once() -> None:
    found = survey(lambda p: p**4 / 12 - p**2 / 2, np.linspace(-2, 2, 5))  # L'' = p² - 1 is zero at ±1
    assert found.inflections == pytest.approx([-1, 1], rel=1e-14)


def test_touching_zero_is_no_swap() -> None:
    found = survey(lambda p: p**4, np.linspace(-1, 1, 5))
    assert found.regions == (Region(-1.0, 1.0, True),)
    assert found.minima == pytest.approx([0], abs=1e-14)


def test_a_minimum_above_the_margin_is_not_the_lowest() -> None:
    found = survey(lambda p: p**3 / 3 - p, np.linspace(-4, 3, 701))  # at 1 it is -2/3, at the left margin -52/3
    assert found.minima == pytest.approx([1], rel=1e-14)
    assert found.minimum is None
    assert found.branches == found.basin == ()
    assert not found.is_simple


def test_a_peak_in_the_last_cell_of_the_grid_is_found() -> None:
    grid = np.linspace(-(3**-0.5) - 0.004, 1, 101)  # its first step spans the inflection, and the norm falls at once
    found = survey(well, grid)
    left, _ = found.branches
    assert abs(found.slope[0]) > abs(found.slope[1])
    assert norm_peaks(well, found, left) == pytest.approx([-(3**-0.5)], abs=1e-6)


def test_the_two_layer_model_by_sympy() -> None:
    p = sympy.Symbol("p")
    h = sympy.tanh(p)
    loss = (sympy.tanh(h) - sympy.Rational(9, 20) * sympy.tanh(2 * h) - sympy.Rational(1, 10)) ** 2
    found = differentiate(squared_error(TwoLayerTanh(weight=0.45), torch.ones(1), 0.1), GRID)
    for order, values in enumerate(found):
        expected = sympy.lambdify(p, sympy.diff(loss, p, order), "numpy")(GRID)
        # A few dozen operations on numbers of the size of the largest.
        np.testing.assert_allclose(values, expected, rtol=0, atol=100 * EPSILON * np.abs(expected).max())


def test_the_one_layer_model_by_hand() -> None:
    x = np.random.default_rng(0).uniform(-0.5, 0.5, 100)
    found = differentiate(squared_error(OneLayerTanh(), torch.from_numpy(x), 0.3), GRID)
    t = np.tanh(np.outer(GRID, x))
    y, dy, ddy = t.sum(1), ((1 - t**2) * x).sum(1), (-2 * t * (1 - t**2) * x**2).sum(1)
    expected = (y - 0.3) ** 2, 2 * (y - 0.3) * dy, 2 * (dy**2 + (y - 0.3) * ddy)
    for values, right in zip(found, expected, strict=True):
        # Sums of 100 terms of at most 1, times a factor of at most 20.
        np.testing.assert_allclose(values, right, rtol=0, atol=2000 * EPSILON)


def test_the_second_convex_region_arises_where_two_derivatives_vanish() -> None:
    grid = np.linspace(-4, 4, 2001)

    def regions(weight: float) -> int:
        return len(survey(squared_error(TwoLayerTanh(weight=weight), torch.ones(1), 0.1), grid).convex_regions)

    (change,) = count_changes(regions, [0.40, 0.42, 0.44], tolerance=1e-6)
    p, c = sympy.symbols("p c")
    loss = (sympy.tanh(sympy.tanh(p)) - c * sympy.tanh(2 * sympy.tanh(p)) - sympy.Rational(1, 10)) ** 2
    conditions = sympy.lambdify((p, c), [sympy.diff(loss, p, 2), sympy.diff(loss, p, 3)], "numpy")
    _, expected = fsolve(lambda at: conditions(*at), [0.1, 0.42], xtol=1e-12)
    # A pair of roots closer than the step h is missed: an error in C of some h²; with bisection, 2e-5.
    assert change.at == pytest.approx(expected, abs=2e-5)
    assert (change.before, change.after) == (1, 2)


def test_the_second_minimum_arises_at_one_half() -> None:
    def minima(weight: float) -> int:
        return len(survey(squared_error(TwoLayerTanh(weight=weight), torch.ones(1), 0.1), GRID).minima)

    # dy/dh = sech²h - 2C sech²2h vanishes first at h = 0, for C = 1/2, then at ±h with
    # 3h² ≈ 2C - 1. A pair within a step of 0.01 of each other can be missed: an error in C of 4e-5.
    (change,) = count_changes(minima, [0.45, 0.49, 0.53], tolerance=1e-6)
    assert change.at == pytest.approx(0.5, abs=4e-5)


def test_changes_of_a_step_function() -> None:
    found = count_changes(lambda value: int(value > 0.3) + 2 * int(value > 1.7), [0, 1, 2], tolerance=1e-9)
    assert [(change.before, change.after) for change in found] == [(0, 1), (1, 3)]
    assert [change.at for change in found] == pytest.approx([0.3, 1.7], abs=1e-9)


def test_random_tasks_are_the_same_whatever_their_number() -> None:
    few, many = random_losses(2, seed=3), random_losses(5, seed=3)
    p = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(few[1](p), many[1](p))
    assert not torch.equal(few[0](p), few[1](p))
    # At p = 0 the output is zero and the loss the squared target.
    targets = [loss(torch.zeros(1, dtype=torch.float64)).item() ** 0.5 for loss in random_losses(200)]
    assert 0 <= min(targets) < 0.1
    assert 0.9 < max(targets) < 1


def test_a_line_has_no_curvature() -> None:
    found = survey(lambda p: 2 * p, [0.0, 1.0, 2.0])
    assert found.slope.tolist() == [2.0, 2.0, 2.0]
    assert found.curvature.tolist() == [0.0, 0.0, 0.0]
    assert found.convex_regions == found.minima == found.maxima == ()


@pytest.mark.parametrize("grid", [[0.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, float("inf")], [[0.0, 1.0, 2.0]]])
def test_a_grid_that_does_not_rise_is_misuse(grid: list[float]) -> None:
    with pytest.raises(MisuseError, match="three finite rising values"):
        survey(well, grid)

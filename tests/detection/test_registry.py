"""Detectors by name, the fixed epoch, and what a detector costs."""

from __future__ import annotations

import math

import pytest

from convexlab import Algorithm1, BudgetFraction, FixedEpoch, GradientNormPeak, MisuseError
from convexlab.detection import DEFAULT_DETECTOR, build_detector, detector_names


def test_names() -> None:
    assert set(detector_names()) >= {"algorithm-1", "gradient-norm-peak", "curvature", "budget-fraction"}
    assert DEFAULT_DETECTOR in detector_names()
    assert all(20 < len(description) < 200 for description in detector_names().values())


def test_a_name_builds_a_fresh_detector() -> None:
    assert type(build_detector("algorithm-1")) is Algorithm1
    assert type(build_detector("gradient-norm-peak")) is GradientNormPeak
    used = build_detector("algorithm-1")
    used.update(loss=1.0, gradient_norm=1.0)
    assert build_detector("algorithm-1").epoch == 0


def test_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(MisuseError, match=r"unknown detector 'algorithm1'. Did you mean 'algorithm-1'"):
        build_detector("algorithm1")


def test_only_what_needs_curvature_costs_something() -> None:
    for name in detector_names():
        detector = build_detector(name, budget=9)
        assert (detector.cost > 0) == ("smallest" in detector.needs), name
    assert FixedEpoch(3).cost == 0.0


@pytest.mark.parametrize("switch_epoch", [1, 2, 7])
def test_fixed_epoch_counts_every_epoch(switch_epoch: int) -> None:
    detector = FixedEpoch(switch_epoch)
    for epoch in range(1, switch_epoch + 3):
        fired = detector.update(loss=math.nan, gradient_norm=math.inf)
        assert fired == detector.fired == (epoch >= switch_epoch)
        assert detector.epoch == min(epoch, switch_epoch)
    assert detector.reason == f"the switch was set to epoch {switch_epoch}"


@pytest.mark.parametrize("switch_epoch", [0, -1])
def test_fixed_epoch_below_one(switch_epoch: int) -> None:
    with pytest.raises(MisuseError, match="expected switch_epoch of at least 1"):
        FixedEpoch(switch_epoch)


@pytest.mark.parametrize(
    ("budget", "fraction", "epoch"), [(30, 0.5, 15), (30, 0.7, 21), (1, 0.5, 1), (9, 0.01, 1), (9, 0.99, 9)]
)
def test_budget_fraction_by_hand(budget: int, fraction: float, epoch: int) -> None:
    detector = BudgetFraction(budget, fraction)
    fired = [detector.update(loss=math.nan, gradient_norm=1.0) for _ in range(budget)]
    assert fired == [at >= epoch for at in range(1, budget + 1)]
    assert detector.reason == f"the switch was set to epoch {epoch}, {fraction:.0%} of a budget of {budget}"


def test_only_budget_fraction_asks_for_the_budget() -> None:
    detector = build_detector("budget-fraction", budget=30)
    assert isinstance(detector, BudgetFraction)
    assert detector.switch_epoch == 9
    with pytest.raises(MisuseError, match=r"expected a budget in epochs, .*got none: pass budget="):
        build_detector("budget-fraction")


@pytest.mark.parametrize(
    ("budget", "fraction", "message"),
    [
        (0, 0.5, "expected budget of at least 1 epoch, got 0"),
        (30, 0.0, "expected fraction between 0 and 1, got 0.0"),
        (30, 1.0, "expected fraction between 0 and 1, got 1.0"),
    ],
)
def test_budget_fraction_out_of_range(budget: int, fraction: float, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        BudgetFraction(budget, fraction)

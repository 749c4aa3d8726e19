"""Every way to train a network of Table 1: shared work is the same work, and every evaluation is charged."""

from __future__ import annotations

import math
from typing import Any

import pytest
from paper.adam_run import AdamRun
from paper.protocols import ADAM, COSINE, FIXED, OURS, PAPERS, Plan, train_ways

from convexlab.errors import MisuseError
from convexlab.problems import Problem, friedman

PLAN = Plan(epochs=8, switch=3, rate=3e-3, seed=0, detector="budget-fraction")


@pytest.fixture(scope="module")
def task() -> Problem:
    return friedman(train_size=60, seed=0, batch_size=16)


@pytest.fixture(scope="module")
def ways(task: Problem) -> dict[str, Any]:
    return train_ways(task, PLAN)


def test_adam_is_adam(task: Problem, ways: dict[str, Any]) -> None:
    run = AdamRun(task, rate=PLAN.rate, seed=PLAN.seed, watched=False)
    expected = [run.record()["train_loss"]]
    for _ in range(PLAN.epochs):
        run.train()
        expected.append(run.record()["train_loss"])
    # Watched mini-batches are computed in halves: equal but for rounding.
    assert [loss for *_, loss in ways[ADAM]["curve"]] == pytest.approx(expected, rel=1e-4)
    assert [(epoch, cost) for epoch, cost, _ in ways[ADAM]["curve"]] == [(e, e) for e in range(PLAN.epochs + 1)]
    assert ways[ADAM]["train_loss"] == min(loss for *_, loss in ways[ADAM]["curve"])


def test_the_cosine_rate_ends_at_nothing(task: Problem, ways: dict[str, Any]) -> None:
    run = AdamRun(task, rate=PLAN.rate, seed=PLAN.seed, watched=False)
    for epoch in range(PLAN.epochs):
        run.train(PLAN.rate * math.cos(math.pi * epoch / PLAN.epochs / 2) ** 2)
    assert ways[COSINE]["curve"][-1][2] == pytest.approx(run.record()["train_loss"], rel=1e-6)


def test_the_first_phase_is_the_beginning_of_adam(ways: dict[str, Any]) -> None:
    beginning = ways[ADAM]["curve"][: PLAN.switch + 1]
    for way in (PAPERS, FIXED):
        assert ways[way]["curve"][: PLAN.switch + 1] == beginning
        assert ways[way]["switch"] == PLAN.switch


def test_the_papers_way_takes_all_its_steps_and_is_judged_at_equal_cost_too(ways: dict[str, Any]) -> None:
    way = ways[PAPERS]
    assert way["steps"] == PLAN.epochs - PLAN.switch
    # A golden-section step brackets and narrows by values, a third each, after one gradient.
    assert way["cost"] > PLAN.switch + 2 * way["steps"]
    affordable = [loss for _, cost, loss in way["curve"] if cost <= PLAN.epochs]
    assert way["at_equal_cost"]["train_loss"] == min(affordable)
    assert way["train_loss"] == min(loss for *_, loss in way["curve"]) < way["at_equal_cost"]["train_loss"]


def test_ours_stays_within_the_budget(ways: dict[str, Any]) -> None:
    for way in (FIXED, OURS):
        assert max(cost for _, cost, _ in ways[way]["curve"]) <= PLAN.epochs + 1e-9
        assert ways[way]["train_loss"] == min(loss for *_, loss in ways[way]["curve"])


def test_a_switch_that_both_make_leads_to_the_same_end(task: Problem, ways: dict[str, Any]) -> None:
    # The detector fires at 0.3 of the budget: 0.3 × 8 rounds to 2.
    assert ways[OURS]["switch"] == 2
    again = train_ways(task, Plan(8, 2, 3e-3, 0, detector="budget-fraction"), paper=False)
    assert again[FIXED]["curve"] == ways[OURS]["curve"]
    assert PAPERS not in again


def test_a_detector_that_never_fires_leaves_it_to_adam(task: Problem) -> None:
    ways = train_ways(task, Plan(3, 1, 3e-3, 0, detector="loss-plateau"), paper=False)
    assert ways[OURS]["switch"] is None
    assert ways[OURS]["reason"]
    assert ways[OURS]["curve"] == ways[ADAM]["curve"]
    assert ways[OURS]["train_loss"] == ways[ADAM]["train_loss"]


def test_what_is_judged_is_the_best_point(task: Problem, ways: dict[str, Any]) -> None:
    # Friedman's function has noise that no network of the noise's mean square explains: validation is near training.
    for way in ways.values():
        assert 0 < way["train_loss"] < 2
        assert 0 < way["validation_loss"] < 4
        assert way["train_accuracy"] is None


@pytest.mark.parametrize("switch", [0, 8, 9])
def test_a_switch_outside_the_run_is_refused(switch: int) -> None:
    with pytest.raises(MisuseError, match="within the 8 epochs"):
        Plan(8, switch, 1e-3, 0)

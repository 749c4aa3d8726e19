"""Every protocol that trains a network of Table 1: shared work is the same work, and every evaluation is charged."""

from __future__ import annotations

import math
from typing import Any

import pytest
from paper.adam_run import AdamRun
from paper.protocols import ADAM, COSINE, FIXED, OURS, PAPERS, ProtocolPlan, train_protocols

from convexlab.errors import MisuseError
from convexlab.problems import Problem, friedman

PLAN = ProtocolPlan(epochs=8, switch=3, rate=3e-3, seed=0, detector="budget-fraction")


@pytest.fixture(scope="module")
def task() -> Problem:
    return friedman(train_size=60, seed=0, batch_size=16)


@pytest.fixture(scope="module")
def protocols(task: Problem) -> dict[str, Any]:
    return train_protocols(task, PLAN)


def test_adam_is_adam(task: Problem, protocols: dict[str, Any]) -> None:
    run = AdamRun(task, rate=PLAN.rate, seed=PLAN.seed, watched=False)
    expected = [run.record()["train_loss"]]
    for _ in range(PLAN.epochs):
        run.train()
        expected.append(run.record()["train_loss"])
    # Watched mini-batches are computed in halves: equal but for rounding.
    assert [loss for *_, loss in protocols[ADAM]["curve"]] == pytest.approx(expected, rel=1e-4)
    assert [(epoch, cost) for epoch, cost, _ in protocols[ADAM]["curve"]] == [(e, e) for e in range(PLAN.epochs + 1)]
    assert protocols[ADAM]["train_loss"] == min(loss for *_, loss in protocols[ADAM]["curve"])


def test_the_cosine_rate_ends_at_nothing(task: Problem, protocols: dict[str, Any]) -> None:
    run = AdamRun(task, rate=PLAN.rate, seed=PLAN.seed, watched=False)
    for epoch in range(PLAN.epochs):
        run.train(PLAN.rate * math.cos(math.pi * epoch / PLAN.epochs / 2) ** 2)
    assert protocols[COSINE]["curve"][-1][2] == pytest.approx(run.record()["train_loss"], rel=1e-6)


def test_the_first_phase_is_the_beginning_of_adam(protocols: dict[str, Any]) -> None:
    beginning = protocols[ADAM]["curve"][: PLAN.switch + 1]
    for protocol in (PAPERS, FIXED):
        assert protocols[protocol]["curve"][: PLAN.switch + 1] == beginning
        assert protocols[protocol]["switch"] == PLAN.switch


def test_the_papers_protocol_takes_all_its_steps_and_is_judged_at_equal_cost_too(protocols: dict[str, Any]) -> None:
    protocol = protocols[PAPERS]
    assert protocol["steps"] == PLAN.epochs - PLAN.switch
    # A golden-section step brackets and narrows by values, a third each, after one gradient.
    assert protocol["cost"] > PLAN.switch + 2 * protocol["steps"]
    affordable = [loss for _, cost, loss in protocol["curve"] if cost <= PLAN.epochs]
    assert protocol["at_equal_cost"]["train_loss"] == min(affordable)
    assert (
        protocol["train_loss"] == min(loss for *_, loss in protocol["curve"]) < protocol["at_equal_cost"]["train_loss"]
    )


def test_ours_stays_within_the_budget(protocols: dict[str, Any]) -> None:
    for protocol in (FIXED, OURS):
        assert max(cost for _, cost, _ in protocols[protocol]["curve"]) <= PLAN.epochs + 1e-9
        assert protocols[protocol]["train_loss"] == min(loss for *_, loss in protocols[protocol]["curve"])


def test_a_switch_that_both_make_leads_to_the_same_end(task: Problem, protocols: dict[str, Any]) -> None:
    # The detector fires at 0.3 of the budget: 0.3 × 8 rounds to 2.
    assert protocols[OURS]["switch"] == 2
    again = train_protocols(task, ProtocolPlan(8, 2, 3e-3, 0, detector="budget-fraction"), paper=False)
    assert again[FIXED]["curve"] == protocols[OURS]["curve"]
    assert PAPERS not in again


def test_a_detector_that_never_fires_leaves_it_to_adam(task: Problem) -> None:
    protocols = train_protocols(task, ProtocolPlan(3, 1, 3e-3, 0, detector="loss-plateau"), paper=False)
    assert protocols[OURS]["switch"] is None
    assert protocols[OURS]["reason"]
    assert protocols[OURS]["curve"] == protocols[ADAM]["curve"]
    assert protocols[OURS]["train_loss"] == protocols[ADAM]["train_loss"]


def test_what_is_judged_is_the_best_point(task: Problem, protocols: dict[str, Any]) -> None:
    # Friedman's function has noise that no network of the noise's mean square explains: validation is near training.
    for protocol in protocols.values():
        assert 0 < protocol["train_loss"] < 2
        assert 0 < protocol["validation_loss"] < 4
        assert protocol["train_accuracy"] is None


@pytest.mark.parametrize("switch", [0, 8, 9])
def test_a_switch_outside_the_run_is_refused(switch: int) -> None:
    with pytest.raises(MisuseError, match="within the 8 epochs"):
        ProtocolPlan(8, switch, 1e-3, 0)

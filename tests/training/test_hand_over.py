"""From Adam to the second phase: within the budget, back to Adam where that does not pay, and on from the middle."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

import convexlab.training.second_phase as rules
from convexlab.errors import MisuseError
from convexlab.objective import Objective
from convexlab.problems import Problem, friedman
from convexlab.training.hand_over import HandOver
from convexlab.training.phases import PhaseTwo, phase_two, phase_two_names
from convexlab.training.switch import expectation
from convexlab.training.trajectory import Trajectory

# Costs are sums of up to a hundred thirds below 100, each addition rounded by at most half of 1.4e-14.
ROUNDING = 1e-12
# Without the one whose matrix has 4,801² entries, and the one on residuals, which has tests of its own.
PHASES = sorted(set(phase_two_names()) - {"ssbroyden-adam", "levenberg-marquardt"})


@pytest.fixture
def problem() -> Problem:
    return friedman(train_size=40)


def at_switch(problem: Problem, epochs: int = 2) -> Trajectory:
    trajectory = Trajectory("two-phase", problem, lr=1e-2, seed=0)
    trajectory.measure()
    for _ in range(epochs):
        trajectory.adam_epoch()
        trajectory.measure()
    return trajectory


class Record:
    """Keeps what a run would write down."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.states: list[bytes] = []

    def __call__(self, trajectory: Trajectory) -> None:
        if trajectory.phase == "adam":
            trajectory.measure()
        self.rows.append(trajectory.row().as_row() | {"seconds": 0.0})
        buffer = io.BytesIO()
        torch.save(trajectory.state(), buffer)
        self.states.append(buffer.getvalue())


def read(state: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(io.BytesIO(state), weights_only=True)
    return loaded


@pytest.mark.parametrize("name", PHASES)
def test_it_spends_the_budget_and_no_more(name: str, problem: Problem) -> None:
    phase, record = phase_two(name), Record()
    trajectory = at_switch(problem)
    before = trajectory.train_loss
    HandOver(name, phase, problem, 10.0).follow(trajectory, None, record)
    costs = [row["gradient_equivalents"] for row in record.rows]
    assert costs == sorted(costs)
    assert 10 - phase.least_cost < costs[-1] <= 10 + ROUNDING
    assert trajectory.account.costs.keys() == {"adam", name}
    assert trajectory.account.costs["adam"] == 2
    assert {row["phase"] for row in record.rows} == {name}
    assert [row["epoch"] for row in record.rows] == list(range(3, 3 + len(record.rows)))
    # What is recorded is the loss over all examples, also where the phase sees samples.
    assert record.rows[-1]["train_loss"] == pytest.approx(problem.objective.value(), rel=1e-6)
    assert trajectory.best.loss == min(row["train_loss"] for row in record.rows) < before


@pytest.mark.parametrize("left", [0.0, 0.5, 1.0, 1.9])
def test_without_the_price_of_a_step_nothing_happens(left: float, problem: Problem) -> None:
    record, trajectory = Record(), at_switch(problem)
    weights = problem.objective.flat_parameters().clone()
    HandOver("lbfgs", phase_two("lbfgs"), problem, 2 + left).follow(trajectory, None, record)
    assert record.rows == []
    assert trajectory.cost == 2
    assert torch.equal(problem.objective.flat_parameters(), weights)


def test_a_gradient_norm_above_adams_goes_back_to_adam(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_RISE_STEPS", 2)
    record, trajectory = Record(), at_switch(problem)
    HandOver("lbfgs", phase_two("lbfgs"), problem, 14.0).follow(trajectory, 0.0, record)
    assert trajectory.safe_resort is not None
    given_up = trajectory.safe_resort["epoch"]
    assert given_up == 4
    assert trajectory.safe_resort["reason"].startswith(
        "the gradient norm has been above Adam's largest, 0, for 2 steps"
    )
    assert [row["phase"] for row in record.rows if row["epoch"] <= given_up] == ["lbfgs"] * 2
    adam = [row for row in record.rows if row["epoch"] > given_up]
    assert adam
    assert {row["phase"] for row in adam} == {"adam"}
    assert trajectory.account.costs["adam"] == 2 + len(adam)
    # Adam is paid in whole epochs.
    assert 14 - 1 < trajectory.cost <= 14 + ROUNDING


@pytest.mark.parametrize("name", ["lbfgs-adam-scaled", "cg-golden", "lbfgs-adam-progressive"])
@pytest.mark.parametrize("resorts", [False, True])
def test_from_anywhere_in_the_middle_it_goes_on_the_same(
    name: str, resorts: bool, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "_RISE_STEPS", 2)
    largest = 0.0 if resorts else None
    budget = 24.0 if name == "cg-golden" else 12.0  # Whose steps cost four to six.
    whole = Record()
    trajectory = at_switch(problem)
    HandOver(name, phase_two(name), problem, budget).follow(trajectory, largest, whole)
    assert (trajectory.safe_resort is not None) == resorts
    weights = problem.objective.flat_parameters().clone()
    for place, state in enumerate(whole.states):
        other = friedman(train_size=40)
        hand_over, rest = HandOver(name, phase_two(name), other, budget), Record()
        again = Trajectory("two-phase", other, lr=1e-2, seed=0)
        again.restore(read(state), hand_over.build)
        hand_over.follow(again, largest, rest)
        assert rest.rows == whole.rows[place + 1 :]
        assert torch.equal(other.objective.flat_parameters(), weights)
        assert again.safe_resort == trajectory.safe_resort


def test_what_the_phase_cannot_do_is_refused_at_once(problem: Problem) -> None:
    small = PhaseTwo("under test", phase_two("lbfgs").build, max_parameters=10)
    with pytest.raises(MisuseError, match="takes at most 10 parameters, but the model has 4801"):
        HandOver("small", small, problem, 10.0)
    whole = Problem.of(Objective(problem.model, problem.objective.data, torch.nn.MSELoss()))
    name = "lbfgs-adam-progressive"
    with pytest.raises(MisuseError, match=r"expected mini-batches that are rows in memory. Choose another --phase-two"):
        HandOver(name, phase_two(name), whole, 10.0)


@pytest.mark.parametrize(
    ("spent", "budget", "said"), [(9, 30, True), (30, 100, False), (24, 30, False), (29, 78, True), (50, 100, False)]
)
def test_few_evaluations_on_mini_batches_are_warned_of(spent: int, budget: int, said: bool, problem: Problem) -> None:
    sentence = expectation(problem, spent, budget)
    assert (sentence is not None) == said
    assert not said or sentence.startswith(f"{budget - spent} evaluations are left")
    whole = Problem(problem.model, problem.objective)
    assert expectation(whole, spent, budget) is None

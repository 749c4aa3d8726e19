"""One trajectory: what is charged, what is kept, and that a stored state goes on as if it had never been left."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch

import convexlab as cl
from convexlab.errors import FailureError
from convexlab.optim.flat import FlatOptimizer
from convexlab.problems import Problem, friedman
from convexlab.training.hand_over import HandOver
from convexlab.training.phases import phase_two
from convexlab.training.second_phase import Step
from convexlab.training.trajectory import Account, Trajectory


@pytest.fixture
def problem() -> Problem:
    return friedman(train_size=40)


def begin(problem: Problem, name: str = "two-phase") -> Trajectory:
    trajectory = Trajectory(name, problem, lr=1e-2, seed=3)
    trajectory.measure()
    return trajectory


def weights_of(problem: Problem) -> torch.Tensor:
    return problem.objective.flat_parameters().clone()


def step(loss: float, norm: float = 1.0, **changes: Any) -> Step:
    return Step(**{"cost": 2.5, "seconds": 0.5, "loss": loss, "gradient_norm": norm, "failed": None} | changes)


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from disk."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


def no_second(adam: torch.optim.Adam) -> FlatOptimizer:
    raise AssertionError("there is no second phase to build")


def test_an_account_adds_up_by_purpose() -> None:
    account = Account()
    assert account.cost == 0
    account.charge("adam", 1.0, 0.25)
    account.charge("adam", 1.0, 0.25)
    account.charge("detector", 0.5)
    with account.timed("detector"):
        pass
    assert account.cost == 2.5
    assert account.costs == {"adam": 2.0, "detector": 0.5}
    assert account.seconds["adam"] == 0.5
    assert account.seconds["detector"] > 0
    assert account.of_adam() == Account({"adam": 2.0}, {"adam": 0.5})
    assert Account().of_adam().cost == 0


def test_an_epoch_of_adam_costs_one_and_a_measurement_nothing(problem: Problem) -> None:
    trajectory = begin(problem)
    assert (trajectory.epoch, trajectory.phase, trajectory.cost) == (0, "start", 0)
    before = weights_of(problem)
    loss = trajectory.adam_epoch()
    assert (trajectory.epoch, trajectory.phase, trajectory.account.costs) == (1, "adam", {"adam": 1.0})
    assert not torch.equal(weights_of(problem), before)
    trajectory.measure()
    assert trajectory.cost == 1
    assert trajectory.train_loss == problem.objective.value() != loss
    gradient = problem.objective.gradient()
    assert trajectory.gradient_norm == pytest.approx(float(torch.linalg.vector_norm(gradient.double())), rel=1e-6)


def test_a_row_says_where_it_stands(problem: Problem) -> None:
    trajectory = begin(problem)
    trajectory.adam_epoch()
    trajectory.measure()
    trajectory.account.charge("detector", 0.25, 0.5)
    row = trajectory.row().as_row()
    seconds = trajectory.account.seconds["adam"]
    assert row == {
        "run": "two-phase",
        "phase": "adam",
        "epoch": 1,
        "gradient_equivalents": 1.25,
        "seconds": seconds + 0.5,
        "train_loss": trajectory.train_loss,
        "gradient_norm": trajectory.gradient_norm,
    }
    shared = trajectory.row("adam-constant", trajectory.account.of_adam()).as_row()
    assert shared == row | {"run": "adam-constant", "gradient_equivalents": 1.0, "seconds": seconds}


def test_it_takes_in_a_step_of_the_second_phase(problem: Problem) -> None:
    trajectory = begin(problem)
    trajectory.take("cg", step(trajectory.train_loss / 2, 0.5, given_up=None))
    assert (trajectory.epoch, trajectory.phase, trajectory.safe_resort) == (1, "cg", None)
    assert (trajectory.best.loss, trajectory.best.epoch) == (trajectory.train_loss, 1)
    trajectory.take("cg", step(trajectory.train_loss * 3, 0.7, given_up="it rose"))
    assert trajectory.safe_resort == {"epoch": 2, "reason": "it rose"}
    assert (trajectory.best.loss, trajectory.best.epoch) == (trajectory.train_loss / 3, 1)
    assert trajectory.account == Account({"cg": 5.0}, {"cg": 1.0})
    assert trajectory.gradient_norm == 0.7


def test_the_summary_is_of_the_best_epoch(problem: Problem) -> None:
    trajectory = begin(problem)
    for _ in range(3):
        trajectory.adam_epoch()
        trajectory.measure()
    best, measures = trajectory.train_loss, problem.measures()
    assert trajectory.best.epoch == 3
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.mul_(5.0)
    worse = weights_of(problem)
    trajectory.take("cg", step(best * 9, given_up=None))
    summary = trajectory.summary()
    assert summary == {
        "train_loss": best,
        **measures,
        "gradient_equivalents": 5.5,
        "seconds": pytest.approx(0.5 + trajectory.account.seconds["adam"]),
        "epoch": 3,
        "cost_breakdown": {"adam": 3.0, "cg": 2.5},
    }
    # The model stays where training is.
    assert torch.equal(weights_of(problem), worse)


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.1, math.nan), (0.1, math.inf)])
def test_what_is_not_finite_is_a_failure(loss: float, norm: float, problem: Problem) -> None:
    trajectory = begin(problem)
    with pytest.raises(FailureError, match=r"became .* in epoch 1 of two-phase. Try a smaller --lr."):
        trajectory.take("cg", step(loss, norm, given_up=None))
    assert trajectory.epoch == 1
    assert trajectory.cost == 2.5


def test_a_loss_that_is_not_finite_is_never_the_best(problem: Problem) -> None:
    trajectory = begin(problem)
    start = trajectory.train_loss
    with torch.no_grad():
        next(problem.model.parameters()).fill_(math.nan)
    with pytest.raises(FailureError, match="the training loss is nan, its gradient's norm nan, before the first step"):
        trajectory.measure()
    assert (trajectory.best.loss, trajectory.best.epoch) == (start, 0)
    assert all(bool(tensor.isfinite().all()) for tensor in trajectory.best.weights.values())


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_stored_state_goes_on_as_if_never_left(epochs: int, problem: Problem) -> None:
    whole = begin(problem)
    for _ in range(4):
        whole.adam_epoch()
    whole.measure()
    expected, expected_weights = whole.row().as_row(), weights_of(problem)

    problem.reset()
    first = begin(problem)
    for _ in range(epochs):
        first.adam_epoch()
    first.measure()
    state = stored(first.state())
    other = friedman(train_size=40)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.zero_()
    again = Trajectory("two-phase", other, lr=1e-2, seed=3)
    again.restore(state, no_second)
    assert again.row() == first.row()
    assert (again.best.loss, again.best.epoch) == (first.best.loss, first.best.epoch)
    for _ in range(4 - epochs):
        again.adam_epoch()
    again.measure()
    assert torch.equal(weights_of(other), expected_weights)
    assert {**again.row().as_row(), "seconds": 0} == {**expected, "seconds": 0}


def test_notes_survive_and_empty_ones_are_none(problem: Problem) -> None:
    trajectory = begin(problem)
    trajectory.switch = {"epoch": 0, "reason": "set"}
    trajectory.watch = {"trained": 2.0}
    trajectory.resort = {"failures": 1, "risen": 3}
    again = Trajectory("two-phase", problem, lr=1e-2, seed=3)
    again.restore(stored(trajectory.state()), no_second)
    assert (again.switch, again.safe_resort) == (trajectory.switch, None)
    assert again.watch == trajectory.watch
    assert again.resort["failures"] == 1
    assert again.resort["risen"] == 3
    assert again.second is None


def test_the_state_of_adam_has_nothing_else(problem: Problem) -> None:
    trajectory = begin(problem)
    trajectory.adam_epoch()
    trajectory.measure()
    trajectory.account.charge("detector", 0.5, 1.0)
    trajectory.switch, trajectory.watch = {"epoch": 1}, {"trained": 1.0}
    trajectory.resort = {"failures": 1}
    alone = Trajectory("adam-constant", problem, lr=1e-2, seed=3)
    alone.restore(stored(trajectory.adam_state()), no_second)
    assert alone.account == trajectory.account.of_adam()
    assert (alone.switch, alone.safe_resort, alone.watch, alone.resort) == (None, None, {}, {})
    assert (alone.epoch, alone.train_loss) == (1, trajectory.train_loss)


def test_the_second_phases_optimiser_comes_back_too(problem: Problem) -> None:
    hand_over = HandOver("lbfgs", phase_two("lbfgs"), problem, 8.0)
    trajectory = begin(problem)
    trajectory.adam_epoch()
    trajectory.measure()
    hand_over.follow(trajectory, None, lambda _: None)
    again = Trajectory("two-phase", problem, lr=1e-2, seed=3)
    again.restore(stored(trajectory.state()), hand_over.build)
    assert again.second is not None
    assert trajectory.second is not None
    assert again.second.known == trajectory.second.known
    assert again.account == trajectory.account


def test_on_the_whole_batch_every_step_of_adam_may_be_the_best() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)  # Steps of 0.3 pass the minimum at 0 and swing about it.
    data = [(torch.ones(4, 1), torch.zeros(4, 1))]
    problem = Problem(model, cl.Objective(model, data, torch.nn.MSELoss()))
    trajectory = Trajectory("two-phase", problem, lr=0.3, seed=0)
    losses = []
    for _ in range(30):  # Nothing is measured for the record.
        losses.append(problem.objective.value())
        trajectory.adam_epoch()
    best = min(range(30), key=losses.__getitem__)
    assert 0 < best < 29
    assert (trajectory.best.epoch, trajectory.best.loss) == (best, pytest.approx(losses[best], rel=1e-6))
    problem.model.load_state_dict(trajectory.best.weights)
    assert problem.objective.value() == losses[best]


def test_a_step_of_a_model_that_trains_otherwise_tells_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    problem = Problem(model, cl.Objective(model, [(torch.ones(4, 1), torch.zeros(4, 1))], torch.nn.MSELoss()))
    assert problem.whole_batch
    assert not problem.steps_tell_the_loss

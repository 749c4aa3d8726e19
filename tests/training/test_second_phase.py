"""The second phase a step at a time: what is charged, when a step is begun, and when it is given up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from convexlab.optim import ProgressiveLBFGS
from convexlab.problems import Problem, friedman
from convexlab.training.adam import adam_epoch
from convexlab.training.phases import PhaseTwo, phase_two
from convexlab.training.second_phase import Resort, Step, second_phase


@pytest.fixture(scope="module")
def problem() -> Problem:
    return friedman(train_size=60, seed=0, batch_size=16)


@pytest.fixture
def adam(problem: Problem) -> torch.optim.Adam:
    """Adam after an epoch."""
    problem.reset()
    adam = torch.optim.Adam(problem.model.parameters(), lr=3e-3)
    adam_epoch(problem, adam, torch.Generator().manual_seed(0), seed=0, epoch=0)
    return adam


def steps_of(problem: Problem, adam: torch.optim.Adam, name: str, budget: float) -> list[Step]:
    phase = phase_two(name)
    optimizer = phase.build(problem.model.parameters(), adam, 60)
    return list(second_phase(optimizer, phase, problem.objective, Resort(math.inf, None), budget=budget))


@pytest.mark.parametrize("name", ["cg-golden", "lbfgs-adam-scaled"])
def test_it_is_the_optimiser_itself_and_every_evaluation_is_charged(
    problem: Problem, adam: torch.optim.Adam, name: str
) -> None:
    begin = problem.objective.flat_parameters()
    taken = steps_of(problem, adam, name, 25.0)
    assert taken
    problem.objective.write(begin)
    optimizer: Any = phase_two(name).build(problem.model.parameters(), adam, 60)
    calls = {True: 0, False: 0}

    def closure(*, backward: bool = True) -> Tensor:
        calls[backward] += 1
        return problem.objective.closure(backward=backward)

    spent = 0.0
    for step in taken:
        opening = 0.0 if optimizer.known else 1.0
        affordable = (25.0 - spent - opening) / phase_two(name).search_cost
        optimizer.param_groups[0]["max_evaluations"] = int(affordable + 1e-9)
        optimizer.step(closure)
        spent += step.cost
        assert spent == pytest.approx(calls[True] + calls[False] / 3)
        assert step.loss == pytest.approx(problem.objective.value(), rel=1e-12)


@pytest.mark.parametrize("name", ["cg-golden", "lbfgs-adam-scaled"])
@pytest.mark.parametrize("budget", [1.9, 2.0, 3.5, 7.0])
def test_a_step_is_begun_with_what_it_may_cost_and_never_exceeds_the_budget(
    problem: Problem, adam: torch.optim.Adam, name: str, budget: float
) -> None:
    spent = sum(step.cost for step in steps_of(problem, adam, name, budget))
    least = phase_two(name).least_cost
    assert spent <= budget + 1e-9
    assert spent > budget - least
    assert (spent == 0) == (budget < least)


def test_a_peer_that_does_not_listen_is_interrupted_at_the_budget(problem: Problem, adam: torch.optim.Adam) -> None:
    def build(params: Any, adam: torch.optim.Adam, examples: int) -> Any:
        return torch.optim.LBFGS(params, line_search_fn="strong_wolfe")

    phase = PhaseTwo("torch's", build)
    optimizer = phase.build(problem.model.parameters(), adam, 60)
    before = problem.objective.value()
    steps = list(second_phase(optimizer, phase, problem.objective, Resort(math.inf, None), budget=30.0))
    assert sum(step.cost for step in steps) == 30.0
    assert steps[-1].loss < before


def test_steps_on_samples_cost_their_share_and_one_gradient_ends_a_step(
    problem: Problem, adam: torch.optim.Adam
) -> None:
    def build(params: Any, adam: torch.optim.Adam, examples: int) -> ProgressiveLBFGS:
        return ProgressiveLBFGS(params, examples=examples, sample_size=15)

    phase = PhaseTwo("on samples", build, sampled=True)
    rows_seen: list[int] = []

    def closure(rows: Tensor) -> Tensor:
        rows_seen.append(len(rows))
        return problem.loss_of_rows(rows)

    steps = list(
        second_phase(
            phase.build(problem.model.parameters(), adam, 60),
            phase,
            problem.objective,
            Resort(math.inf, None),
            budget=6.0,
            closure=closure,
            examples=60,
        )
    )
    assert sum(step.cost for step in steps) == pytest.approx(sum(rows_seen) / 60)
    assert sum(step.cost for step in steps) <= 6.0 + 1e-9
    assert all(step.loss == pytest.approx(problem.objective.value(), rel=1e-6) for step in steps[-1:])


def losses(resort: Resort, loss: Callable[[int], float], norm: Callable[[int], float], steps: int) -> list[str | None]:
    return [resort.against(loss(step), norm(step), None) for step in range(steps)]


def test_it_is_given_up_after_two_failed_steps_in_a_row() -> None:
    resort = Resort(1.0, None)
    failures = ["no descent", None, "no descent", "no descent"]
    assert [resort.against(0.5, 1.0, failed) for failed in failures] == [None, None, None, "no descent"]


def test_it_is_given_up_when_fifty_steps_lower_the_loss_by_less_than_a_thousandth() -> None:
    stalled = losses(Resort(1.0, None), lambda step: 1.0 - 1e-5 * step, lambda step: 0.1, 60)
    assert [reason is not None for reason in stalled].index(True) == 50
    assert "50 steps have lowered the loss by less than 0.1%" in str(stalled[50])
    assert not any(losses(Resort(1.0, None), lambda step: 0.9999**step, lambda step: 0.1, 200))
    # What Adam had counts: a loss that stays above it has not been lowered.
    assert any(losses(Resort(1e-3, None), lambda step: 0.9**step, lambda step: 0.1, 52))


def test_it_is_given_up_when_the_norm_stays_above_all_that_adam_had() -> None:
    def norm(step: int) -> float:
        return 1.0 if step == 5 else 3.0

    risen = losses(Resort(1.0, 2.0), lambda step: 0.9**step, norm, 16)
    assert [reason is not None for reason in risen].index(True) == 15  # The fifth step began the count anew.
    assert "above Adam's largest, 2," in str(risen[15])
    assert not any(losses(Resort(1.0, None), lambda step: 0.9**step, norm, 16))


def test_it_goes_on_counting_where_it_was_left_off() -> None:
    whole, first = Resort(1.0, 2.0), Resort(1.0, 2.0)
    expected = losses(whole, lambda step: 0.9**step, lambda step: 3.0, 12)
    begun = losses(first, lambda step: 0.9**step, lambda step: 3.0, 6)
    second = Resort(1.0, 2.0, first.state_dict())
    rest = [second.against(0.9**step, 3.0, None) for step in range(6, 12)]
    assert begun + rest == expected
    assert second.state_dict() == whole.state_dict()

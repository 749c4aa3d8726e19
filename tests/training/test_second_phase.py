"""The second phase a step at a time: what is charged, when a step is begun, and when it is given up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from convexlab.objective import Objective
from convexlab.optim import LBFGS, ProgressiveLBFGS
from convexlab.problems import Problem, friedman
from convexlab.training.adam import adam_epoch
from convexlab.training.phases import PhaseTwo, phase_two
from convexlab.training.second_phase import Resort, Step, second_phase_steps


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
    return list(second_phase_steps(optimizer, phase, problem.objective, Resort(None), budget=budget))


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
    steps = list(second_phase_steps(optimizer, phase, problem.objective, Resort(None), budget=30.0))
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
        second_phase_steps(
            phase.build(problem.model.parameters(), adam, 60),
            phase,
            problem.objective,
            Resort(None),
            budget=6.0,
            closure=closure,
            examples=60,
        )
    )
    assert sum(step.cost for step in steps) == pytest.approx(sum(rows_seen) / 60)
    assert sum(step.cost for step in steps) <= 6.0 + 1e-9
    assert all(step.loss == pytest.approx(problem.objective.value(), rel=1e-6) for step in steps[-1:])


def told(resort: Resort, norms: list[float]) -> list[str | None]:
    return [resort.against(norm, None) for norm in norms]


def test_it_is_given_up_after_two_failed_steps_in_a_row() -> None:
    resort = Resort(None)
    failures = ["no descent", None, "no descent", "no descent"]
    assert [resort.against(1.0, failed) for failed in failures] == [None, None, None, "no descent"]


def test_a_plateau_is_no_reason_to_give_up() -> None:
    assert not any(told(Resort(2.0), [1.0] * 500))


def test_it_is_given_up_when_the_norm_stays_above_all_that_adam_had() -> None:
    norms = [1.0 if step == 5 else 3.0 for step in range(16)]
    risen = told(Resort(2.0), norms)
    assert [reason is not None for reason in risen].index(True) == 15  # The fifth step began the count anew.
    assert "above Adam's largest, 2," in str(risen[15])
    assert not any(told(Resort(None), norms))


def test_a_risen_norm_counts_only_where_adam_sees_mini_batches(problem: Problem) -> None:
    whole = Problem(problem.model, problem.objective)
    assert (problem.whole_batch, whole.whole_batch) == (False, True)
    given_up = [any(told(Resort.of(each, 2.0), [3.0] * 16)) for each in (problem, whole)]
    assert given_up == [True, False]


def test_it_goes_on_counting_where_it_was_left_off() -> None:
    whole, first = Resort(2.0), Resort(2.0)
    expected = told(whole, [3.0] * 12)
    begun = told(first, [3.0] * 6)
    second = Resort(2.0, first.state_dict())
    assert begun + told(second, [3.0] * 6) == expected
    assert second.state_dict() == whole.state_dict()


def test_where_nothing_is_left_to_gain_it_ends_and_adam_does_not_take_over() -> None:
    weights = torch.nn.Parameter(torch.ones(3))
    model = torch.nn.ParameterList([weights])
    objective = Objective.from_batch_loss(model, [torch.zeros(1)], lambda model, batch: (model[0] - 2.0).square().sum())
    steps = list(second_phase_steps(LBFGS([weights]), phase_two("lbfgs"), objective, Resort(None), budget=100.0))
    assert steps[-1].failed is not None
    assert steps[-1].given_up is None
    assert sum(step.cost for step in steps) < 20.0
    assert torch.equal(weights.detach(), torch.full((3,), 2.0))

"""The second phase a step at a time: what is charged, when a step is begun, and when it is given up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from convexlab.optim import ProgressiveLBFGS
from convexlab.problems.tasks import Task, regression
from convexlab.training.adam import AdamRun
from convexlab.training.phases import PhaseTwo, phase_two
from convexlab.training.second_phase import Resort, Step, second_phase
from convexlab.training.switching import followed, switch_at


@pytest.fixture(scope="module")
def task() -> Task:
    return regression(train_size=60, seed=0, batch_size=16)


@pytest.fixture
def run(task: Task) -> AdamRun:
    run = AdamRun(task, rate=3e-3, seed=0, watched=False)
    run.record(run.train())
    return run


def steps_of(run: AdamRun, name: str, budget: float) -> list[Step]:
    phase, task = phase_two(name), run.task
    optimizer = phase.build(task.model.parameters(), run.adam, task.examples)
    return list(second_phase(optimizer, phase, task.objective, Resort(math.inf, None), budget=budget))


@pytest.mark.parametrize("name", ["cg-golden", "lbfgs-adam-scaled"])
def test_it_is_the_optimiser_itself_and_every_evaluation_is_charged(run: AdamRun, task: Task, name: str) -> None:
    state = run.state()
    taken = steps_of(run, name, 25.0)
    assert taken
    run.restore(state)
    optimizer: Any = phase_two(name).build(task.model.parameters(), run.adam, task.examples)
    calls = {True: 0, False: 0}

    def closure(*, backward: bool = True) -> Tensor:
        calls[backward] += 1
        return task.objective.closure(backward=backward)

    spent = 0.0
    for step in taken:
        opening = 0.0 if optimizer.known else 1.0
        affordable = (25.0 - spent - opening) / phase_two(name).search_cost
        optimizer.param_groups[0]["max_evaluations"] = int(affordable + 1e-9)
        optimizer.step(closure)
        spent += step.cost
        assert spent == pytest.approx(calls[True] + calls[False] / 3)
        assert step.loss == pytest.approx(task.objective.value(), rel=1e-12)


@pytest.mark.parametrize("name", ["cg-golden", "lbfgs-adam-scaled"])
@pytest.mark.parametrize("budget", [1.9, 2.0, 3.5, 7.0])
def test_a_step_is_begun_with_what_it_may_cost_and_never_exceeds_the_budget(
    run: AdamRun, name: str, budget: float
) -> None:
    spent = sum(step.cost for step in steps_of(run, name, budget))
    least = phase_two(name).least_cost
    assert spent <= budget + 1e-9
    assert spent > budget - least
    assert (spent == 0) == (budget < least)


def test_a_peer_that_does_not_listen_is_interrupted_at_the_budget(run: AdamRun, task: Task) -> None:
    def build(params: Any, adam: torch.optim.Adam, examples: int) -> Any:
        return torch.optim.LBFGS(params, line_search_fn="strong_wolfe")

    phase = PhaseTwo("torch's", build)
    optimizer = phase.build(task.model.parameters(), run.adam, task.examples)
    before = task.objective.value()
    steps = list(second_phase(optimizer, phase, task.objective, Resort(math.inf, None), budget=30.0))
    assert sum(step.cost for step in steps) == 30.0
    assert steps[-1].loss < before


def test_steps_on_samples_cost_their_share_and_one_gradient_ends_a_step(task: Task, run: AdamRun) -> None:
    def build(params: Any, adam: torch.optim.Adam, examples: int) -> ProgressiveLBFGS:
        return ProgressiveLBFGS(params, examples=examples, sample_size=15)

    phase = PhaseTwo("on samples", build, sampled=True)
    rows_seen: list[int] = []

    def closure(rows: Tensor) -> Tensor:
        rows_seen.append(len(rows))
        task.model.zero_grad()
        loss = task.loss(rows)
        loss.backward()
        return loss.detach()

    steps = list(
        second_phase(
            phase.build(task.model.parameters(), run.adam, 60),
            phase,
            task.objective,
            Resort(math.inf, None),
            budget=6.0,
            closure=closure,
            examples=60,
        )
    )
    assert sum(step.cost for step in steps) == pytest.approx(sum(rows_seen) / 60)
    assert sum(step.cost for step in steps) <= 6.0 + 1e-9
    assert all(step.loss == pytest.approx(task.objective.value(), rel=1e-6) for step in steps[-1:])


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


class _Failing(torch.optim.SGD):
    """A second phase whose every search fails."""

    class report:  # noqa: N801
        failed = "it never works"

    def step(self, closure: Any) -> Any:
        return closure()


FAILING = PhaseTwo("fails", lambda params, adam, examples: _Failing(params))  # type: ignore[arg-type,return-value]


def test_a_second_phase_that_fails_gives_the_rest_to_adam(run: AdamRun) -> None:
    ending = switch_at(run, run.state(), FAILING, budget=9.0, spent=1.0)
    assert ending.resorted == "it never works"
    # Two evaluations, then six epochs of Adam.
    assert [cost for cost, _ in ending.curve] == [2.0, 3.0, *map(float, range(4, 10))]
    assert ending.loss < ending.curve[0][1]


def test_a_switch_is_followed_to_the_end_of_the_budget(run: AdamRun) -> None:
    state = run.state()
    ending = switch_at(run, state, phase_two("lbfgs-adam-scaled"), budget=9.0, spent=1.0)
    assert ending.cost == 9.0  # A gradient that is known opens the last step.
    assert ending.resorted is None
    assert ending.loss == min(state.best_loss, *(loss for _, loss in ending.curve))


def test_the_steps_asked_for_include_those_of_adam_behind_it(run: AdamRun) -> None:
    taken = list(followed(run, FAILING, budget=math.inf, steps=5))
    assert [step.cost for step in taken] == [1.0] * 5
    assert [step.given_up for step in taken] == [None, "it never works", None, None, None]

"""A switch that is followed: the second phase, and Adam again where it is given up."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from paper.adam_run import AdamRun
from paper.switching import followed, switch_at

from convexlab.problems import friedman
from convexlab.training.phases import PhaseTwo, phase_two


@pytest.fixture
def run() -> AdamRun:
    run = AdamRun(friedman(train_size=60, seed=0, batch_size=16), rate=3e-3, seed=0, watched=False)
    run.record(run.train())
    return run


class _Failing(torch.optim.SGD):
    """A second phase whose every search fails."""

    class report:  # noqa: N801
        failed, state, evaluation_seconds = "it never works", "stuck", 0.0

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

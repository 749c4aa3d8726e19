"""Adam's replayed steps beside plain ones: the same weights, also after odd batches, another rate and a resume."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convexlab.problems import Problem, build_problem
from convexlab.training.adam import adam_epoch
from convexlab.training.captured_step import CapturedStep
from tests.tape import Recorder, recorder
from tests.tiny import write_problem

__all__ = ["recorder"]


def _problem(folder: Path) -> Problem:
    named = write_problem(folder)
    # Of 120 examples, the last batch has 20.
    return build_problem(named["model"], named["dataset"], "mse", batch_size=50, device="cpu")


def _train(problem: Problem, *, captured: bool, epochs: int = 4) -> CapturedStep | None:
    problem.reset()
    adam = torch.optim.Adam(problem.model.parameters(), lr=1e-2, fused=True)
    step = CapturedStep(problem, adam) if captured else None
    order = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        adam_epoch(problem, adam, order, seed=0, epoch=epoch, learning_rate=lambda done: 1e-2 / (1 + done), step=step)
    return step


def test_replayed_steps_are_plain_ones(tmp_path: Path, recorder: Recorder) -> None:
    problem = _problem(tmp_path)
    _train(problem, captured=False)
    expected = problem.objective.flat_parameters()
    step = _train(problem, captured=True)
    assert step is not None
    assert step.reason is None
    # Two of the three batches of an epoch have the recorded length; one replay was compared with a plain step.
    assert recorder.tapes[0].replays == 4 * 2 + 1
    torch.testing.assert_close(problem.objective.flat_parameters(), expected, rtol=1e-6, atol=1e-7)


def test_recording_takes_no_step(tmp_path: Path, recorder: Recorder) -> None:
    problem = _problem(tmp_path)
    adam = torch.optim.Adam(problem.model.parameters(), lr=1e-2, fused=True)
    before, draws = problem.objective.flat_parameters(), torch.get_rng_state()
    step = CapturedStep(problem, adam)
    step.prepare(problem.random_rows().of(torch.arange(50)))
    assert step.reason is None
    assert torch.equal(problem.objective.flat_parameters(), before)
    assert torch.equal(torch.get_rng_state(), draws)
    assert len(recorder.tapes) == 1
    assert all(not value.any() for state in adam.state.values() for value in state.values())


def test_without_recordings_steps_are_plain_and_say_why(tmp_path: Path) -> None:
    problem = _problem(tmp_path)
    _train(problem, captured=False)
    expected = problem.objective.flat_parameters()
    step = _train(problem, captured=True)
    assert step is not None
    assert step.reason == "cpu has no graphs of kernels to record"
    assert torch.equal(problem.objective.flat_parameters(), expected)


def waiting(loss: Tensor) -> Tensor:
    return loss if float(loss.detach()) > 0 else loss * 2


def drawing(loss: Tensor) -> Tensor:
    return loss * (1 + 1e-3 * torch.rand(()))


def not_finite(loss: Tensor) -> Tensor:
    return loss * torch.inf


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (waiting, "it waits for the device"),
        (drawing, "it draws random numbers on the host"),
        (not_finite, "a plain call is not finite, so that there is nothing to compare a replay with"),
    ],
)
def test_a_step_that_cannot_be_recorded_is_plain(
    change: Callable[[Tensor], Tensor],
    reason: str,
    tmp_path: Path,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = _problem(tmp_path)
    loss_of = problem.objective.training_loss
    monkeypatch.setattr(problem.objective, "training_loss", lambda batch: change(loss_of(batch)))
    _train(problem, captured=False)
    expected = problem.objective.flat_parameters()
    step = _train(problem, captured=True)
    assert step is not None
    assert step.reason == reason
    torch.testing.assert_close(problem.objective.flat_parameters(), expected, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_a_replay_that_is_no_plain_step_is_refused(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = _problem(tmp_path)
    loss_of, calls = problem.objective.training_loss, itertools.count(1)
    # What Python counts is the same in every replay.
    monkeypatch.setattr(problem.objective, "training_loss", lambda batch: next(calls) * loss_of(batch))
    adam = torch.optim.Adam(problem.model.parameters(), lr=1e-2, fused=True)
    before, batch = problem.objective.flat_parameters(), problem.random_rows().of(torch.arange(50))
    step = CapturedStep(problem, adam)
    step.prepare(batch)
    assert step.reason is not None
    assert step.reason.startswith("its replay is off by ")
    assert torch.equal(problem.objective.flat_parameters(), before)
    step(batch)
    assert recorder.tapes[0].replays == 1
    assert not torch.equal(problem.objective.flat_parameters(), before)

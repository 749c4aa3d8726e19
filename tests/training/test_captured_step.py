"""Adam's replayed steps beside plain ones: the same weights, also after odd batches, another rate and a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    # Two of the three batches of an epoch have the recorded length.
    assert recorder.tapes[0].replays == 4 * 2
    torch.testing.assert_close(problem.objective.flat_parameters(), expected, rtol=1e-6, atol=1e-7)


def test_recording_takes_no_step(tmp_path: Path, recorder: Recorder) -> None:
    problem = _problem(tmp_path)
    adam = torch.optim.Adam(problem.model.parameters(), lr=1e-2, fused=True)
    before = problem.objective.flat_parameters()
    step = CapturedStep(problem, adam)
    step.prepare(problem.random_rows().of(torch.arange(50)))
    assert torch.equal(problem.objective.flat_parameters(), before)
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


def test_a_step_that_waits_for_the_device_is_plain(
    tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = _problem(tmp_path)
    loss_of = problem.objective.training_loss

    def waiting(batch: Any) -> Tensor:
        loss = loss_of(batch)
        return loss if float(loss.detach()) > 0 else loss * 2

    monkeypatch.setattr(problem.objective, "training_loss", waiting)
    _train(problem, captured=False)
    expected = problem.objective.flat_parameters()
    step = _train(problem, captured=True)
    assert step is not None
    assert step.reason == "it waits for the device"
    torch.testing.assert_close(problem.objective.flat_parameters(), expected, rtol=1e-6, atol=1e-7)

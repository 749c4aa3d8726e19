"""The second phase on residuals: in the trainer, resumed, within the budget, and what it refuses."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convexlab as cl
from convexlab.errors import MisuseError
from convexlab.problems import Problem
from convexlab.training.hand_over import HandOver
from convexlab.training.phases import phase_two
from convexlab.training.second_phase import Resort, second_phase_steps
from convexlab.training.trajectory import Trajectory
from tests.training.test_objectives import contents, interrupt_after

NAME = "levenberg-marquardt"


def sine(seed: int = 0, dtype: torch.dtype = torch.float32) -> Problem:
    """40 examples, Adam on the whole batch, 33 parameters."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 2, generator=generator).to(dtype)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).to(dtype)
    y = torch.sin(2.0 * x[:, :1]) * x[:, 1:]
    return Problem(model, cl.Objective(model, [(x, y)], nn.MSELoss(), micro_batch=None))


OPTIONS: dict[str, Any] = {
    "objective": sine,
    "epochs": 150,
    "switch_epoch": 20,
    "lr": 1e-2,
    "probe_every": 0,
    "no_baseline": True,
    "phase_two": NAME,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> cl.Run:
    return cl.train_two_phase(out=tmp_path_factory.mktemp("runs") / "run", **OPTIONS)


def test_the_trainer_goes_on_with_it_within_the_budget(run: cl.Run) -> None:
    summary = run.summary
    assert summary is not None
    assert summary["phase_two"] == NAME
    assert summary["safe_resort"] is None
    spent = summary["two_phase"]["cost_breakdown"]
    assert spent["adam"] == 20.0
    assert spent.keys() == {"adam", NAME}
    squares = sine().objective.least_squares()
    assert 150 - squares.price - 1 / 3 < summary["two_phase"]["gradient_equivalents"] <= 150 + 1e-9
    assert summary["two_phase"]["train_loss"] < 0.5 * summary["switch"]["train_loss"]
    rows = [row for row in run.metrics if row["run"] == "two-phase" and row["phase"] == NAME]
    steps = [row["gradient_equivalents"] for row in rows]
    # What finding out about its Jacobians took, then a Jacobian and at least one trial a step.
    trials = 3 * (steps[0] - 20 - squares.setup - squares.price)
    assert trials == pytest.approx(max(1, round(trials)))
    assert all(b - a > squares.price for a, b in pairwise(steps))


@pytest.mark.slow
def test_the_oracle_follows_it_from_every_switch(tmp_path: Path) -> None:
    options = OPTIONS | {"no_baseline": False, "oracle_every": 60}
    run = cl.train_two_phase(out=tmp_path / "run", **options)
    assert [row["switch_epoch"] for row in run.oracle] == [60, 120]
    assert run.summary is not None
    assert run.oracle[0]["train_loss"] < run.summary["baselines"]["adam-constant"]["train_loss"]


@pytest.mark.parametrize(
    ("saving", "reports"), [("saved_every_epoch", 21), ("saved_every_epoch", 23), ("hardly_ever_saved", 24)]
)
def test_interrupted_and_resumed(
    saving: str, reports: int, run: cl.Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(saving)
    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=tmp_path / "run", progress=interrupt_after(reports), **OPTIONS)
    resumed = cl.train_two_phase(out=tmp_path / "run", resume=True, objective=sine)
    assert contents(resumed) == contents(run)


def at_switch(problem: Problem) -> Trajectory:
    trajectory = Trajectory("two-phase", problem, lr=1e-2, seed=0)
    for _ in range(20):
        trajectory.adam_epoch()
    trajectory.measure()
    return trajectory


def test_it_is_the_optimiser_itself_and_every_evaluation_is_charged() -> None:
    problem = sine(dtype=torch.float64)
    trajectory = at_switch(problem)
    start, phase = problem.objective.flat_parameters(), phase_two(NAME)
    optimizer = cl.second_phase(trajectory.adam, method=NAME)
    squares = problem.objective.least_squares()
    steps = second_phase_steps(optimizer, phase, problem.objective, Resort(None), budget=100.0, least_squares=squares)
    taken = [(step.cost, step.loss, optimizer.report.values, optimizer.report.gradients) for step in steps]
    assert len(taken) > 3
    for cost, _, values, jacobians in taken:
        assert cost == pytest.approx(values / 3 + jacobians * squares.price)
    end = problem.objective.flat_parameters()
    problem.objective.write(start)
    again = cl.second_phase(trajectory.adam, method=NAME)
    for _, loss, _, _ in taken:
        again.step(squares.closure)
        assert loss == pytest.approx(problem.objective.value(), rel=1e-12)
    assert torch.equal(problem.objective.flat_parameters(), end)


def test_parameters_in_the_order_of_adams_groups() -> None:
    problem = sine(dtype=torch.float64)
    parts = [[each for each in problem.model.parameters() if (each.ndim > 1) == wide] for wide in (True, False)]
    adam = torch.optim.AdamW([{"params": part} for part in parts], lr=1e-2)
    squares, start = problem.objective.least_squares(), problem.objective.flat_parameters()
    cl.second_phase(adam, method=NAME).step(squares.closure)
    ordered = problem.objective.flat_parameters()
    problem.objective.write(start)
    cl.LevenbergMarquardt(problem.model.parameters()).step(squares.closure)
    torch.testing.assert_close(ordered, problem.objective.flat_parameters(), rtol=1e-9, atol=1e-12)


def test_a_loss_without_residuals_and_a_small_budget_are_refused_before_any_work() -> None:
    problem = sine()
    others = cl.Objective(problem.model, problem.objective.data, nn.L1Loss())
    with pytest.raises(MisuseError, match="expected a loss that declares them"):
        HandOver(NAME, phase_two(NAME), Problem(problem.model, others), 100.0)
    with pytest.raises(MisuseError, match=r"the first step of levenberg-marquardt takes \d+ gradient equivalents here"):
        HandOver(NAME, phase_two(NAME), problem, 5.0)


def test_a_switch_that_leaves_too_little_ends_there() -> None:
    problem = sine()
    trajectory, rows = at_switch(problem), []
    squares = problem.objective.least_squares()
    hand_over = HandOver(NAME, phase_two(NAME), problem, 20 + squares.setup - 1.0)
    hand_over.follow(trajectory, None, lambda trajectory: rows.append(trajectory.row()))
    assert rows == []
    assert trajectory.cost == 20.0


def test_images_with_a_mean_of_squares_declare_theirs(tiny: dict[str, Any], tmp_path: Path) -> None:
    options = tiny | {"epochs": 300, "switch_epoch": 20, "phase_two": NAME, "train_size": 30, "no_baseline": True}
    run = cl.train_two_phase(out=tmp_path / "run", **options)
    assert run.summary is not None
    assert run.summary["two_phase"]["train_loss"] < 0.1 * run.summary["switch"]["train_loss"]
    with pytest.raises(MisuseError, match="expected a loss that declares them"):
        cl.train_two_phase(out=tmp_path / "other", **options | {"loss": "cross-entropy"})

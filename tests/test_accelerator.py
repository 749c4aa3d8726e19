"""The way from data to a trained network on an accelerator, beside the same on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import convexlab as cl
from convexlab.architectures import Perceptron
from convexlab.problems import build_problem, friedman, physics_informed
from convexlab.problems.physics_informed import burgers
from convexlab.training.adam import adam_epoch
from convexlab.training.phases import phase_two, phase_two_names
from tests.counting import Counting
from tests.tiny import write_problem

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device() -> torch.device:
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


def test_all_examples_at_once_or_as_many_as_fit(device: torch.device) -> None:
    x, y = torch.randn(1000, 4), torch.arange(1000) % 3
    for budget, parts in ((None, 1), (100_000, 2)):
        model = Counting().to(device)
        objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), memory_budget=budget)
        objective.value()
        measured = model.rows[1:]  # The first call is a trial of eight rows.
        assert sum(measured) == 1000
        assert len(measured) >= parts
        # Cut to a power of two, so that they do not depend on every byte that is free.
        assert measured[0] == 1000 or measured[0].bit_count() == 1


def test_a_problem_by_name_is_where_it_is_asked_for(tmp_path: Path, device: torch.device) -> None:
    named = write_problem(tmp_path)
    here, there = (
        build_problem(named["model"], named["dataset"], "cross-entropy", device=d) for d in ("cpu", str(device))
    )
    assert there.x.device.type == device.type
    assert there.objective.value() == pytest.approx(here.objective.value(), rel=1e-5)
    torch.testing.assert_close(there.objective.gradient().cpu(), here.objective.gradient(), rtol=1e-4, atol=1e-6)


def test_training_in_two_phases(tmp_path: Path, device: torch.device) -> None:
    options = write_problem(tmp_path) | {"epochs": 12, "switch_epoch": 4, "lr": 1e-2, "probe_every": 4}
    here, there = (cl.train_two_phase(out=tmp_path / name, device=name, **options) for name in ("cpu", device.type))
    assert there.summary["environment"]["device"].startswith(device.type)
    assert there.summary["two_phase"]["gradient_equivalents"] == here.summary["two_phase"]["gradient_equivalents"]
    # Float32's rounding, grown over twelve epochs.
    for name in ("adam-constant", "adam-cosine"):
        assert there.summary["baselines"][name]["train_loss"] == pytest.approx(
            here.summary["baselines"][name]["train_loss"], rel=1e-2
        )
    assert there.summary["two_phase"]["train_loss"] < there.summary["switch"]["train_loss"]


@pytest.mark.parametrize("name", phase_two_names())
def test_second_phases_lower_the_loss(name: str, device: torch.device) -> None:
    problem = friedman(train_size=200, seed=0, batch_size=20, device=device)
    adam = torch.optim.Adam(problem.model.parameters(), lr=1e-2)
    adam_epoch(problem, adam, torch.Generator(), seed=0, epoch=0)
    before, phase = problem.objective.value(), phase_two(name)
    optimizer = phase.build(problem.model.parameters(), adam, 200)
    closure: Any = problem.loss_of_rows if phase.sampled else problem.objective.closure
    if phase.residuals:
        closure = problem.objective.least_squares().closure
    for _ in range(10):
        optimizer.step(closure)
    assert problem.objective.flat_parameters().device.type == device.type
    assert problem.objective.value() < 0.95 * before


def test_physics_informed_networks(device: torch.device) -> None:
    here, there = (physics_informed(burgers(), train_size=100, seed=0, device=place) for place in ("cpu", str(device)))
    assert there.objective.value() == pytest.approx(here.objective.value(), rel=1e-4)
    torch.testing.assert_close(there.objective.gradient().cpu(), here.objective.gradient(), rtol=1e-3, atol=1e-4)
    assert there.measures() == pytest.approx(here.measures(), rel=1e-3)


def test_the_verdict_of_a_network(device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 2)
    model = Perceptron(2, width=8, depth=2)
    verdicts = []
    for place in (torch.device("cpu"), device):
        objective = cl.Objective(model.to(place), [(x, x[:, :1] * x[:, 1:])], nn.MSELoss())
        verdicts.append(cl.convexity_verdict(objective))
    assert verdicts[0].kind == verdicts[1].kind
    assert verdicts[1].largest == pytest.approx(verdicts[0].largest, rel=1e-3)
    assert verdicts[1].witness.device.type == device.type

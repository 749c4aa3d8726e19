"""Objectives by name and by factory, and what is said where a factory is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convexlab.errors import ConvexLabError, FailureError, MisuseError
from convexlab.problems import build_objective
from convexlab.problems.objectives import objective_epochs, objective_names, physics_informed
from convexlab.problems.physics_informed import burgers, convection

FACTORIES = """
import torch
from torch import nn
import convexlab as cl

def bowl(seed=0, train_size=3):
    torch.manual_seed(seed)
    model = nn.Linear(2, 1)
    return cl.Objective.from_batch_loss(model, [torch.ones(train_size, 2)], lambda net, x: net(x).square().mean())

def placed(device):
    assert isinstance(device, torch.device)
    return bowl()

def number():
    return 3.0

def needs(width):
    return bowl()

def broken():
    raise ValueError("no luck today")
"""


@pytest.fixture
def factories(tmp_path: Path) -> Path:
    path = tmp_path / "factories.py"
    path.write_text(FACTORIES, encoding="utf-8")
    return path


def test_every_name_builds_and_is_described() -> None:
    for name, description in objective_names().items():
        problem = build_objective(name, train_size=20)
        informed = name.startswith("pinn-")
        sizes = {"pinn-convection": 7851, "pinn-burgers": 7851, "friedman": 8 * 64 + 64 + 64 * 64 + 64 + 64 + 1}
        sizes["text"] = 30_400
        assert problem.objective.size == sizes.get(name, 1981)
        assert objective_epochs(name) > 0
        kinds = {"friedman": "regression", "text": "language"}
        assert description.startswith("physics-informed" if informed else kinds[name])
        assert problem.objective.value() > 0
        assert problem.measures().keys() == {"validation_loss"} | ({"relative_error"} if informed else set())
        assert problem.about


@pytest.mark.parametrize("equation", [convection(), burgers()], ids=["convection", "burgers"])
def test_a_physics_informed_objective_is_the_loss_of_its_equation(equation) -> None:
    problem = physics_informed(equation, train_size=30, seed=3)
    loss = equation.loss(problem.model, equation.points(30, seed=3))
    # The same sums in the same precision.
    assert problem.objective.value() == pytest.approx(loss.item(), rel=1e-6)
    measures = problem.measures()
    other_points = equation.loss(problem.model, equation.points(30, seed=4)).item()
    assert measures["validation_loss"] == pytest.approx(other_points, rel=1e-6)
    assert measures["relative_error"] == pytest.approx(equation.relative_error(problem.model), rel=1e-6)


def test_the_seed_decides_weights_and_points_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    values = [build_objective("pinn-convection", seed=seed, train_size=20).objective.value() for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_factory_is_told_what_it_asks_for(factories: Path) -> None:
    objective = build_objective(f"{factories}:bowl", train_size=5, seed=1).objective
    torch.manual_seed(1)
    net = torch.nn.Linear(2, 1)
    assert torch.equal(objective.flat_parameters(), torch.nn.utils.parameters_to_vector(net.parameters()))
    assert build_objective(f"{factories}:placed", device="cpu").objective.size == 3
    # Its own default stands where nothing was asked for.
    assert build_objective(f"{factories}:bowl").objective.value() > 0


def test_in_another_dtype_the_model_is_too(factories: Path) -> None:
    problem = build_objective(f"{factories}:bowl", dtype="float64")
    assert problem.objective.dtype == torch.float64
    assert {parameter.dtype for parameter in problem.model.parameters()} == {torch.float64}
    assert build_objective(f"{factories}:bowl").objective.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("pinn-convektion", MisuseError, "unknown objective 'pinn-convektion'. Did you mean 'pinn-convection'?"),
        (
            "FILE:number",
            MisuseError,
            "returned float: expected a convexlab.Objective or a convexlab.Problem. Build one by",
        ),
        ("FILE:needs", MisuseError, "requires width: expected a callable that needs at most the keyword arguments"),
        ("FILE:broken", FailureError, "raised ValueError: no luck today"),
        ("FILE:nothing", MisuseError, "no 'nothing' for"),
        ("nowhere.py:bowl", MisuseError, "no file"),
    ],
)
def test_misuse(name: str, error: type[ConvexLabError], message: str, factories: Path) -> None:
    with pytest.raises(error) as raised:
        build_objective(name.replace("FILE", str(factories)))
    assert message in str(raised.value)


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"device": "abacus"}])
def test_dtype_and_device_are_checked_before_the_factory_runs(options: dict[str, str], factories: Path) -> None:
    with pytest.raises(MisuseError):
        build_objective(f"{factories}:broken", **options)


def test_values_of_one_example_have_no_spread() -> None:
    with pytest.raises(MisuseError, match="train_size to be at least 2, got 1"):
        build_objective("friedman", train_size=1)

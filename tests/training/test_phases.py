"""The second phases by name, which of them `auto` is, and the one call that hands over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import MisuseError
from convexlab.problems import Problem
from convexlab.training.hand_over import HandOver
from convexlab.training.phases import AUTO, LARGE, SMALL, choose_phase_two, phase_two
from convexlab.training.trajectory import Trajectory


def regression() -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    return Problem(model, cl.Objective(model, [(x, x[:, :1].sin())], nn.MSELoss()))


def trained(problem: Problem, make: Callable[[nn.Module], torch.optim.Optimizer], steps: int = 20) -> Any:
    adam = make(problem.model)
    for _ in range(steps):
        adam.zero_grad()
        problem.objective.closure()
        adam.step()
    return adam


def plain(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def with_groups(model: nn.Module) -> torch.optim.AdamW:
    parts = [[each for each in model.parameters() if (each.ndim > 1) == wide] for wide in (True, False)]
    return torch.optim.AdamW(
        [{"params": part, "weight_decay": decay} for part, decay in zip(parts, (0.1, 0.0), strict=True)]
    )


@pytest.mark.parametrize(
    ("size", "device", "name"),
    [
        (10, "cpu", SMALL),
        (3_000, "cpu", SMALL),
        (3_001, "cpu", LARGE),
        (10_000, "meta", SMALL),
        (10_001, "meta", LARGE),
    ],
)
def test_auto_is_a_dense_matrix_where_it_earns_its_seconds(size: int, device: str, name: str) -> None:
    choice = choose_phase_two(AUTO, [torch.empty(size - 4, device=device), torch.empty(4, device=device)])
    assert (choice.name, choice.phase) == (name, phase_two(name))
    within = "at most" if name == SMALL else "more than"
    most = "3,000" if device == "cpu" else "10,000"
    assert choice.reason == (
        f"{size:,} parameters, {within} the {most} for which a dense matrix earns its seconds on {device}"
    )


def test_what_is_asked_for_by_name_needs_no_reason() -> None:
    assert choose_phase_two("cg", [torch.empty(2)]) == ("cg", phase_two("cg"), None)
    with pytest.raises(MisuseError, match=r"unknown phase two 'ssbroyden'. Did you mean 'ssbroyden-adam'"):
        cl.second_phase(torch.optim.Adam([nn.Parameter(torch.ones(1))]), method="ssbroyden")


@pytest.mark.parametrize("method", [AUTO, LARGE, "cg-adam"])
@pytest.mark.parametrize("make", [plain, with_groups])
def test_it_is_what_the_trainer_takes_bit_for_bit(method: str, make: Callable[..., torch.optim.Adam]) -> None:
    problem = regression()
    optimiser = cl.second_phase(trained(problem, make), method=method)
    for _ in range(8):
        optimiser.step(problem.objective.closure)
    ours = problem.objective.flat_parameters().clone()
    problem.reset()
    trajectory = Trajectory("two-phase", problem, lr=1e-2, seed=0)
    trajectory.adam = trained(problem, make)
    choice = choose_phase_two(method, list(problem.model.parameters()))
    second = HandOver(choice.name, choice.phase, problem, 100.0).build(trajectory.adam)
    for _ in range(8):
        second.step(problem.objective.closure)
    assert torch.equal(problem.objective.flat_parameters(), ours)


def test_a_budget_leaves_out_room_for_pairs_and_changes_no_step() -> None:
    ends = []
    for budget in (None, 12):
        problem = regression()
        optimiser: Any = cl.second_phase(trained(problem, plain), method=LARGE, budget=budget)
        assert optimiser.history == (budget or 400)
        for _ in range(9):
            optimiser.step(problem.objective.closure)
        ends.append(problem.objective.flat_parameters().clone())
    assert torch.equal(*ends)


def test_frozen_parameters_stay_out() -> None:
    problem = regression()
    adam = trained(problem, plain)
    problem.model[0].weight.requires_grad_(False)
    optimiser = cl.second_phase(adam)
    kept = [parameter for parameter in problem.model.parameters() if parameter.requires_grad]
    assert [id(one) for one in optimiser.param_groups[0]["params"]] == [id(one) for one in kept]

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = problem.model(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss

    before = closure().item()
    optimiser.step(closure)
    assert closure().item() < before


@pytest.mark.parametrize(
    ("adam", "options", "message"),
    [
        (torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1), {}, "expected a torch.optim.Adam or AdamW .* got SGD"),
        (None, {}, "got NoneType"),
        (torch.optim.Adam([nn.Parameter(torch.ones(2), requires_grad=False)]), {}, "every parameter of Adam is frozen"),
        (torch.optim.Adam([nn.Parameter(torch.ones(2))]), {}, "without second moments"),
        (
            torch.optim.Adam([nn.Parameter(torch.ones(2))]),
            {"method": "lbfgs-adam-progressive"},
            "examples=..., got None",
        ),
        (torch.optim.Adam([nn.Parameter(torch.empty(10_001))]), {"method": SMALL}, "takes at most 10000 parameters"),
    ],
)
def test_what_it_cannot_take_over_from(adam: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        cl.second_phase(adam, **options)

"""Every fault in a double backward is refused, no sound network is, and no bound that is returned is violated."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import FailureError
from convexlab.objective.products import ObjectiveOperator
from convexlab.objective.soundness import CHECK_COST, CHECKED_ROWS, compare, compare_second_derivatives
from tests.objective.faults import FAULTS, LAYERS, WIDTH, Fault
from tests.slowly import mostly_slow


def _network(seed: int, *, faulty: bool) -> tuple[nn.Module, str]:
    """Return a network of two kinds of layers, with a fault among them or without, and what it is made of."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    # Every kind is in one of twenty-three networks at least.
    names = sorted(LAYERS)
    kinds = [names[(2 * seed + place) % len(names)] for place in range(2)]
    layers: list[nn.Module] = [nn.Linear(WIDTH, WIDTH), *(LAYERS[kind]() for kind in kinds)]
    described = " + ".join(kinds)
    if faulty:
        fault = FAULTS[seed // 2 % len(FAULTS)]
        layers.insert(choose.randint(1, len(layers)), Fault(fault, choose.choice([1.0, 0.3, 0.1])))
        described += f" + {fault}"
    return nn.Sequential(*layers, nn.Linear(WIDTH, 3)), described


def _objective(model: nn.Module, seed: int) -> cl.Objective:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(20, WIDTH, generator=generator), torch.randint(0, 3, (20,), generator=generator)
    return cl.Objective(model.double(), [(x, y)], nn.CrossEntropyLoss())


def _differences(objective: cl.Objective, directions: Tensor, step: float = 1e-6) -> Tensor:
    """Return H v for columns v (n, k) by central differences of gradients, which know no double backward."""
    theta, columns = objective.flat_parameters(), []
    for direction in directions.T:
        with objective.at(theta + step * direction):
            above = objective.gradient()
        with objective.at(theta - step * direction):
            columns.append((above - objective.gradient()) / (2 * step))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("seed", mostly_slow(range(1, 31, 2), quick=6))
def test_every_planted_fault_is_refused(seed: int) -> None:
    model, described = _network(seed, faulty=True)
    objective = _objective(model, seed)
    directions = torch.randn(objective.size, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    true = _differences(objective, directions)
    fault = float((objective.hvp(directions) - true).norm() / true.norm())
    assert fault > 0.001, described
    with pytest.raises(FailureError, match=r"second derivative.*Fault.*products='differences'"):
        cl.extreme_eigenvalues(objective.hessian())


@pytest.mark.parametrize("seed", mostly_slow(range(0, 46, 2), quick=4))
def test_no_sound_network_is_refused_and_no_bound_is_violated(seed: int) -> None:
    model, described = _network(seed // 2, faulty=False)
    objective = _objective(model, seed)
    true = np.linalg.eigvalsh(_differences(objective, torch.eye(objective.size, dtype=torch.float64)).numpy())
    extremes = cl.extreme_eigenvalues(objective.hessian())
    slack = 1e-6 * (true[-1] - true[0])
    assert extremes.smallest_lower_bound <= true[0] + slack, described
    assert extremes.smallest >= true[0] - slack, described
    assert extremes.largest_upper_bound >= true[-1] - slack, described


@pytest.mark.parametrize("products", [cl.Objective.ggn, cl.Objective.residual])
def test_the_parts_of_the_hessian_are_checked_too(products: Callable[[cl.Objective], Any]) -> None:
    torch.manual_seed(0)
    sound = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    faulty = nn.Sequential(nn.Linear(WIDTH, WIDTH), Fault("once differentiable"), nn.Linear(WIDTH, 3))
    products(_objective(sound, 0)).prove()
    with pytest.raises(FailureError, match=r"module '1' \(Fault\)"):
        products(_objective(faulty, 0)).prove()


class _Forward(nn.Module):
    """Has the fault in its own forward, in no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(Fault("detached")(self.first(x)))
        return output


def test_the_error_names_the_place() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), Fault("doubled"))
    deep = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), inner, nn.Linear(WIDTH, 3))
    for model, place in ((deep, r"in module '2\.1' \(Fault\)\. "), (_Forward(), r"in the model's own forward \(_Forw")):
        with pytest.raises(FailureError, match=place):
            cl.convexity_verdict(_objective(model, 0))
    sound = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3)).double()
    data = [(torch.randn(20, WIDTH).double(), torch.randint(0, 3, (20,)))]
    criterion = lambda output, target: nn.functional.cross_entropy(Fault("asymmetric")(output), target)  # noqa: E731
    with pytest.raises(FailureError, match="what the loss does with the model's output"):
        cl.extreme_eigenvalues(cl.Objective(sound, data, criterion).hessian())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_costs_eight_gradients_at_most_and_is_charged(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3)).to(dtype)
    for rows, share in ((20, 1.0), (320, CHECKED_ROWS / 320)):
        x, y = torch.randn(rows, WIDTH, dtype=dtype), torch.randint(0, 3, (rows,))
        objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss())
        expected = objective.cost_of_proof()
        operator = objective.hessian()
        assert isinstance(operator, ObjectiveOperator)
        operator.prove()
        spent = objective.cost.gradient_equivalents
        assert spent in (pytest.approx(2 + (CHECK_COST - 1) * share), pytest.approx(2 + CHECK_COST * share))
        assert spent <= expected <= 8
        operator.prove()
        assert objective.cost.gradient_equivalents == spent


@pytest.mark.parametrize("narrower", [torch.float32, torch.bfloat16])
def test_a_loss_that_rounds_more_coarsely_inside_passes(narrower: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3)).double()
    x, y = torch.randn(20, WIDTH).double(), torch.randint(0, 3, (20,))
    narrow = lambda output, target: nn.functional.cross_entropy(output.to(narrower), target)  # noqa: E731
    operator = cl.Objective(model, [(x, y)], narrow).hessian()
    assert isinstance(operator, ObjectiveOperator)
    operator.prove()


def test_a_loss_that_rounds_to_float32_inside_passes_and_a_fault_in_it_does_not() -> None:
    torch.manual_seed(0)
    for activation, sound in ((nn.Tanh(), True), (Fault("detached"), False)):
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), activation, nn.Linear(WIDTH, 3)).double()
        x, y = torch.randn(20, WIDTH).double(), torch.randint(0, 3, (20,))
        narrow = lambda output, target: nn.functional.cross_entropy(output.float(), target)  # noqa: E731
        operator = cl.Objective(model, [(x, y)], narrow).hessian()
        assert isinstance(operator, ObjectiveOperator)
        if sound:
            operator.prove()
        else:
            with pytest.raises(FailureError, match="second derivative"):
                operator.prove()


# The comparison alone.


def _cubic(leaves: list[Tensor]) -> Tensor:
    return sum((leaf**3).sum() for leaf in leaves) + leaves[0].sum() * leaves[1].square().sum()  # type: ignore[return-value]


def test_a_smooth_function_is_confirmed_at_the_first_step() -> None:
    leaves = [
        torch.randn(4, dtype=torch.float64).requires_grad_(),
        torch.randn(3, 2, dtype=torch.float64).requires_grad_(),
    ]
    check = compare_second_derivatives(_cubic, leaves)
    assert check.comparison.confirmed
    assert check.comparison.evaluations == 1
    assert check.comparison.mismatch < 1e-6
    assert check.asymmetry < 1e-8
    assert not check.refuted


def test_what_cannot_be_told_is_not_refused() -> None:
    """At a kink differences do not agree with one another, and so refute nothing."""
    slope = torch.ones(1, dtype=torch.float64)
    zero = torch.zeros_like(slope)
    for eps in (1e-16, 1e-7):
        at_a_kink = compare(zero, lambda step: slope * np.sign(step), zero, scale=1.0, eps=eps)
        assert not at_a_kink.confirmed
        assert not at_a_kink.refuted
    generator = torch.Generator().manual_seed(0)
    noise = compare(slope, lambda step: torch.randn(1, generator=generator).double(), slope, scale=1.0, eps=1e-16)
    assert not noise.refuted


def test_a_hessian_of_zeros_is_right() -> None:
    model = nn.Linear(4, 1).double()
    objective = cl.Objective.from_batch_loss(model, [torch.randn(5, 4)], lambda module, batch: module(batch).mean())
    extremes = cl.extreme_eigenvalues(objective.hessian())
    assert (extremes.smallest, extremes.largest) == (0, 0)

"""Adam's preconditioner against the steps that torch's Adam takes itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.optim import LBFGS, DiagonalPreconditioner, NonlinearCG, adam_preconditioner

SHAPES = [(3, 2), (5,), (2, 2, 2)]
NUMBERS = sum(math.prod(shape) for shape in SHAPES)


def _parameters(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def _train(adam: torch.optim.Optimizer, steps: int, scale: float = 1.0, seed: int = 1) -> Tensor:
    """Step with random gradients of growing spread; return the last gradient, flat."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [parameter for group in adam.param_groups for parameter in group["params"]]
    for _ in range(steps):
        for index, parameter in enumerate(parameters):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = (scale * 10.0**index * noise).to(parameter)
        adam.step()
    return _flat([parameter.grad for parameter in parameters if parameter.grad is not None])


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]) if tensors else torch.zeros(0)


BUILDS: dict[str, Callable[[list[nn.Parameter], float], torch.optim.Optimizer]] = {
    "adam": lambda p, eps: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.95), eps=eps),
    "amsgrad": lambda p, eps: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.5), eps=eps, amsgrad=True),
    "adamw": lambda p, eps: torch.optim.AdamW(p, lr=1e-3, betas=(0.0, 0.95), eps=eps, weight_decay=0.0),
    "groups": lambda p, eps: torch.optim.Adam(
        [{"params": p[:1], "betas": (0.0, 0.5)}, {"params": p[1:], "betas": (0.0, 0.999)}], lr=1e-3, eps=eps
    ),
    "not foreach": lambda p, eps: torch.optim.Adam(p, lr=1e-3, betas=(0.0, 0.95), eps=eps, foreach=False),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_it_is_the_matrix_that_adam_steps_with(
    build: Callable[[list[nn.Parameter], float], torch.optim.Optimizer], steps: int
) -> None:
    # Without momentum Adam's last step is -lr g / (√v̂ + eps). The first run tells what ridge that eps is.
    eps = 0.3
    gentle = build(_parameters(), eps)
    _train(gentle, steps)
    parameters = _parameters()
    adam = build(parameters, eps)
    _train(adam, steps - 1)
    before = _flat(parameters)
    gradient = _train(adam, 1, seed=7)
    taken = (before - _flat(parameters)) / 1e-3
    # √v̂ = |g| lr / |step| - eps.
    roots = gradient / taken - eps
    p = adam_preconditioner(adam, ridge=eps / roots.mean().item())
    # A step of size 1e-3 is the difference of weights of order 1: known to 1e-12.
    torch.testing.assert_close(p(gradient), taken, rtol=1e-10, atol=1e-12)


def test_first_step_by_hand() -> None:
    # After one step v̂ = g², so √v̂ = |g| with mean 2: p = 1 / (|g| + 0.5 · 2).
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    adam = torch.optim.Adam([weight])
    weight.grad = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    adam.step()
    expected = torch.tensor([1 / 2, 1 / 3, 1 / 4], dtype=torch.float64)
    torch.testing.assert_close(adam_preconditioner(adam, ridge=0.5).diagonal, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scale_of_the_loss_only_scales_it(scale: float) -> None:
    diagonals = []
    for factor in (1.0, scale):
        adam = torch.optim.Adam(_parameters())
        _train(adam, 5, factor)
        diagonals.append(adam_preconditioner(adam).diagonal)
    torch.testing.assert_close(diagonals[1] * scale, diagonals[0], rtol=1e-12, atol=0.0)


def test_ridge_bounds_it() -> None:
    # An entry is at most 1 / (ridge · mean), and the condition number at most that of √v̂ over the ridge.
    parameters = _parameters()
    adam = torch.optim.Adam(parameters)
    _train(adam, 5)
    adam.state[parameters[0]]["exp_avg_sq"].zero_()
    wide, narrow = (adam_preconditioner(adam, ridge=ridge).diagonal for ridge in (1e-3, 1e3))
    assert torch.isfinite(wide).all()
    assert (wide > 0.0).all()
    assert narrow.max() / narrow.min() < 1.1
    assert wide.max() / wide.min() > 1e3


def test_it_is_a_copy() -> None:
    parameters = _parameters()
    adam = torch.optim.Adam(parameters)
    _train(adam, 3)
    p = adam_preconditioner(adam)
    before = p.diagonal.clone()
    assert not p.diagonal.requires_grad
    _train(adam, 3)
    assert torch.equal(p.diagonal, before)
    state = copy.deepcopy(adam.state_dict())
    adam_preconditioner(adam)
    for index, entry in state["state"].items():
        for name, value in entry.items():
            assert torch.equal(adam.state_dict()["state"][index][name], value)


def test_a_restored_adam_gives_the_same() -> None:
    adam = torch.optim.Adam(_parameters(dtype=torch.float32))
    _train(adam, 3)
    other = torch.optim.Adam(_parameters(dtype=torch.float32))
    other.load_state_dict(adam.state_dict())
    assert torch.equal(adam_preconditioner(other).diagonal, adam_preconditioner(adam).diagonal)
    assert adam_preconditioner(adam).diagonal.dtype == torch.float32


def test_a_parameter_that_never_had_a_gradient_counts_as_average() -> None:
    parameters = _parameters()
    adam = torch.optim.Adam(parameters)
    _train(torch.optim.SGD(parameters), 1)
    parameters[1].grad = None
    adam.step()
    p = adam_preconditioner(adam, ridge=0.25).diagonal
    roots = torch.cat([parameters[0].grad.abs().reshape(-1), parameters[2].grad.abs().reshape(-1)])
    assert p.numel() == NUMBERS
    torch.testing.assert_close(p[6:11], torch.full((5,), 0.8 / roots.mean().item(), dtype=torch.float64))


@pytest.mark.parametrize("optimiser", [LBFGS, NonlinearCG])
def test_the_optimisers_take_it(optimiser: type[LBFGS] | type[NonlinearCG]) -> None:
    # f = Σ h x² / 2 over six decades: Adam's gradients along it have the sizes of h, so P evens them out.
    h = torch.logspace(-3.0, 3.0, 12, dtype=torch.float64)
    losses = {}
    for handed_over in (False, True):
        x = nn.Parameter(torch.ones(12, dtype=torch.float64))

        def closure(x: nn.Parameter = x) -> Tensor:
            x.grad = None
            loss = 0.5 * (h * x.square()).sum()
            loss.backward()
            return loss

        adam = torch.optim.Adam([x], lr=1e-3)
        for _ in range(10):
            adam.step(closure)
        p = adam_preconditioner(adam, ridge=1e-6) if handed_over else None
        second = optimiser([x], preconditioner=p)
        for _ in range(6):
            second.step(closure)
        losses[handed_over] = closure().item()
    assert losses[True] < 1e-6 * losses[False]


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_ridge_must_be_positive(ridge: float) -> None:
    adam = torch.optim.Adam(_parameters())
    _train(adam, 1)
    with pytest.raises(MisuseError, match="ridge"):
        adam_preconditioner(adam, ridge=ridge)


@pytest.mark.parametrize(
    "optimiser", [torch.optim.Adam(_parameters()), torch.optim.SGD(_parameters(), momentum=0.9), nn.Linear(2, 2)]
)
def test_an_optimiser_without_second_moments_is_refused(optimiser: object) -> None:
    with pytest.raises(MisuseError, match=f"got {type(optimiser).__name__} without second moments"):
        adam_preconditioner(optimiser)  # type: ignore[arg-type]


def test_second_moments_that_are_all_zero_are_refused() -> None:
    parameters = _parameters()
    adam = torch.optim.Adam(parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    adam.step()
    with pytest.raises(MisuseError, match="without second moments"):
        adam_preconditioner(adam)


def test_gradient_of_another_size_is_refused() -> None:
    with pytest.raises(MisuseError, match="for 3 parameters, got a gradient of shape"):
        DiagonalPreconditioner(torch.ones(3))(torch.ones(4))


def test_diagonal_leaves_the_gradient_alone() -> None:
    gradient = torch.ones(3)
    assert torch.equal(DiagonalPreconditioner(torch.tensor([1.0, 2.0, 3.0]))(gradient), torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(gradient, torch.ones(3))

"""Adam's preconditioner against the steps that Adam takes itself, those of the Hessian against dense matrices."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.optim import (
    LBFGS,
    DiagonalPreconditioner,
    NonlinearCG,
    adam_preconditioner,
    hessian_diagonal_preconditioner,
    low_rank_preconditioner,
    split_operator,
)
from tests.dense import Dense
from tests.optim.running import run

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


@pytest.mark.parametrize("exponent", [0.0, 0.25, 0.75, 1.0])
def test_adams_moments_to_another_power(exponent: float) -> None:
    x = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    adam = torch.optim.Adam([x], betas=(0.9, 0.9))
    squares = torch.zeros(3, dtype=torch.float64)
    for step in range(3):
        x.grad = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64) * (step + 1)
        squares = 0.9 * squares + 0.1 * x.grad.square()
        adam.step()
    powers = (squares / (1.0 - 0.9**3)) ** exponent
    expected = 1.0 / (powers + 0.2 * powers.mean())
    found = adam_preconditioner(adam, ridge=0.2, exponent=exponent).diagonal
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("exponent", [-0.1, 1.5, float("nan")])
def test_an_exponent_out_of_range(exponent: float) -> None:
    x = nn.Parameter(torch.ones(2))
    adam = torch.optim.Adam([x])
    x.grad = torch.ones(2)
    adam.step()
    with pytest.raises(MisuseError, match="expected exponent to be from 0 to 1"):
        adam_preconditioner(adam, exponent=exponent)


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


# Of the Hessian's diagonal.


def _symmetric(n: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return matrix + matrix.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_diagonal_matrix_one_sample_is_exact(dtype: torch.dtype) -> None:
    h = torch.tensor([1.0, -2.0, 4.0, 0.0], dtype=dtype)
    p = hessian_diagonal_preconditioner(Dense(torch.diag(h)), samples=1, ridge=0.5).diagonal
    # The mean of |h| is 7/4.
    expected = 1.0 / (torch.tensor([1.0, 2.0, 4.0, 0.0], dtype=dtype) + 0.875)
    torch.testing.assert_close(p, expected, rtol=torch.finfo(dtype).eps, atol=0.0)
    assert p.dtype == dtype


def test_estimate_is_unbiased_with_the_published_variance() -> None:
    matrix, ridge, samples, runs = _symmetric(), 1e-9, 4, 2000
    matrix += 40.0 * torch.eye(12, dtype=torch.float64)  # Far enough from 0 that absolute values change nothing.
    estimates = torch.stack(
        [
            1.0 / hessian_diagonal_preconditioner(Dense(matrix), samples=samples, seed=seed, ridge=ridge).diagonal
            for seed in range(runs)
        ]
    )
    off = matrix - torch.diag(matrix.diagonal())
    variance = off.square().sum(dim=1) / samples
    assert estimates.min() > 0.0
    # Five standard errors of a mean; the ridge moves it by 1e-9 of the mean.
    error = (estimates.mean(dim=0) - matrix.diagonal()).abs()
    assert (error <= 5.0 * (variance / runs).sqrt() + 1e-6).all()
    # A variance from 2000 runs has a standard error of about √(2 / 2000) = 3 per cent: five of them.
    torch.testing.assert_close(estimates.var(dim=0), variance, rtol=0.16, atol=0.0)


def test_hessian_diagonal_of_an_objectives_operator_evens_out_curvatures() -> None:
    # Six decades of curvature: what a step along P's steepest descent reaches at once.
    h = torch.logspace(-3.0, 3.0, 12, dtype=torch.float64)
    p = hessian_diagonal_preconditioner(Dense(torch.diag(h)), samples=1, ridge=1e-9)
    *_, (_, report, _) = run(
        LBFGS, lambda x: 0.5 * (h * x.square()).sum(), torch.ones(12, dtype=torch.float64), 6, preconditioner=p
    )
    assert report.loss <= 1e-6 * 0.5 * h.sum()


def test_the_seed_draws_the_signs() -> None:
    operator = Dense(_symmetric())
    first, again, other = (hessian_diagonal_preconditioner(operator, seed=seed).diagonal for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples"),
        ({"samples": 1.5}, "samples"),
        ({"ridge": 0.0}, "ridge"),
        ({"ridge": math.nan}, "ridge"),
    ],
)
def test_hessian_diagonal_settings_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        hessian_diagonal_preconditioner(Dense(_symmetric()), **options)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_matrix_without_a_diagonal_is_refused(value: float) -> None:
    with pytest.raises(MisuseError, match="expected a matrix with a diagonal"):
        hessian_diagonal_preconditioner(Dense(torch.full((3, 3), value, dtype=torch.float64)), samples=2)


# Of eigenpairs.


@pytest.mark.parametrize("based", [False, True])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_low_rank_is_the_dense_formula(based: bool, rank: int) -> None:
    matrix = _symmetric()
    base = DiagonalPreconditioner(torch.linspace(0.1, 3.0, 12, dtype=torch.float64)) if based else None
    root = torch.diag(base.diagonal.sqrt()) if based else torch.eye(12, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(root @ matrix @ root)
    outer = values.abs().argsort(descending=True)[:rank]
    values, vectors = values[outer], vectors[:, outer]
    p = low_rank_preconditioner(values, vectors, ridge=0.01, base=base)
    shift = 0.01 * values.abs().max()
    inside = vectors @ torch.diag(1.0 / (values.abs() + shift)) @ vectors.T
    rest = (torch.eye(12, dtype=torch.float64) - vectors @ vectors.T) / (values.abs().min() + shift)
    expected = root @ (inside + rest) @ root
    ours = torch.stack([p(column) for column in torch.eye(12, dtype=torch.float64)])
    # Sums of twelve, twice, of entries up to the largest.
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=100 * 2.0**-52 * expected.abs().max().item())
    assert torch.linalg.eigvalsh(ours)[0] > 0.0


@pytest.mark.parametrize("based", [False, True])
def test_with_all_pairs_of_a_positive_definite_matrix_it_is_the_inverse(based: bool) -> None:
    matrix = _symmetric()
    matrix = matrix @ matrix + torch.eye(12, dtype=torch.float64)
    base = DiagonalPreconditioner(torch.linspace(0.1, 3.0, 12, dtype=torch.float64))
    operator = split_operator(Dense(matrix), base) if based else Dense(matrix)
    dense = torch.stack([operator.matvec(column) for column in torch.eye(12, dtype=torch.float64)])
    torch.testing.assert_close(dense, dense.T, rtol=1e-13, atol=1e-13)
    values, vectors = torch.linalg.eigh(dense)
    p = low_rank_preconditioner(values, vectors, ridge=1e-15, base=base if based else None)
    g = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64)
    condition = (values[-1] / values[0]).item()
    torch.testing.assert_close(p(matrix @ g), g, rtol=0.0, atol=100 * 30 * condition * 2.0**-52)


def test_outliers_are_taken_away() -> None:
    # Four outliers of a thousand and a bulk of ones: with them deflated L-BFGS sees the identity.
    generator = torch.Generator().manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(40, 4, generator=generator, dtype=torch.float64))
    values = torch.tensor([1e3, 2e3, 3e3, 4e3], dtype=torch.float64)
    matrix = torch.eye(40, dtype=torch.float64) + vectors @ torch.diag(values - 1.0) @ vectors.T
    one = torch.linalg.qr(torch.cat([vectors, torch.ones(40, 1, dtype=torch.float64)], dim=1))[0]  # A pair of the bulk.
    pairs = torch.cat([values, torch.ones(1, dtype=torch.float64)]), one
    p = low_rank_preconditioner(*pairs, ridge=1e-9)
    start = torch.randn(40, generator=generator, dtype=torch.float64)
    loss = lambda x: 0.5 * x @ matrix @ x  # noqa: E731
    *_, (_, report, _) = run(LBFGS, loss, start, 4, preconditioner=p)
    assert report.loss <= 1e-6 * loss(start)
    *_, (_, report, _) = run(LBFGS, loss, start, 4)
    assert report.loss > 1e-4 * loss(start)


def test_low_rank_keeps_the_gradients_dtype_and_leaves_it_alone() -> None:
    values, vectors = torch.linalg.eigh(_symmetric())
    p = low_rank_preconditioner(values[-3:], vectors[:, -3:])
    gradient = torch.ones(12)
    assert p(gradient).dtype == torch.float32
    assert torch.equal(gradient, torch.ones(12))
    with pytest.raises(MisuseError, match="for 12 parameters, got a gradient of shape"):
        p(torch.ones(13))


VECTORS = torch.eye(5, dtype=torch.float64)[:, :2]


@pytest.mark.parametrize(
    ("values", "vectors", "options", "message"),
    [
        (torch.ones(3), VECTORS, {}, "values of shape"),
        (torch.ones(2, 1), VECTORS, {}, "values of shape"),
        (torch.ones(0), VECTORS[:, :0], {}, "values of shape"),
        (torch.ones(2), VECTORS * 2.0, {}, "orthonormal"),
        (torch.ones(2), VECTORS * float("nan"), {}, "orthonormal"),
        (torch.zeros(2), VECTORS, {}, "not all zero"),
        (torch.tensor([1.0, float("inf")]), VECTORS, {}, "finite"),
        (torch.ones(2), VECTORS, {"ridge": 0.0}, "ridge"),
    ],
)
def test_eigenpairs_that_make_no_sense(
    values: Tensor, vectors: Tensor, options: dict[str, float], message: str
) -> None:
    with pytest.raises(MisuseError, match=message):
        low_rank_preconditioner(values, vectors, **options)

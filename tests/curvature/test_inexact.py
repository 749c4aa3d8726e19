"""Krylov runs on differences of gradients: when they are made, how far off they are, and that the bounds still hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

import convexlab as cl
from convexlab.curvature import Lanczos
from convexlab.curvature.inexact import SAMPLES, cheapest_operator, deviation, norm_of_deviation
from convexlab.curvature.lanczos import random_unit_vector
from convexlab.objective.differences import GradientDifferences
from convexlab.objective.products import HessianOperator
from tests.dense import Dense, as_vector, derivatives, loss_of
from tests.slowly import mostly_slow

PRECISIONS = (torch.float32, torch.float64)
every_precision = pytest.mark.parametrize("dtype", PRECISIONS)
TOLERANCE = 0.03
"""Small networks in float32 have errors of about 2e-4 of the range, too many for 0.01."""


class Problem:
    """A network of some hundred parameters, a little trained, with its Hessian whole and in float64."""

    def __init__(
        self, seed: int, activation: Callable[[], nn.Module], criterion: nn.Module, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(seed)
        x = torch.randn(64, 8)
        y = torch.randint(0, 4, (64,)) if isinstance(criterion, nn.CrossEntropyLoss) else torch.randn(64, 4)
        model = nn.Sequential(nn.Linear(8, 20), activation(), nn.Linear(20, 15), activation(), nn.Linear(15, 4))
        adam = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(10 * (seed % 5)):
            adam.zero_grad()
            criterion(model(x), y).backward()
            adam.step()
        targets = y if y.dtype == torch.int64 else y.to(dtype)
        self.objective = cl.Objective(model.to(dtype), [(x.to(dtype), targets)], criterion)
        names = [name for name, _ in model.named_parameters()]
        precise = model.double()
        targets = y if y.dtype == torch.int64 else y.double()
        loss = loss_of(precise, criterion, x.double(), targets, names)
        self.hessian = derivatives(loss, as_vector(precise, names))[2].detach()
        model.to(dtype)

    def run(self, steps: int, seed: int = 0) -> Lanczos:
        operator = self.objective.hessian()
        return Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(seed)), steps)


def _smooth(seed: int = 1, dtype: torch.dtype = torch.float32) -> Problem:
    return Problem(seed, nn.Tanh, nn.MSELoss(), dtype)


def _relation_error(process: Lanczos, hessian: Tensor) -> Tensor:
    """Return F = A V - (V T + β v eᵀ), whole (n, k)."""
    unit = torch.eye(process.steps, dtype=torch.float64)
    return hessian @ process.combined(unit).T - process.image(unit).T


@pytest.mark.slow
@every_precision
def test_the_bound_on_the_deviation_holds_as_often_as_it_says(dtype: torch.dtype) -> None:
    failure, missed, trials = 0.2, 0, 0
    for seed in range(5):
        problem = _smooth(seed, dtype)
        process = problem.run(30)
        process.operator = cheapest_operator(process, TOLERANCE)
        assert isinstance(process.operator, GradientDifferences)
        process.extend(30)
        error = _relation_error(process, problem.hessian)
        truth = float(torch.linalg.matrix_norm(error, 2))
        process.operator = Dense(problem.hessian)
        for draw in range(8):
            missed += deviation(process, failure, draw) < truth
            trials += 1
    assert missed <= failure * trials


def test_the_deviation_of_exact_products_is_rounding() -> None:
    problem = _smooth(dtype=torch.float64)
    process = problem.run(25)
    process.extend(25)
    process.operator = Dense(problem.hessian)
    # Normal coefficients, 25 of them, times the rounding of products of 500 terms, times the factor of the bound.
    norm = float(torch.linalg.matrix_norm(problem.hessian, 2))
    assert deviation(process, 1e-3) < 1e-11 * norm
    assert process.products == 25 + SAMPLES


@every_precision
def test_smooth_networks_are_run_on_gradients_and_found_alike(dtype: torch.dtype) -> None:
    problem = _smooth(dtype=dtype)
    truth = np.linalg.eigvalsh(problem.hessian.numpy())
    extremes = cl.extreme_eigenvalues(problem.objective.hessian(), tolerance=TOLERANCE)
    spread = truth[-1] - truth[0]
    assert extremes.converged
    # A product a step, most of them by a gradient; one gradient at the point, one compared, and the checks: of the
    # loss, which is evaluated twice, and of its products, two of them and a gradient for 32 of 64 examples.
    cost = problem.objective.cost
    assert cost.gradients + cost.hessian_products == extremes.steps + 1 + 1 + SAMPLES + 2 + 2 + 3 * 32 / 64
    assert cost.gradients > extremes.steps / 2
    assert 0 < extremes.deviation <= TOLERANCE * spread
    assert extremes.smallest_lower_bound <= truth[0] <= extremes.smallest + 1e-6 * spread
    assert extremes.largest - 1e-6 * spread <= truth[-1] <= extremes.largest_upper_bound
    # The Rayleigh quotient of an exact product, not the Ritz value of inexact ones.
    vector = extremes.smallest_vector
    assert extremes.smallest == pytest.approx(float(vector @ problem.hessian @ vector), abs=1e-6 * spread)
    exact = torch.linalg.vector_norm(problem.hessian @ vector - extremes.smallest * vector)
    assert extremes.smallest_residual == pytest.approx(float(exact), abs=1e-5 * spread)


def test_networks_with_kinks_are_run_on_products() -> None:
    problem = Problem(3, nn.ReLU, nn.MSELoss(), torch.float32)
    extremes = cl.extreme_eigenvalues(problem.objective.hessian())
    assert extremes.converged
    assert extremes.deviation == 0
    assert problem.objective.cost.hessian_products == extremes.steps + 2 + 2 * 32 / 64  # The last of them to check.


def test_a_tolerance_beyond_differences_is_not_tried() -> None:
    problem = _smooth()
    process = problem.run(40)
    gradients = problem.objective.cost.gradients
    assert cheapest_operator(process, 1e-4) is process.operator
    assert problem.objective.cost.gradients == gradients
    assert isinstance(cheapest_operator(_smooth(dtype=torch.float64).run(40), 1e-4), GradientDifferences)


def test_other_operators_keep_their_products() -> None:
    operator = Dense(torch.eye(30).double())
    process = Lanczos(operator, random_unit_vector(operator, torch.Generator()), 20)
    assert cheapest_operator(process, 1e-1) is operator
    assert process.products == 0


class _WearingOut(GradientDifferences):
    """As good as any until they were checked."""

    made = 0

    def _multiply(self, v: Tensor) -> Tensor:
        _WearingOut.made += 1
        product = super()._multiply(v)
        return product if self.made <= 1 else product + product.norm() * torch.randn_like(product)


def test_differences_that_grow_inaccurate_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = _smooth(dtype=torch.float64)
    truth = np.linalg.eigvalsh(problem.hessian.numpy())
    monkeypatch.setattr(HessianOperator, "differences", lambda self: _WearingOut(self._loss, self._point))
    extremes = cl.extreme_eigenvalues(problem.objective.hessian())
    assert _WearingOut.made > 2
    assert extremes.deviation == 0
    assert extremes.converged
    assert extremes.smallest_lower_bound <= truth[0] <= extremes.smallest + 1e-12


@pytest.mark.parametrize("seed", mostly_slow((5, 10, 0, 15, *(k for k in range(20) if k % 5)), quick=2))
def test_bounds_and_verdict_hold_on_dense_network_hessians(seed: int) -> None:
    activation = (nn.Tanh, nn.GELU, nn.ReLU, nn.Softplus)[seed % 4]
    criterion = (nn.MSELoss(), nn.CrossEntropyLoss())[seed // 4 % 2]
    problem = Problem(seed, activation, criterion, PRECISIONS[seed // 8 % 2])
    truth = np.linalg.eigvalsh(problem.hessian.numpy())
    eps = float(torch.finfo(problem.objective.dtype).eps)
    # Of some thousand operations each, in the objective's precision.
    rounding = 100 * eps * np.abs(truth).max()
    for tolerance in (0.1, 0.01):
        extremes = cl.extreme_eigenvalues(problem.objective.hessian(), tolerance=tolerance, seed=seed)
        assert extremes.converged
        assert extremes.smallest_lower_bound - rounding <= truth[0] <= extremes.smallest + rounding
        assert extremes.largest - rounding <= truth[-1] <= extremes.largest_upper_bound + rounding
        assert extremes.smallest - truth[0] <= tolerance * (truth[-1] - truth[0])
    verdict = cl.convexity_verdict(problem.objective, seed=seed)
    assert verdict.lower_bound <= truth[0] + rounding
    if verdict.kind == "non-convex":
        assert truth[0] < 0
        assert verdict.second_difference is not None
        if activation is not nn.ReLU:
            # Rounding of four losses of order 1 over h² = √ε; the fourth derivative times h².
            assert verdict.second_difference == pytest.approx(verdict.curvature, abs=1e-4)
    else:
        assert verdict.kind == "no-negative-curvature"
        assert truth[0] >= -verdict.floor * truth[-1] * (1 + 1e-6)


# Products in fewer bits


@pytest.mark.parametrize("seed", mostly_slow((1, 5, 0, 2, 3, 4), quick=2))
def test_bounds_on_bfloat16_products_hold_on_dense_network_hessians(seed: int) -> None:
    activation = (nn.Tanh, nn.GELU, nn.ReLU)[seed % 3]
    criterion = (nn.MSELoss(), nn.CrossEntropyLoss())[seed // 3 % 2]
    problem = Problem(seed, activation, criterion, torch.float32)
    truth = np.linalg.eigvalsh(problem.hessian.numpy())
    spread, rounding = truth[-1] - truth[0], 100 * float(torch.finfo(torch.float32).eps) * np.abs(truth).max()
    operator = problem.objective.hessian(precision="bf16")
    extremes = cl.extreme_eigenvalues(operator, tolerance=0.05, seed=seed)
    assert extremes.smallest_lower_bound - rounding <= truth[0] <= extremes.smallest + rounding
    assert extremes.largest - rounding <= truth[-1] <= extremes.largest_upper_bound + rounding
    # Some hundred additions of numbers of 8 bits, and no more.
    assert 2**-14 * spread < extremes.deviation < 2**-4 * spread
    vector = extremes.smallest_vector
    assert extremes.smallest == pytest.approx(float(vector @ problem.hessian @ vector), abs=rounding)
    assert "bf16" in extremes.effort.plan
    verdict = cl.convexity_verdict(problem.objective, floor=0.05, precision="bf16", max_steps=200, seed=seed)
    assert verdict.lower_bound <= truth[0] + rounding
    assert verdict.kind != "non-convex" or truth[0] < 0
    if verdict.kind == "no-negative-curvature":
        assert truth[0] >= -0.05 * truth[-1]


def test_ritz_values_of_bfloat16_products_lie_beyond_the_spectrum() -> None:
    """Which those of exact products never do: without their error they would be believed wrongly."""
    beyond = []
    for seed in (1, 3):
        problem = Problem(seed, nn.GELU, nn.CrossEntropyLoss(), torch.float32)
        truth = np.linalg.eigvalsh(problem.hessian.numpy())
        process = problem.run(60, seed)
        process.operator = problem.objective.hessian(precision="bf16")
        process.extend(60)
        ritz = process.ritz()[0]
        beyond += [truth[0] - ritz[0], ritz[-1] - truth[-1]]
    # A hundred times what float32 would explain.
    assert max(beyond) > 1e-4 * (truth[-1] - truth[0])


@pytest.mark.parametrize("steps", mostly_slow([30, 5], quick=1))
def test_the_narrower_bound_on_the_deviation_holds_as_often_as_it_says(steps: int) -> None:
    failure, missed, trials, wider = 0.05, 0, 0, []
    for seed in range(2):
        problem = _smooth(seed)
        process = problem.run(steps)
        process.operator = problem.objective.hessian(precision="bf16")
        process.extend(steps)
        truth = float(torch.linalg.matrix_norm(_relation_error(process, problem.hessian), 2))
        process.operator = Dense(problem.hessian)
        for draw in range(32):
            bound = norm_of_deviation(process, failure, draw)
            missed += bound < truth * (1 - 1e-9)
            trials += 1
            wider.append(bound / truth)
    assert missed <= binom.ppf(0.999, trials, failure)
    # By the Chebyshev polynomial of degree 7, for 30 columns and a part along the top of 1 in 350: 1 + 0.35 at most.
    assert max(wider) < (1.2 if steps == 30 else 1 + 1e-9)


def test_the_transposed_image_is_that_of_the_image() -> None:
    problem = _smooth(dtype=torch.float64)
    process = problem.run(12)
    process.extend(12)
    image = process.image(torch.eye(12, dtype=torch.float64))  # (k, n): the columns of V T + β v eᵀ.
    rows = torch.randn(3, problem.objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(process.image_transposed(rows), image @ rows.T, atol=1e-12)
    basis = process.combined(torch.eye(12, dtype=torch.float64))
    assert torch.allclose(process.coordinates(rows), basis @ rows.T, atol=1e-12)

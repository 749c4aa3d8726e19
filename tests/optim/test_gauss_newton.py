"""Gauss-Newton-CG against least squares, dense damped systems and the published rule for the damping."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import MisuseError
from convexlab.optim import DiagonalPreconditioner, GaussNewtonCG
from convexlab.optim.flat import StepReport
from tests.dense import Dense
from tests.optim.networks import Regression
from tests.optim.problems import PROBLEMS, Problem
from tests.optim.running import check_state_continues, closure_of

EPSILON = 2.0**-52
EXACTLY = 1e-30  # Tolerance of an inner iteration that goes on to the end.


def _build(task: Regression, x: nn.Parameter, **options: object) -> GaussNewtonCG:
    return GaussNewtonCG([x], lambda: Dense(task.gauss_newton(x.detach())), **options)


def test_linear_least_squares_take_one_step() -> None:
    dice = np.random.default_rng(0)
    a, b = torch.tensor(dice.standard_normal((30, 6))), torch.tensor(dice.standard_normal(30))
    x = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    optimiser = GaussNewtonCG([x], lambda: Dense(2.0 * a.T @ a), damping=0.0, tolerance=EXACTLY)
    optimiser.step(closure_of(lambda x: (a @ x - b).square().sum(), x))
    expected = torch.linalg.lstsq(a, b[:, None]).solution[:, 0]
    # Six steps of CG on a matrix of condition below 10, in sums of 30.
    assert torch.linalg.vector_norm(x - expected) <= 6 * 10**2 * 30 * EPSILON * torch.linalg.vector_norm(expected)
    assert optimiser.report.step_size == 1.0


@pytest.mark.parametrize("preconditioned", [False, True])
def test_first_step_solves_the_damped_system(preconditioned: bool) -> None:
    task = Regression()
    x = nn.Parameter(task.start.clone())
    p = torch.linspace(0.5, 2.0, 33, dtype=torch.float64) if preconditioned else torch.ones(33, dtype=torch.float64)
    options = {"preconditioner": DiagonalPreconditioner(p)} if preconditioned else {}
    optimiser = _build(task, x, damping=0.1, tolerance=EXACTLY, **options)
    g, matrix = torch.func.grad(task)(task.start), task.gauss_newton(task.start)
    optimiser.step(closure_of(task, x))
    z = p * g
    strength = 0.1 * (z @ matrix @ z / (z @ (z / p)))
    assert optimiser._memory.damping == pytest.approx(strength.item(), rel=1e-12)
    expected = -torch.linalg.solve(matrix + strength * torch.diag(1.0 / p), g)
    step = (x.detach() - task.start) / optimiser.report.step_size
    # Up to 33 steps of CG; with λ the condition number is some 100 at most, in P's metric.
    assert torch.linalg.vector_norm(step - expected) <= 33 * 100**2 * EPSILON * torch.linalg.vector_norm(expected) * 33


def test_damping_follows_the_decrease_that_was_had() -> None:
    task = Regression()
    x = nn.Parameter(task.start.clone())
    optimiser = _build(task, x, damping=1e-3)
    seen, factors = None, set()
    for _ in range(40):
        optimiser.step(closure_of(task, x))
        damping, report = optimiser._memory.damping, optimiser.report
        if seen is not None:
            old, promised, loss = seen
            share = (loss - report.loss) / promised
            factor = 1.5 if share < 0.25 else 1.0 / 1.5 if share > 0.75 else 1.0
            factors.add(factor)
            assert damping == pytest.approx(old * factor, rel=1e-12)
        seen = damping, optimiser._memory.promised, report.loss
    assert factors == {1.5, 1.0, 1.0 / 1.5}


ZERO_RESIDUALS = [problem for problem in PROBLEMS if problem.number in {1, 5, 7, 13, 21, 25, 28, 30}]


@pytest.mark.parametrize("problem", ZERO_RESIDUALS, ids=lambda problem: problem.name)
def test_minimum_is_the_published_one(problem: Problem) -> None:
    x = nn.Parameter(torch.tensor(problem.start, dtype=torch.float64))

    def matrix() -> Dense:
        jacobian = torch.func.jacrev(problem.residuals)(x.detach())
        return Dense(2.0 * jacobian.T @ jacobian)

    optimiser = GaussNewtonCG([x], matrix, tolerance=0.01)
    for _ in range(300):
        optimiser.step(closure_of(problem, x))
        if optimiser.report.gradient_norm <= problem.tolerance:
            break
    # Where the minimum is zero, the loss is of the order of the gradient's square.
    assert optimiser.report.loss <= problem.tolerance


def test_an_objective_gives_the_products() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    objective = cl.Objective(model, [(x, y)], nn.MSELoss())
    optimiser = GaussNewtonCG(model.parameters(), objective.ggn)

    def closure() -> Tensor:
        model.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    start = objective.value()
    for _ in range(20):
        optimiser.step(closure)
    products = objective.cost.gauss_newton_products
    assert products >= 20
    assert objective.value() < 0.9 * start


class _Interrupt:
    """A loss that raises at one call."""

    def __init__(self, task: Regression) -> None:
        self.task, self.left = task, -1

    def __call__(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.task(x)


def test_after_an_exception_the_run_goes_on_as_if_there_had_been_none() -> None:
    def points(interrupted: bool) -> list[tuple[Tensor, float, StepReport]]:
        task = _Interrupt(Regression())
        x = nn.Parameter(task.task.start.clone())
        optimiser, seen = _build(task.task, x), []
        for step in range(8):
            if interrupted and step in {1, 5}:
                task.left = 1
                with pytest.raises(KeyboardInterrupt):
                    optimiser.step(closure_of(task, x))
            optimiser.step(closure_of(task, x))
            seen.append((x.detach().clone(), optimiser._memory.damping, optimiser.report))
        return seen

    for (x, damping, report), (other, other_damping, other_report) in zip(points(True), points(False), strict=True):
        assert torch.equal(x, other)
        assert (damping, report) == (other_damping, other_report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("split", [0, 1, 4])
def test_state_continues_bit_for_bit(dtype: torch.dtype, split: int) -> None:
    task = Regression()
    check_state_continues(lambda x: _build(task, x), task, task.start.to(dtype), split, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1.0}, "damping must be zero or positive, got -1.0"),
        ({"damping": math.nan}, "damping must be zero or positive"),
        ({"operator": None}, "pass objective.ggn"),
        ({"operator": Dense(torch.eye(2))}, "operator must be None or a function"),
        ({"tolerance": 2.0}, "tolerance must lie above 0"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], message: str) -> None:
    build = functools.partial(GaussNewtonCG, [nn.Parameter(torch.zeros(2))])
    with pytest.raises(MisuseError, match=message):
        build(**{"operator": lambda: Dense(torch.eye(2))} | options)

"""Newton-CG on quadratics, saddles, networks, and Moré, Garbow and Hillstrom's problems."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.optim import DiagonalPreconditioner, NewtonCG
from convexlab.optim.line_search import HagerZhang, Line, SearchResult
from tests.dense import Dense
from tests.optim.networks import Regression, quadratic
from tests.optim.problems import PROBLEMS, Problem
from tests.optim.running import Loss, check_state_continues, closure_of, run

EPSILON = 2.0**-52
EXACTLY = 1e-30  # Tolerance of an inner iteration that goes on to the end.

_run = functools.partial(run, NewtonCG)
_run_exactly = functools.partial(run, functools.partial(NewtonCG, tolerance=EXACTLY))


def _exact(loss: Loss, x: nn.Parameter) -> NewtonCG:
    return NewtonCG([x], operator=lambda: Dense(torch.func.hessian(loss)(x.detach())), tolerance=EXACTLY)


class Counted:
    """A loss that counts its evaluations."""

    def __init__(self, loss: Loss) -> None:
        self.loss, self.calls = loss, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.loss(x)


@pytest.mark.parametrize("seed", range(3))
def test_a_convex_quadratic_takes_one_step(seed: int) -> None:
    h, b, loss = quadratic(seed=seed)
    x = nn.Parameter(torch.zeros(8, dtype=torch.float64))
    optimiser = _exact(loss, x)
    optimiser.step(closure_of(loss, x))
    assert optimiser.report.step_size == 1.0
    assert optimiser.report.gradients == 2  # At the start and at the minimum.
    # Eight steps of CG: rounding times the square of the condition number, as in the tests of the inner iteration.
    assert np.linalg.norm(h @ x.detach().numpy() - b) <= 8 * 10.0**2 * EPSILON * np.linalg.norm(b) * 10.0


@pytest.mark.parametrize("preconditioned", [False, True])
def test_differences_of_gradients_find_the_exact_newton_step_on_a_network(preconditioned: bool) -> None:
    task = Regression()
    # Where H is positive definite and well conditioned: the loss with a ridge.
    loss = lambda x: task(x) + 5.0 * x.square().sum()  # noqa: E731
    hessian, gradient = torch.func.hessian(loss)(task.start), torch.func.grad(loss)(task.start)
    values = torch.linalg.eigvalsh(hessian)
    assert values[0] > 0.1
    p = torch.linspace(0.5, 2.0, 33, dtype=torch.float64)
    options = {"preconditioner": DiagonalPreconditioner(p)} if preconditioned else {}
    counted = Counted(loss)
    ((x, report, _),) = _run_exactly(counted, task.start, 1, max_products=33, **options)
    step = (x - task.start) / report.step_size
    expected = -torch.linalg.solve(hessian, gradient)
    # A product errs by a few √ε; CG amplifies that by the condition number, with P four times it.
    condition = 4.0 * (values[-1] / values[0]).item()
    assert torch.linalg.vector_norm(step - expected) <= 4 * condition * math.sqrt(EPSILON) * expected.norm()
    assert report.gradients == counted.calls
    assert report.gradients >= 10  # Most of them for products.


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_minimum_is_the_published_one(problem: Problem) -> None:
    start = torch.tensor(problem.start, dtype=torch.float64)
    *_, (_, report, _) = _run(problem, start, 500, problem.tolerance)
    # Published to six digits; where the minimum is zero, the loss is of the order of the gradient's square.
    assert any(abs(report.loss - minimum) <= 5e-6 * minimum + problem.tolerance for minimum in problem.minima)


@pytest.mark.parametrize("problem", PROBLEMS[:4], ids=lambda problem: problem.name)
def test_exact_products_find_it_too(problem: Problem) -> None:
    x = nn.Parameter(torch.tensor(problem.start, dtype=torch.float64))
    optimiser = _exact(problem, x)
    for _ in range(200):
        optimiser.step(closure_of(problem, x))
        if optimiser.report.gradient_norm <= problem.tolerance:
            break
    assert any(abs(optimiser.report.loss - minimum) <= 5e-6 * minimum + problem.tolerance for minimum in problem.minima)


# Saddles.


def _saddle(seed: int) -> tuple[Loss, Tensor]:
    """Return Σ λu²/2 + Σ u⁴/4 in rotated coordinates u, λ from 1 to 10 but one that is -1, and that one's axis.

    At the origin there is a saddle of value 0; the minima have u = ±1 along the axis and the value -1/4.
    """
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.standard_normal((10, 10)))
    rotation, values = torch.tensor(basis), torch.linspace(1.0, 10.0, 10, dtype=torch.float64)
    values[3] = -1.0

    def loss(x: Tensor) -> Tensor:
        u = rotation.T @ x
        return (values * u**2 / 2.0 + u**4 / 4.0).sum()

    return loss, rotation[:, 3]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("part", [1e-2, 1e-6])
def test_it_leaves_a_saddle_along_negative_curvature(seed: int, part: float) -> None:
    loss, axis = _saddle(seed)
    generator = torch.Generator().manual_seed(seed)
    start = 0.1 * torch.randn(10, generator=generator, dtype=torch.float64)
    start = start - axis * (axis @ start) + part * axis
    points = [x for x, *_ in run(functools.partial(NewtonCG, tolerance=0.01), loss, start, 40, 1e-10)]
    # Two decrees of nature: the part along the axis grows at every step, and the end is no saddle.
    assert abs(axis @ points[-1]) == pytest.approx(1.0, abs=1e-8)
    assert loss(points[-1]) == pytest.approx(-0.25, abs=1e-12)
    # At least twice as far at each step: L-BFGS and steepest descent need not. Four more for what is convex.
    assert len(points) <= 8 + math.log2(1.0 / part)


def test_a_first_direction_of_negative_curvature_is_taken() -> None:
    # On a concave parabola CG has nothing but the gradient's own direction.
    loss = lambda x: -0.5 * x.square().sum() + 0.25 * x.square().square().sum()  # noqa: E731
    start = torch.full((4,), 1e-3, dtype=torch.float64)
    *_, (x, report, _) = _run(loss, start, 30, 1e-10)
    torch.testing.assert_close(x.abs(), torch.ones(4, dtype=torch.float64), rtol=1e-9, atol=0.0)
    assert report.loss == pytest.approx(-1.0, rel=1e-12)


# Networks, float32, limits.


@pytest.mark.parametrize("seed", range(2))
def test_float32_gives_no_nan_and_gets_far(seed: int) -> None:
    task = Regression(seed)
    for x, report, _ in _run(task, task.start.float(), 150):
        assert torch.isfinite(x).all()
        assert np.isfinite([report.loss, report.gradient_norm, report.step_size, report.slope]).all()
    assert report.loss <= 0.02 * task(task.start)


@pytest.mark.parametrize("limit", [1, 2, 4, 7, 20])
def test_products_count_towards_the_limit(limit: int) -> None:
    task = Counted(Regression())
    x = nn.Parameter(task.loss.start.clone())
    optimiser = NewtonCG([x], tolerance=EXACTLY, max_evaluations=limit)
    for _ in range(10):
        before = task.calls
        optimiser.step(closure_of(task, x))
        spent = task.calls - before
        assert spent == optimiser.report.gradients + optimiser.report.values
        assert spent <= limit + 1  # One more opens a step that has no gradient to reuse.
    assert Regression()(x) < Regression()(task.loss.start)


def test_max_products_limits_the_inner_iteration() -> None:
    task = Regression()
    for _, report, _ in _run_exactly(task, task.start, 5, max_products=4):
        assert report.gradients <= 1 + 4 + 8  # The search takes far fewer than eight.


def test_a_closure_without_values_beyond_a_wall_ends_no_run() -> None:
    loss = lambda x: (x - 2.0).square().sum() - (1.0 - x).log().sum()  # noqa: E731
    *_, (x, report, _) = _run(loss, torch.full((3,), -3.0, dtype=torch.float64), 60, 1e-9)
    assert report.gradient_norm <= 1e-9
    # 2(x - 2) + 1/(1 - x) = 0: 2x² - 6x + 3 = 0, and x < 1.
    torch.testing.assert_close(x, torch.full_like(x, (3.0 - math.sqrt(3.0)) / 2.0), rtol=1e-9, atol=0.0)


# Failures, state, misuse.


class Refusing(HagerZhang):
    """Fails at every call."""

    def __call__(self, line: Line, initial_step: float) -> SearchResult:
        line.value_and_slope(initial_step)  # Moves the weights.
        return SearchResult(0.0, line.start.value, None, 0, 1, False, "refused")


def test_failed_searches_leave_the_weights_bit_for_bit() -> None:
    x = nn.Parameter(Regression().start.clone())
    optimiser = NewtonCG([x], line_search=Refusing())
    before = x.detach().clone()
    optimiser.step(closure_of(Regression(), x))
    assert torch.equal(x, before)
    assert optimiser.report.failed == "refused; then refused"
    assert optimiser.report.restarted == "the search along the first direction failed"


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_exception_from_a_product_leaves_the_weights_bit_for_bit(after: int) -> None:
    task, left = Regression(), [after]

    def loss(x: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return task(x)

    x = nn.Parameter(task.start.clone())
    optimiser = NewtonCG([x], tolerance=EXACTLY)
    with pytest.raises(KeyboardInterrupt):
        optimiser.step(closure_of(loss, x))
    assert torch.equal(x, task.start)
    optimiser.step(closure_of(loss, x))
    ((expected, *_),) = _run_exactly(task, task.start, 1)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("split", [0, 1, 4])
def test_state_continues_bit_for_bit(dtype: torch.dtype, split: int) -> None:
    task = Regression()
    check_state_continues(lambda x: NewtonCG([x]), task, task.start.to(dtype), split, 8)


@pytest.mark.parametrize("factor", [-1.0, 0.0, float("nan"), float("inf")])
def test_preconditioner_that_is_not_positive_definite_is_left_out(factor: float) -> None:
    _, _, loss = quadratic()
    for _, report, _ in _run(loss, torch.ones(8, dtype=torch.float64), 5, preconditioner=lambda g: factor * g):
        assert report.failed is None
        assert "not positive definite" in report.restarted
        assert report.slope == pytest.approx(-(report.gradient_norm**2), rel=1e-13)


def test_an_operator_without_curvature_leaves_steepest_descent() -> None:
    _, _, loss = quadratic()
    start = torch.ones(8, dtype=torch.float64)
    for _, report, _ in _run(loss, start, 3, operator=lambda: Dense(torch.zeros(8, 8, dtype=torch.float64))):
        assert report.failed is None
        assert report.restarted == "conjugate gradients found no direction of descent (gᵀp = 0)"
        assert report.slope == pytest.approx(-(report.gradient_norm**2), rel=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": Dense(torch.eye(2))}, "operator must be None or a function that returns one, got Dense"),
        ({"tolerance": 0.0}, "tolerance must lie above 0"),
        ({"tolerance": float("nan")}, "tolerance must lie above 0"),
        ({"max_products": 0}, "max_products must be an integer of at least 1, got 0"),
        ({"max_products": 2.5}, "max_products must be an integer"),
        ({"preconditioner": torch.ones(2)}, "preconditioner must be"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        NewtonCG([nn.Parameter(torch.zeros(2))], **options)

"""Conjugate gradients and line searches, against linear algebra and SciPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

from convexlab.optim import NonlinearCG, beta_names
from convexlab.optim.line_search import GoldenSection, Line, StrongWolfe
from tests.optim.problems import PROBLEMS, Problem
from tests.optim.running import closure_of
from tests.verification.conftest import Record

pytestmark = pytest.mark.verify

NAMES = ("Rosenbrock", "Beale", "Helical valley", "Wood")
FOUR = [problem for problem in PROBLEMS if problem.name in NAMES]
every_problem = pytest.mark.parametrize("problem", FOUR, ids=lambda problem: problem.name)
EXACT = StrongWolfe(decrease=1e-12, curvature=1e-10)


def _minimise(
    loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, tolerance: float, **options: object
) -> Tensor:
    x = nn.Parameter(start.clone())
    optimiser = NonlinearCG([x], **options)

    for _ in range(steps):
        optimiser.step(closure_of(loss, x))
        assert optimiser.report.failed is None or optimiser.report.gradient_norm <= tolerance
        if optimiser.report.gradient_norm <= tolerance:
            break
    return x.detach()


@pytest.mark.parametrize("beta", beta_names())
def test_a_quadratic_ends_in_at_most_n_steps(record: Record, beta: str) -> None:
    """½ (x - c)ᵀH (x - c) with n = 10 eigenvalues from 1 to 10; c by numpy.linalg.solve."""
    dice = np.random.default_rng(0)
    basis, _ = np.linalg.qr(dice.standard_normal((10, 10)))
    h, b = basis @ np.diag(np.linspace(1, 10, 10)) @ basis.T, dice.standard_normal(10)
    centre = np.linalg.solve(h, b)
    matrix, point = torch.from_numpy(h), torch.from_numpy(centre)

    def loss(x: Tensor) -> Tensor:
        return (x - point) @ matrix @ (x - point) / 2

    x = _minimise(loss, torch.zeros(10).double(), 10, 0.0, beta=beta, line_search=EXACT).numpy()
    # Steps are exact to 10 digits, and what that spoils of the conjugacy grows with the condition number, squared.
    error = np.linalg.norm(x - centre) / np.linalg.norm(centre)
    record(f"10 steps of CG ({beta}) on a quadratic, n = 10", "numpy solve", error, 1e-10 * 10**2 * 10)


@every_problem
@pytest.mark.parametrize("search", ["golden-section", "hager-zhang"])
def test_minimisers(record: Record, search: str, problem: Problem) -> None:
    start = torch.tensor(problem.start, dtype=torch.float64)

    def value_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.from_numpy(point).requires_grad_()
        value = problem(x)
        (gradient,) = torch.autograd.grad(value, x)
        return float(value.detach()), gradient.numpy()

    scipys = scipy.optimize.minimize(
        value_and_gradient, start.numpy(), jac=True, method="CG", options={"gtol": 1e-10, "maxiter": 5000}
    ).x
    ours = _minimise(problem, start, 3000, 1e-8, beta="polak-ribiere+", line_search=search).numpy()
    # Gradients below 1e-8 where the least curvature is 0.2 or more: 5e-8, and SciPy's own share.
    error = np.linalg.norm(ours - scipys) / np.linalg.norm(scipys)
    record(f"CG with {search}, {problem.name}", "SciPy CG", error, 1e-7)


def _along_the_gradient(problem: Problem) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Return φ(α) = f(x - α g) and φ' at the standard start."""
    start = torch.tensor(problem.start, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(problem(start), start)

    def slope(step: float) -> float:
        x = (start.detach() - step * gradient).requires_grad_()
        return -float(torch.autograd.grad(problem(x), x)[0] @ gradient)

    return lambda step: float(problem(start.detach() - step * gradient)), slope


@every_problem
def test_golden_section(record: Record, problem: Problem) -> None:
    phi, slope = _along_the_gradient(problem)
    tolerance = 1e-6
    line = Line(lambda step, _: (phi(step), None), phi(0.0), slope(0.0))
    ours = GoldenSection(tolerance=tolerance)(line, 1e-5)
    assert ours.converged
    scipys = scipy.optimize.minimize_scalar(phi, bracket=(0.0, 1e-5), method="golden", options={"xtol": 1e-9}).x
    # As the search promises for a single minimum.
    record(f"golden section, {problem.name}", "SciPy golden", abs(ours.step_size / scipys - 1), 2 * tolerance)


@every_problem
def test_strong_wolfe(record: Record, problem: Problem) -> None:
    phi, slope = _along_the_gradient(problem)
    line = Line(lambda step, _: (phi(step), slope(step)), phi(0.0), slope(0.0))
    loose = StrongWolfe(decrease=1e-4, curvature=0.1)(line, 1e-5)
    assert phi(loose.step_size) <= phi(0.0) + 1e-4 * loose.step_size * slope(0.0)
    left = abs(slope(loose.step_size) / slope(0.0))
    record(f"share of the slope left by strong Wolfe, {problem.name}", "definition", left, 0.1)

    line = Line(lambda step, _: (phi(step), slope(step)), phi(0.0), slope(0.0))
    tight = StrongWolfe(decrease=1e-12, curvature=1e-9)(line, 1e-5)
    assert tight.converged
    scipys = scipy.optimize.brentq(slope, 0.9 * tight.step_size, 1.1 * tight.step_size, xtol=1e-18, rtol=1e-15)
    # |φ'| <= 1e-9 |φ'(0)| leaves the step open by as much over φ'', twice for good measure.
    curvature = (slope(1.001 * scipys) - slope(0.999 * scipys)) / (0.002 * scipys)
    bound = 2e-9 * -slope(0.0) / (curvature * scipys)
    record(f"strong Wolfe to 1e-9, {problem.name}", "SciPy brentq", abs(tight.step_size / scipys - 1), bound)

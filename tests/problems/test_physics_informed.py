from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import convexlab as cl
from convexlab import MisuseError
from convexlab.architectures import Perceptron
from convexlab.problems.physics_informed import DifferentialEquation, Points, burgers, convection

EQUATIONS = {"convection": convection, "burgers": burgers}


def double(points: Points) -> Points:
    return Points(*(part.double() for part in points))


@pytest.fixture(params=EQUATIONS)
def equation(request: pytest.FixtureRequest) -> DifferentialEquation:
    return EQUATIONS[request.param]()


def test_the_loss_of_convection_is_its_formula() -> None:
    equation = convection(speed=7.0)
    points = double(equation.points(50, 20, 10))
    # u = x t²: u_t + 7 u_x = 2 x t + 7 t²; it is 0, not sin x, at the start; its ends differ by 2π t².
    (x, t), start, end = points.interior.numpy().T, points.initial.numpy()[:, 0], points.right.numpy()[:, 1]
    parts = (2 * x * t + 7 * t**2) ** 2, np.sin(start) ** 2, (points.right.numpy()[:, 0] * end**2) ** 2
    found = equation.loss(lambda p: p[:, :1] * p[:, 1:] ** 2, points)
    # The initial values were rounded to float32.
    assert found.item() == pytest.approx(sum(part.mean() for part in parts), rel=1e-7)


def test_the_loss_of_burgers_is_its_formula() -> None:
    equation = burgers(viscosity=0.3)
    points = double(equation.points(50, 20, 10))
    # u = x² t: u_t + u u_x - 0.3 u_xx = x² + 2 x³ t² - 0.6 t; 0 at the start, t at both ends.
    (x, t), start, end = points.interior.numpy().T, points.initial.numpy()[:, 0], points.right.numpy()[:, 1]
    parts = (x**2 + 2 * x**3 * t**2 - 0.6 * t) ** 2, np.sin(np.pi * start) ** 2, end**2
    found = equation.loss(lambda p: p[:, :1] ** 2 * p[:, 1:], points)
    assert found.item() == pytest.approx(sum(part.mean() for part in parts), rel=1e-7)


def test_the_solution_of_burgers_has_the_published_steepest_slope() -> None:
    # Basdevant et al. 1986: |u_x| at x = 0 is largest at πt = 1.6037, where it is 152.00516.
    steps = torch.linspace(1.6, 1.608, 801, dtype=torch.float64)
    h = 1e-5
    x = torch.full_like(steps, h)
    values = burgers().solution(torch.stack([x, steps / math.pi], dim=1))[:, 0]
    slope = -values / h  # u is odd in x.
    # |u_xxx| h² / 6 with u = -tanh-like of width 1/152: 152³ / 3 · 1e-10 = 1e-4 at most.
    assert slope.max().item() == pytest.approx(152.00516, abs=2e-4)
    assert steps[slope.argmax()].item() == pytest.approx(1.6037, abs=2e-4)


def test_solutions_solve(equation: DifferentialEquation) -> None:
    points = double(equation.points(200))
    residual = equation.loss(equation.solution, points).item()
    # Only the initial and boundary coordinates and values are rounded, to float32: 6e-8 relative, slopes up to π.
    assert residual < (10 * np.finfo(np.float32).eps) ** 2


def test_points_are_where_they_should_be(equation: DifferentialEquation) -> None:
    points = equation.points(300, 40, 30, seed=1)
    low, high = np.float32(equation.interval)
    assert [tuple(part.shape) for part in points] == [(300, 2), (40, 2), (40, 1), (30, 2), (30, 2)]
    assert all(part.dtype == torch.float32 for part in points)
    x, t = points.interior.T.numpy()
    assert low <= x.min() < x.max() <= high
    assert 0 <= t.min() < t.max() <= 1
    # Uniform: the mean of 300 within five standard errors, 5 / sqrt(12 · 300) = 0.083 of the length.
    assert abs(t.mean() - 0.5) < 0.083
    assert abs(x.mean() - (low + high) / 2) < 0.083 * (high - low)
    assert not points.initial[:, 1].any()
    assert points.left[:, 0].unique().tolist() == [low]
    assert points.right[:, 0].unique().tolist() == [high]
    assert torch.equal(points.left[:, 1], points.right[:, 1])
    assert torch.equal(points.interior, equation.points(300, seed=1).interior)
    assert not torch.equal(points.interior, equation.points(300, seed=2).interior)


@pytest.mark.parametrize("option", ["interior", "initial", "boundary"])
def test_no_points_are_refused(option: str) -> None:
    with pytest.raises(MisuseError, match=f"expected {option} of at least 1 point, got 0"):
        convection().points(**{option: 0})


def test_the_error_is_relative(equation: DifferentialEquation) -> None:
    # float32 points and values.
    assert equation.relative_error(equation.solution) < 1e-5
    assert equation.relative_error(lambda p: torch.zeros(len(p), 1)) == pytest.approx(1.0)
    assert equation.relative_error(lambda p: 1.25 * equation.solution(p)) == pytest.approx(0.25, abs=1e-5)


def test_an_objective_differentiates_it(equation: DifferentialEquation) -> None:
    torch.manual_seed(0)
    model = Perceptron(width=6, depth=2).double()
    points = double(equation.points(20, 5, 5))
    objective = cl.Objective.from_batch_loss(model, [points], equation.loss)
    theta = objective.flat_parameters()
    direction = torch.randn(objective.size, dtype=torch.float64)
    direction /= direction.norm()

    h = 1e-5
    values, gradients = [], []
    for step in (h, -h):
        with objective.at(theta + step * direction):
            value, gradient = objective.value_and_gradient()
            # The value alone, for which no parameter requires a gradient, is the same.
            assert objective.value() == pytest.approx(value, rel=1e-14)
        values.append(value)
        gradients.append(gradient)
    # Truncation h² times a third derivative of the order of the loss over 1; rounding 1e-16 / h.
    slope = (values[0] - values[1]) / (2 * h)
    assert slope == pytest.approx(float(objective.gradient() @ direction), rel=1e-6)
    product = (gradients[0] - gradients[1]) / (2 * h)
    torch.testing.assert_close(objective.hvp(direction), product, rtol=1e-5, atol=1e-6 * float(product.abs().max()))


def test_it_can_be_evaluated_without_gradients(equation: DifferentialEquation) -> None:
    torch.manual_seed(0)
    model, points = Perceptron(), equation.points(10)
    with torch.no_grad():
        value = equation.loss(model, points)
    assert value.item() == pytest.approx(equation.loss(model, points).item(), rel=1e-6)

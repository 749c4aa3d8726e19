from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import convexlab as cl
from convexlab import MisuseError
from convexlab.architectures import Perceptron
from convexlab.problems.physics_informed import (
    DifferentialEquation,
    Points,
    allen_cahn,
    burgers,
    convection,
    helmholtz,
    klein_gordon,
    wave,
)

CLOSED = {
    "convection": convection,
    "burgers": burgers,
    "helmholtz": helmholtz,
    "klein-gordon": klein_gordon,
    "wave": wave,
}
"""Those whose solution has a closed form."""
EQUATIONS = CLOSED | {"allen-cahn": allen_cahn}


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


@pytest.mark.parametrize("equation", CLOSED, indirect=True)
def test_solutions_solve(equation: DifferentialEquation) -> None:
    points = double(equation.points(200))
    residual = equation.loss(equation.solution, points).item()
    # Only the initial and boundary coordinates and values are rounded, to float32: 6e-8 relative, slopes up to 5π.
    assert residual < (40 * np.finfo(np.float32).eps) ** 2


def test_the_solution_of_allen_and_cahn_solves() -> None:
    x, t, h = torch.linspace(-0.9, 0.9, 50).double(), torch.linspace(0.1, 0.9, 9).double(), 1e-3
    grid = torch.cartesian_prod(x, t)

    def u(dx: float, dt: float) -> torch.Tensor:
        return allen_cahn().solution(grid + torch.tensor([dx, dt], dtype=torch.float64))[:, 0]

    u_t, u_xx = (u(0, h) - u(0, -h)) / (2 * h), (u(h, 0) - 2 * u(0, 0) + u(-h, 0)) / h**2
    # Differences err by h² times fourth derivatives: fronts are sqrt(1e-4 / 5) wide, so 1e-4 h² / 0.0045⁴ = 0.2 of the
    # reaction at their steepest; elsewhere far less.
    residual = (u_t - 1e-4 * u_xx - 5 * (u(0, 0) - u(0, 0) ** 3)).abs()
    assert residual.median() < 1e-3
    assert residual.max() < 0.2
    start = torch.stack([x, torch.zeros_like(x)], dim=1)
    torch.testing.assert_close(allen_cahn().solution(start)[:, 0], x**2 * torch.cos(math.pi * x), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("equation", "parts"),
    [
        # u = x² t³: u_xx = 2t³, u_tt = 6 x² t.
        (helmholtz(), lambda x, t: 2 * t**3 + 6 * x**2 * t + x**2 * t**3),
        (wave(3.0), lambda x, t: 6 * x**2 * t - 9 * 2 * t**3),
        (klein_gordon(), lambda x, t: 6 * x**2 * t - 2 * t**3 + (x**2 * t**3) ** 3),
        (allen_cahn(0.1), lambda x, t: 3 * x**2 * t**2 - 0.1 * 2 * t**3 - 5 * (x**2 * t**3 - (x**2 * t**3) ** 3)),
    ],
    ids=["helmholtz", "wave", "klein-gordon", "allen-cahn"],
)
def test_residuals_are_their_formulas(equation: DifferentialEquation, parts) -> None:
    points = double(equation.points(50, 5, 5))
    x, t = points.interior.split(1, dim=1)
    residual = equation.residuals(lambda p: p[:, :1] ** 2 * p[:, 1:] ** 3, points)[0]
    if equation.plane:
        expected = parts(x, t) + (17 * math.pi**2 - 1) * torch.sin(math.pi * x) * torch.sin(4 * math.pi * t)
    elif "Klein" in equation.description:
        exact, w = equation.solution(points.interior), 5 * math.pi
        expected = parts(x, t) - (-(w**2) * x * torch.cos(w * t) + 6 * x**3 * t - 6 * x * t**3 + exact**3)
    else:
        expected = parts(x, t)
    torch.testing.assert_close(residual, expected, rtol=1e-10, atol=1e-10)


def test_a_start_at_rest_is_asked_for() -> None:
    points = double(wave().points(5, 7, 5))
    *_, velocity = wave().residuals(lambda p: p[:, :1] * torch.sin(3 * p[:, 1:]), points)
    torch.testing.assert_close(velocity, 3 * points.initial[:, :1])


def test_a_plane_has_values_on_all_sides() -> None:
    points = helmholtz().points(300, 40, 30)
    assert points.initial.shape == (80, 2)
    assert points.initial[:, 1].unique().tolist() == [-1.0, 1.0]
    assert points.left[:, 1].min() == points.interior.min().round() == -1.0
    low, high = points.interior.aminmax(dim=0)
    assert (low < -0.9).all()
    assert (high > 0.9).all()


@pytest.mark.parametrize("equation", ["convection", "burgers", "wave", "allen-cahn"], indirect=True)
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

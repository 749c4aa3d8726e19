"""Nonlinear conjugate gradients against SciPy, linear conjugate gradients and closed forms."""

from __future__ import annotations

import functools
import statistics
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.optim import NonlinearCG, beta_names, line_search_names
from convexlab.optim.line_search import HagerZhang
from tests.optim.networks import (
    EXACT,
    ITERATE_TOLERANCE,
    Regression,
    check_linear_conjugate_gradients,
    quadratic,
)
from tests.optim.problems import PROBLEMS, Problem
from tests.optim.running import run
from tests.slowly import mostly_slow

every_beta = pytest.mark.parametrize("beta", beta_names())
every_search = pytest.mark.parametrize("search", line_search_names())
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)

# The minimisers of Box's problem are not isolated; on the variably dimensioned one SciPy's CG stops far from the end
# ("desired error not necessarily achieved due to precision loss").
COMPARABLE = [problem for problem in PROBLEMS if problem.number not in (12, 25)]

_run = functools.partial(run, NonlinearCG)


@every_beta
@pytest.mark.parametrize("seed", range(3))
def test_quadratic_ends_in_n_steps(beta: str, seed: int) -> None:
    h, b, loss = quadratic(seed=seed)
    points = [x for x, *_ in _run(loss, torch.zeros(8, dtype=torch.float64), 8, beta=beta, line_search=EXACT)]
    assert np.linalg.norm(h @ points[-1].numpy() - b) <= ITERATE_TOLERANCE * np.linalg.norm(b)


@every_beta
def test_quadratic_takes_the_steps_of_linear_conjugate_gradients(beta: str) -> None:
    h, b, loss = quadratic()
    points = [x for x, *_ in _run(loss, torch.zeros(8, dtype=torch.float64), 8, beta=beta, line_search=EXACT)]
    check_linear_conjugate_gradients(points, h, b)


@every_beta
def test_preconditioned_quadratic_takes_the_steps_of_preconditioned_linear_conjugate_gradients(beta: str) -> None:
    h, b, loss = quadratic()
    diagonal = 1.0 / np.diag(h) * np.linspace(0.5, 2.0, 8)
    options = {"beta": beta, "line_search": EXACT, "preconditioner": lambda g: g * torch.tensor(diagonal)}
    points = [x for x, *_ in _run(loss, torch.zeros(8, dtype=torch.float64), 8, **options)]
    check_linear_conjugate_gradients(points, h, b, np.diag(diagonal))


@every_beta
def test_the_inverse_hessian_as_preconditioner_needs_one_step(beta: str) -> None:
    h, b, loss = quadratic()
    inverse = torch.tensor(np.linalg.inv(h))
    options = {"beta": beta, "line_search": EXACT, "preconditioner": lambda g: inverse @ g}
    x, report, _ = next(_run(loss, torch.zeros(8, dtype=torch.float64), 1, **options))
    assert np.linalg.norm(h @ x.numpy() - b) <= ITERATE_TOLERANCE * np.linalg.norm(b)
    assert report.step_size == pytest.approx(1.0, rel=1e-9)


@every_beta
def test_preconditioning_is_a_change_of_variables(beta: str) -> None:
    # f(Ru) without a preconditioner and f(x) with P = RRᵀ take the same path. The first trial differs (it depends on
    # the largest weight), so the search is made nearly exact.
    problem = next(problem for problem in PROBLEMS if problem.name == "Broyden tridiagonal")
    generator = torch.Generator().manual_seed(0)
    root = torch.eye(10, dtype=torch.float64) + 0.1 * torch.randn(10, 10, generator=generator, dtype=torch.float64)
    start = torch.tensor(problem.start, dtype=torch.float64)
    options = {"beta": beta, "line_search": EXACT, "powell": None}
    plain = _run(lambda u: problem(root @ u), torch.linalg.solve(root, start), 6, **options)
    other = _run(problem, start, 6, preconditioner=lambda g: root @ (root.T @ g), **options)
    for (u, *_), (x, *_) in zip(plain, other, strict=True):
        # Steps exact to 1e-10, amplified over six steps by a Hessian whose condition number is about 10.
        assert torch.linalg.vector_norm(root @ u - x) <= 1e-6


@functools.cache
def _scipy(problem: Problem) -> tuple[float, np.ndarray, float, int]:
    """Return value, minimiser, gradient norm and evaluations of scipy.optimize's CG."""

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(x, requires_grad=True)
        value = problem(point)
        value.backward()
        return value.item(), point.grad.numpy()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Its own searches run into overflow.
        result = scipy.optimize.minimize(
            value_and_gradient,
            np.array(problem.start),
            jac=True,
            method="CG",
            options={"gtol": problem.tolerance, "norm": 2, "maxiter": 3000},
        )
    return result.fun, result.x, float(np.linalg.norm(result.jac)), result.nfev


@functools.cache
def _ours(problem: Problem, beta: str, search: str) -> tuple[float, Tensor, float, int]:
    evaluations = 0
    start = torch.tensor(problem.start, dtype=torch.float64)
    points = [start]
    for x, report, _ in _run(problem, start, 1000, problem.tolerance, beta=beta, line_search=search):
        points.append(x)
        evaluations += report.values + report.gradients
    # The last report's loss and gradient are those of the point where that step began.
    return report.loss, points[-2], report.gradient_norm, evaluations


@every_problem
@pytest.mark.parametrize(
    ("beta", "search"),
    [("polak-ribiere+", "hager-zhang"), ("hager-zhang", "hager-zhang"), ("polak-ribiere+", "golden-section")],
)
def test_minimum_is_the_published_one(problem: Problem, beta: str, search: str) -> None:
    loss, *_ = _ours(problem, beta, search)
    # Published to six digits; where the minimum is zero, the loss is of the order of the gradient's square.
    assert any(abs(loss - minimum) <= 5e-6 * minimum + problem.tolerance for minimum in problem.minima)


@pytest.mark.parametrize("problem", COMPARABLE, ids=lambda problem: problem.name)
def test_minimiser_is_that_of_scipy(problem: Problem) -> None:
    _, x, norm, _ = _ours(problem, "polak-ribiere+", "hager-zhang")
    _, other_x, other_norm, _ = _scipy(problem)
    curvature = torch.linalg.eigvalsh(torch.func.hessian(problem)(x))
    # A point with gradient g lies within ‖g‖ over the smallest eigenvalue of the minimum; twice, since the Hessian
    # varies between the points.
    bound = 2.0 * (norm + other_norm) / curvature[0].item()
    assert np.linalg.norm(x.numpy() - other_x) <= bound


def test_evaluations_are_at_most_one_and_a_half_times_those_of_scipy() -> None:
    ratios = [_ours(problem, "polak-ribiere+", "hager-zhang")[3] / _scipy(problem)[3] for problem in PROBLEMS]
    assert statistics.median(ratios) <= 1.5


@every_problem
@pytest.mark.parametrize("search", mostly_slow(["hager-zhang", "brent"], quick=1))
def test_hager_zhang_descends_in_every_step(problem: Problem, search: str) -> None:
    start = torch.tensor(problem.start, dtype=torch.float64)
    for _, report, optimiser in _run(problem, start, 100, problem.tolerance, beta="hager-zhang", line_search=search):
        if report.failed:
            break
        gradient, direction = optimiser._memory.gradient, optimiser._memory.direction
        slope, square = (gradient @ direction).item(), (gradient @ gradient).item()
        # A few roundings of the products, which are no larger than ‖g‖‖d‖.
        slack = 1e-14 * (square * (direction @ direction).item()) ** 0.5
        assert slope <= -7.0 / 8.0 * square + slack
        assert report.slope == pytest.approx(slope, abs=slack, rel=1e-12)
        # ‖d‖² is carried along by a recursion, whose roundings add up over the steps.
        assert optimiser._memory.d_d == pytest.approx((direction @ direction).item(), rel=1e-9)


@every_beta
@every_search
def test_power_of_two_on_the_loss_changes_no_bit(beta: str, search: str) -> None:
    start = torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64)
    runs = [
        _run(lambda x, scale=scale: scale * PROBLEMS[0](x), start, 12, beta=beta, line_search=search)
        for scale in (1.0, 2.0**-40, 2.0**40)
    ]
    for (x, report, _), *others in zip(*runs, strict=True):
        for other, other_report, _ in others:
            assert torch.equal(other, x)
            assert (other_report.values, other_report.gradients) == (report.values, report.gradients)


@every_beta
@every_search
def test_scale_of_the_loss_does_not_matter(beta: str, search: str) -> None:
    start = torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64)
    plain, small, large = (
        _run(lambda x, s=s: s * PROBLEMS[0](x), start, 4, beta=beta, line_search=search) for s in (1.0, 1e-12, 1e12)
    )
    for (x, *_), *others in zip(plain, small, large, strict=True):
        for other, *_ in others:
            # Values resolve a step to the root of their rounding, 1.5e-8, and that is what their searches amplify.
            assert torch.linalg.vector_norm(other - x) <= 1e-6 * torch.linalg.vector_norm(x)


@pytest.mark.parametrize("beta", ["polak-ribiere+", "hager-zhang"])
@pytest.mark.parametrize("seed", mostly_slow(range(2), quick=1))
def test_float32_goes_on_to_the_rounding_of_the_gradient(beta: str, seed: int) -> None:
    task = Regression(seed)
    floors = []
    for x, report, _ in _run(task, task.start.float(), 400, beta=beta):
        assert torch.isfinite(x).all()
        assert np.isfinite([report.loss, report.gradient_norm, report.step_size, report.slope]).all()
        if report.failed:
            exact = torch.func.grad(task)(x.double())
            rounding = torch.linalg.vector_norm(torch.func.grad(task)(x).double() - exact)
            floors.append((torch.linalg.vector_norm(exact) / rounding).item())
    # It may stop only where the gradient is lost in its own rounding.
    assert all(floor <= 10.0 for floor in floors)


@every_search
def test_float32_at_the_floor_gives_no_nan(search: str) -> None:
    # A least-squares problem whose loss cannot reach zero: from some step on, float32 losses are equal.
    generator = torch.Generator().manual_seed(0)
    matrix, target = torch.randn(30, 5, generator=generator), torch.randn(30, generator=generator)
    for scale in (1.0, 1e-30, 1e30):
        x = nn.Parameter(torch.zeros(5))
        optimiser = NonlinearCG([x], line_search=search)

        def closure(scale: float = scale, x: nn.Parameter = x) -> Tensor:
            x.grad = None
            loss = scale * (matrix @ x - target).square().mean()
            loss.backward()
            return loss

        first = closure().item()
        for _ in range(60):
            optimiser.step(closure)
            assert torch.isfinite(x).all()
            assert np.isfinite(optimiser.report.loss)
        exact = torch.linalg.lstsq(matrix.double(), target.double()).solution
        # Values resolve the minimum to the root of float32's rounding; the matrix is well conditioned (below 3).
        assert torch.linalg.vector_norm(x - exact) <= 10.0 * 2.0**-11.5 * torch.linalg.vector_norm(exact)
        assert optimiser.report.loss < first


def test_powell_restarts_where_gradients_stay_parallel() -> None:
    # A single evaluation a step keeps the steps short, so successive gradients are nearly parallel.
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    options = {"beta": "fletcher-reeves", "line_search": "golden-section", "max_evaluations": 1}
    reasons = {report.restarted for _, report, _ in _run(PROBLEMS[0], start, 10, powell=0.2, **options)}
    assert "successive gradients are far from orthogonal (Powell's test)" in reasons
    reasons = {report.restarted for _, report, _ in _run(PROBLEMS[0], start, 10, powell=None, **options)}
    assert "successive gradients are far from orthogonal (Powell's test)" not in reasons


@every_beta
def test_every_direction_taken_descends(beta: str) -> None:
    # Searches cut off after two evaluations leave conjugate directions that need not descend.
    start = torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64)
    options = {"beta": beta, "line_search": "golden-section", "max_evaluations": 2, "powell": None}
    reports = [report for _, report, _ in _run(PROBLEMS[0], start, 200, **options)]
    assert all(report.slope < 0.0 for report in reports)
    # It did come to that with the formulas that have no guarantee, which makes this a test.
    restarts = {report.restarted for report in reports}
    expected = beta in ("fletcher-reeves", "polak-ribiere+", "hestenes-stiefel")
    assert ("the conjugate direction does not descend" in restarts) == expected


def test_restarts_after_six_n_steps() -> None:
    h, _, _ = quadratic(n=3, condition=1e8)
    matrix = torch.tensor(h)
    reports = [
        report
        for _, report, _ in _run(
            lambda x: torch.log1p(x @ matrix @ x),
            torch.ones(3, dtype=torch.float64),
            60,
            powell=None,
            beta="hager-zhang",
        )
    ]
    age = 0
    for report in reports:
        age = 1 if report.restarted or age == 0 else age + 1
        assert age <= 18
    assert "6n steps since the last restart" in {report.restarted for report in reports}


@pytest.mark.parametrize("factor", [-1.0, 0.0, float("nan"), float("inf")])
def test_preconditioner_that_is_not_positive_definite_is_left_out(factor: float) -> None:
    _, _, loss = quadratic()
    start = torch.ones(8, dtype=torch.float64)
    for _, report, _ in _run(loss, start, 5, preconditioner=lambda g: factor * g):
        assert report.failed is None
        assert "not positive definite" in report.restarted
        assert report.slope == pytest.approx(-(report.gradient_norm**2), rel=1e-13)


@pytest.mark.parametrize("preconditioner", [lambda g: g[:3], lambda g: g.reshape(2, 4), lambda g: 1.0])
def test_preconditioner_must_return_a_vector(preconditioner: Callable[[Tensor], object]) -> None:
    _, _, loss = quadratic()
    with pytest.raises(MisuseError, match="flat vector of shape"):
        list(_run(loss, torch.ones(8, dtype=torch.float64), 1, preconditioner=preconditioner))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": "polak"}, "unknown beta"),
        ({"line_search": "armijo"}, "unknown line search"),
        ({"powell": 0.0}, "powell"),
        ({"preconditioner": torch.ones(2)}, "preconditioner must be"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        NonlinearCG([nn.Parameter(torch.zeros(2))], **options)


def test_search_settings_are_used() -> None:
    h, b, loss = quadratic()
    start = torch.zeros(8, dtype=torch.float64)
    strict = [report for _, report, _ in _run(loss, start, 8, line_search=HagerZhang(delta=1e-9, sigma=1e-9))]
    loose = [report for _, report, _ in _run(loss, start, 8)]
    assert strict[-1].gradient_norm < loose[-1].gradient_norm
    assert np.linalg.norm(b) == pytest.approx(strict[0].gradient_norm, rel=1e-12)
    assert h.shape == (8, 8)

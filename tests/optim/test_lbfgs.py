"""L-BFGS against SciPy, the two loops of the textbook, linear conjugate gradients and closed forms."""

from __future__ import annotations

import copy
import functools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
import torch
from torch import Tensor, nn

from convexlab import optim
from convexlab.errors import MisuseError
from convexlab.optim import DiagonalPreconditioner, line_search_names
from convexlab.optim.line_search import HagerZhang, Line, SearchResult
from tests.optim.networks import (
    EXACT,
    ITERATE_TOLERANCE,
    ROSENBROCK,
    Regression,
    check_linear_conjugate_gradients,
    quadratic,
)
from tests.optim.problems import PROBLEMS, Problem
from tests.optim.running import (
    Fetches,
    check_exceptions_leave_no_trace,
    check_state_continues,
    closure_of,
    run,
)
from tests.slowly import mostly_slow

every_search = pytest.mark.parametrize("search", line_search_names())
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)


LBFGS = functools.partial(optim.LBFGS, self_scaled=False)
"""The textbook's; what is scaled has tests of its own."""

_run = functools.partial(run, LBFGS)


# The two loops.


def _two_loops(
    gradient: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]], p: np.ndarray
) -> np.ndarray:  # Nocedal and Wright, algorithm 7.4.
    q, alphas = gradient.copy(), []
    for s, y in reversed(pairs):
        alphas.append(s @ q / (s @ y))
        q -= alphas[-1] * y
    s, y = pairs[-1]
    r = (s @ y) / (y @ (p * y)) * (p * q)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        r += s * (alpha - y @ r / (s @ y))
    return -r


@pytest.mark.parametrize("history", [1, 3, 9, 100])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("task", ["rosenbrock", "network"])
def test_directions_are_those_of_the_two_loops(history: int, preconditioned: bool, task: str) -> None:
    loss, start = (PROBLEMS[0], ROSENBROCK) if task == "rosenbrock" else (Regression(0), Regression(0).start)
    p = torch.linspace(0.5, 2.0, start.numel(), dtype=torch.float64)
    options = {"preconditioner": DiagonalPreconditioner(p)} if preconditioned else {}
    gradient_at = torch.func.grad(loss)
    x, g, pairs = start, gradient_at(start), []
    for new_x, report, optimiser in _run(loss, start, 25, history=history, **options):
        if pairs:
            expected = _two_loops(g.numpy(), pairs, p.numpy() if preconditioned else np.ones(len(p)))
            error = np.linalg.norm(optimiser._memory.direction.numpy() - expected)
            # s is the difference of points of order 1 and at least 1e-3 long, so known to 1e-13, y likewise; both count
            # as often as there are pairs, 25, times the condition numbers, some 1e3.
            assert error <= 25 * 1e3 * 1e-13 * np.linalg.norm(expected)
        assert report.restarted is None
        new_g = gradient_at(new_x)
        pairs = [*pairs, ((new_x - x).numpy(), (new_g - g).numpy())][-history:]
        x, g = new_x, new_g


# Quadratics.


@pytest.mark.parametrize("history", [1, 3, 100])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_quadratic_takes_the_steps_of_linear_conjugate_gradients(history: int, preconditioned: bool, seed: int) -> None:
    # With exact searches sᵀg₊ = 0 for every pair and yᵀPg₊ = 0 for all but the newest, whatever γ and the history.
    h, b, loss = quadratic(seed=seed)
    p = np.linspace(0.5, 2.0, 8) / np.diag(h) if preconditioned else np.ones(8)
    options = {"preconditioner": DiagonalPreconditioner(torch.tensor(p))} if preconditioned else {}
    start = torch.zeros(8, dtype=torch.float64)
    points = [x for x, *_ in _run(loss, start, 8, line_search=EXACT, history=history, **options)]
    check_linear_conjugate_gradients(points, h, b, np.diag(p))
    assert np.linalg.norm(h @ points[-1].numpy() - b) <= ITERATE_TOLERANCE * np.linalg.norm(b)


def test_after_n_exact_steps_the_matrix_is_the_inverse_hessian() -> None:
    # Nocedal and Wright, theorem 6.4: so one more step with α = 1, to where nothing is left.
    h, b, loss = quadratic()
    start = torch.zeros(8, dtype=torch.float64)
    *_, (_, _, optimiser) = _run(loss, start, 8, line_search=EXACT)
    x = optimiser.param_groups[0]["params"][0]
    with torch.no_grad():
        memory = optimiser._memory
        # The pair of the last step is stored when the next begins; there the gradient is not zero but rounding.
        list(optimiser._directions(memory.kept))
        probe = torch.tensor(b)
        newton = optimiser._newton(probe, probe, 8, probe.norm().item()).numpy()
    assert np.linalg.norm(newton + np.linalg.solve(h, b)) <= 10.0 * ITERATE_TOLERANCE * np.linalg.norm(newton)
    assert np.linalg.norm(h @ x.detach().numpy() - b) <= ITERATE_TOLERANCE * np.linalg.norm(b)


def test_the_inverse_hessian_as_preconditioner_needs_one_step() -> None:
    h, b, loss = quadratic()
    inverse = torch.tensor(np.linalg.inv(h))
    start = torch.zeros(8, dtype=torch.float64)
    x, report, _ = next(_run(loss, start, 1, line_search=EXACT, preconditioner=lambda g: inverse @ g))
    assert np.linalg.norm(h @ x.numpy() - b) <= ITERATE_TOLERANCE * np.linalg.norm(b)
    assert report.step_size == pytest.approx(1.0, rel=1e-9)


# Invariances.


def test_preconditioning_is_a_change_of_variables() -> None:
    # f(Ru) without a preconditioner and f(x) with P = RRᵀ take the same path. The first trial differs (it depends on
    # the largest weight), so the search is made nearly exact.
    problem = next(problem for problem in PROBLEMS if problem.name == "Broyden tridiagonal")
    generator = torch.Generator().manual_seed(0)
    root = torch.eye(10, dtype=torch.float64) + 0.1 * torch.randn(10, 10, generator=generator, dtype=torch.float64)
    start = torch.tensor(problem.start, dtype=torch.float64)
    plain = _run(lambda u: problem(root @ u), torch.linalg.solve(root, start), 6, line_search=EXACT)
    other = _run(problem, start, 6, preconditioner=lambda g: root @ (root.T @ g), line_search=EXACT)
    for (u, *_), (x, *_) in zip(plain, other, strict=True):
        # Steps exact to 1e-10, amplified over six steps by a Hessian whose condition number is about 10.
        assert torch.linalg.vector_norm(root @ u - x) <= 1e-6


@every_search
def test_power_of_four_on_the_loss_changes_no_bit(search: str) -> None:
    # Four, since pairs are scaled by the root of sᵀy.
    scales = (1.0, 4.0**-20, 4.0**20)
    runs = [_run(lambda x, c=c: c * PROBLEMS[0](x), ROSENBROCK, 12, line_search=search, history=4) for c in scales]
    for (x, report, _), *others in zip(*runs, strict=True):
        for other, other_report, _ in others:
            assert torch.equal(other, x)
            assert (other_report.values, other_report.gradients) == (report.values, report.gradients)


@every_search
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_the_loss_does_not_matter(search: str, scale: float) -> None:
    plain, scaled = (_run(lambda x, c=c: c * PROBLEMS[0](x), ROSENBROCK, 4, line_search=search) for c in (1.0, scale))
    for (x, *_), (other, *_) in zip(plain, scaled, strict=True):
        # Values resolve a step to the root of their rounding, 1.5e-8, and that is what their searches amplify.
        assert torch.linalg.vector_norm(other - x) <= 1e-6 * torch.linalg.vector_norm(x)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_preconditioner_matters_to_no_step_but_the_first(scale: float) -> None:
    # γ undoes it; the first trial is set by the largest weight, whatever the direction's length.
    plain, scaled = (_run(PROBLEMS[0], ROSENBROCK, 12, preconditioner=lambda g, c=c: c * g) for c in (1.0, scale))
    for (x, *_), (other, *_) in zip(plain, scaled, strict=True):
        # Rounding, amplified by 12 steps along a valley of condition 2500.
        assert torch.linalg.vector_norm(other - x) <= 1e-9 * torch.linalg.vector_norm(x)


# Moré, Garbow and Hillstrom's problems.


@functools.cache
def _scipy(problem: Problem) -> tuple[np.ndarray, float, int]:
    """Return minimiser, gradient norm and evaluations of scipy.optimize's L-BFGS-B, asked for the same gradient."""

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(x, requires_grad=True)
        value = problem(point)
        value.backward()
        return value.item(), point.grad.numpy()

    options = {"maxcor": 100, "ftol": 0.0, "gtol": problem.tolerance / math.sqrt(len(problem.start)), "maxiter": 3000}
    start = np.array(problem.start)
    result = scipy.optimize.minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    return result.x, float(np.linalg.norm(result.jac)), result.nfev


@functools.cache
def _ours(problem: Problem) -> tuple[float, Tensor, float, int]:
    evaluations = 0
    start = torch.tensor(problem.start, dtype=torch.float64)
    points = [start]
    for x, report, _ in _run(problem, start, 1000, problem.tolerance):
        points.append(x)
        evaluations += report.values + report.gradients
    # The last report's loss and gradient are those of the point where that step began.
    return report.loss, points[-2], report.gradient_norm, evaluations


@every_problem
def test_minimum_is_the_published_one(problem: Problem) -> None:
    loss, *_ = _ours(problem)
    # Published to six digits; where the minimum is zero, the loss is of the order of the gradient's square.
    assert any(abs(loss - minimum) <= 5e-6 * minimum + problem.tolerance for minimum in problem.minima)


# The minimisers of Box's problem are not isolated.
COMPARABLE = [problem for problem in PROBLEMS if problem.number != 12]


@pytest.mark.parametrize("problem", COMPARABLE, ids=lambda problem: problem.name)
def test_minimiser_is_that_of_scipy(problem: Problem) -> None:
    _, x, norm, _ = _ours(problem)
    other_x, other_norm, _ = _scipy(problem)
    curvature = torch.linalg.eigvalsh(torch.func.hessian(problem)(x))
    # A point with gradient g lies within ‖g‖ over the smallest eigenvalue of the minimum; twice, since the Hessian
    # varies between the points.
    bound = 2.0 * (norm + other_norm) / curvature[0].item()
    assert np.linalg.norm(x.numpy() - other_x) <= bound


def test_evaluations_are_at_most_one_and_a_half_times_those_of_scipy() -> None:
    ratios = [_ours(problem)[3] / _scipy(problem)[2] for problem in PROBLEMS]
    assert statistics.median(ratios) <= 1.5


# Networks and float32.


@pytest.mark.parametrize("seed", range(3))
def test_most_steps_cost_one_evaluation(seed: int) -> None:
    task = Regression(seed)
    reports = [report for _, report, _ in _run(task, task.start, 200)]
    assert statistics.median(report.values + report.gradients for report in reports) == 1


@pytest.mark.parametrize("seed", mostly_slow(range(3), quick=1))
@pytest.mark.parametrize("preconditioned", mostly_slow([True, False], quick=1))
def test_float32_goes_on_to_the_rounding_of_the_loss(seed: int, preconditioned: bool) -> None:
    task = Regression(seed)
    p = torch.linspace(0.1, 10.0, 33) if preconditioned else torch.ones(33)
    for x, report, _ in _run(task, task.start.float(), 800, preconditioner=DiagonalPreconditioner(p)):
        assert torch.isfinite(x).all()
        assert np.isfinite([report.loss, report.gradient_norm, report.step_size, report.slope]).all()
    assert report.loss <= 0.02 * task(task.start)
    if report.failed:
        # It may stop only where what -Pg promises on the exact loss, the minimum of a parabola, is less than the error
        # of the loss there.
        x = x.double()
        gradient, hessian = torch.func.grad(task)(x), torch.func.hessian(task)(x)
        z = gradient * p.double()
        promise = 0.5 * (gradient @ z) ** 2 / (z @ hessian @ z)
        assert promise <= abs(task(x) - task(x.float()))


@every_search
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_float32_at_the_floor_gives_no_nan(search: str, scale: float) -> None:
    # A least-squares problem whose loss cannot reach zero: from some step on, float32 losses are equal.
    generator = torch.Generator().manual_seed(0)
    matrix, target = torch.randn(30, 5, generator=generator), torch.randn(30, generator=generator)
    x = nn.Parameter(torch.zeros(5))
    optimiser = LBFGS([x], line_search=search)
    closure = closure_of(lambda x: scale * (matrix @ x - target).square().mean(), x)
    quasi_newton = 0
    for _ in range(60):
        optimiser.step(closure)
        assert torch.isfinite(x).all()
        assert np.isfinite(optimiser.report.loss)
        quasi_newton += optimiser._memory.pairs > 0
    exact = torch.linalg.lstsq(matrix.double(), target.double()).solution
    # Values resolve the minimum to the root of float32's rounding; the matrix is well conditioned (below 3).
    assert torch.linalg.vector_norm(x - exact) <= 10.0 * 2.0**-11.5 * torch.linalg.vector_norm(exact)
    # And it was L-BFGS that went there: no product of a pair overflowed.
    assert quasi_newton >= 3


# Curvature that is not positive, failures, misuse.


def test_pairs_of_negative_curvature_are_damped() -> None:
    # Two evaluations a step take whatever is lower, and on a sum of cosines that is often concave.
    start = torch.linspace(1.0, 2.5, 6, dtype=torch.float64)
    loss = lambda x: torch.cos(x).sum()  # noqa: E731
    x, g, pairs, damped = start, torch.func.grad(loss)(start), [], 0
    for new_x, report, optimiser in _run(loss, start, 8, max_evaluations=2):
        assert report.failed is None
        assert report.slope < 0.0
        if pairs:
            expected = _two_loops(g.numpy(), pairs, np.ones(6))
            error = np.linalg.norm(optimiser._memory.direction.numpy() - expected)
            assert error <= 1e-9 * np.linalg.norm(expected)  # Differences of points, known to 1e-13 or so.
        new_g = torch.func.grad(loss)(new_x)
        s, y, b_s = (new_x - x).numpy(), (new_g - g).numpy(), -g.numpy()
        if s @ y < 0.1 * (s @ b_s):  # Nocedal and Wright, procedure 18.2, with 0.1 for 0.2.
            theta = 0.9 * (s @ b_s) / (s @ b_s - s @ y)
            y, damped = theta * y + (1.0 - theta) * b_s, damped + 1
        pairs.append((s, y))
        x, g = new_x, new_g
    assert 1 <= damped < 8


@dataclass(frozen=True, kw_only=True)
class Refusing(HagerZhang):
    """Fails at its first call."""

    calls: list[float] = field(default_factory=list)

    def __call__(self, line: Line, initial_step: float) -> SearchResult:
        self.calls.append(initial_step)
        if len(self.calls) == 1:
            return SearchResult(0.0, line.start.value, None, 0, 0, False, "refused")
        return super().__call__(line, initial_step)


def test_failure_along_the_first_direction_is_mended_by_steepest_descent() -> None:
    x = nn.Parameter(ROSENBROCK.clone())
    optimiser = LBFGS([x])
    for _ in range(6):
        previous = x.detach().clone()
        optimiser.step(closure_of(PROBLEMS[0], x))
    before = PROBLEMS[0](x).item()
    s, y = x.detach() - previous, torch.func.grad(PROBLEMS[0])(x.detach()) - torch.func.grad(PROBLEMS[0])(previous)
    optimiser.line_search = Refusing()
    optimiser.step(closure_of(PROBLEMS[0], x))
    assert optimiser.report.failed is None
    assert optimiser.report.restarted == "the search along the first direction failed"
    assert optimiser.report.slope == pytest.approx(-(optimiser.report.gradient_norm**2), rel=1e-13)
    assert PROBLEMS[0](x).item() < before
    # The first trial along -g is Barzilai and Borwein's step; s is a difference of points, known to 1e-13 or so.
    assert optimiser.line_search.calls == [1.0, pytest.approx((s @ y / (y @ y)).item(), rel=1e-9)]
    optimiser.step(closure_of(PROBLEMS[0], x))
    assert optimiser._memory.pairs == 1


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
        ({"history": 0}, "history"),
        ({"history": 2.5}, "history"),
        ({"memory_budget": 0}, "memory_budget must be None or a whole number of bytes, got 0"),
        ({"line_search": "armijo"}, "unknown line search"),
        ({"preconditioner": torch.ones(2)}, "preconditioner must be"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        LBFGS([nn.Parameter(torch.zeros(2))], **options)


# State.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("history", [3, 100])
@pytest.mark.parametrize("split", [0, 1, 2, 3, 7, 13])
def test_state_continues_bit_for_bit(dtype: torch.dtype, history: int, split: int) -> None:
    task = Regression(0)
    check_state_continues(lambda x: LBFGS([x], history=history), task, task.start.to(dtype), split, 20)


@pytest.mark.parametrize("history", [2, 100])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_after_an_exception_the_run_goes_on_as_if_there_had_been_none(history: int, at: int) -> None:
    check_exceptions_leave_no_trace(lambda x: LBFGS([x], history=history), PROBLEMS[0], ROSENBROCK, at)


def test_a_loaded_state_and_a_deep_copy_are_left_alone() -> None:
    x = nn.Parameter(ROSENBROCK.clone())
    optimiser = LBFGS([x], history=3)
    for _ in range(5):
        optimiser.step(closure_of(PROBLEMS[0], x))
    state = copy.deepcopy(optimiser.state_dict())
    untouched = copy.deepcopy(state["state"][0])
    other_x, other = copy.deepcopy((x, optimiser))
    loaded_x = nn.Parameter(x.detach().clone())
    loaded = LBFGS([loaded_x], history=3)
    loaded.load_state_dict(state)
    for _ in range(4):
        for parameter, each in ((x, optimiser), (other_x, other), (loaded_x, loaded)):
            each.step(closure_of(PROBLEMS[0], parameter))
        assert torch.equal(other_x, x)
        assert torch.equal(loaded_x, x)
    for key, value in untouched.items():
        same = torch.equal(state["state"][0][key], value) if isinstance(value, Tensor) else True
        assert same, key


@pytest.mark.parametrize("history", [5, 401])
def test_a_state_with_another_history_is_refused(history: int) -> None:
    *_, (point, _, optimiser) = _run(PROBLEMS[0], ROSENBROCK, 12)
    x = nn.Parameter(point.clone())
    other = LBFGS([x], history=history)
    with pytest.raises(MisuseError, match=f"history=400, but this LBFGS has {history}"):
        other.load_state_dict(optimiser.state_dict())
    other.step(closure_of(PROBLEMS[0], x))
    assert PROBLEMS[0](x) < PROBLEMS[0](point)


def test_room_grows_with_the_pairs_up_to_the_history() -> None:
    task = Regression(0)
    rows = [
        optimiser._memory.s.shape[0]
        for _, report, optimiser in _run(task, task.start, 40, history=20)
        if not report.failed and optimiser._memory.pairs
    ]
    assert rows[0] == 8
    assert rows[-1] == 20
    assert rows == sorted(rows)


@pytest.mark.parametrize(("budget", "pairs"), [(None, 9), (10**9, 9), (5 * 2 * 8 * 33, 5), (1, 1)])
def test_pairs_fit_their_memory_budget(budget: int | None, pairs: int) -> None:
    *_, (_, _, optimiser) = _run(Regression(), Regression().start, 12, history=9, memory_budget=budget)
    assert optimiser.history == len(optimiser._memory.s) == pairs  # 33 weights in float64, twice a pair.


@pytest.mark.parametrize("move", [1e-2, 1e-16])
def test_changed_weights_keep_the_pairs_and_the_last_one_is_of_two_gradients_that_were_evaluated(move: float) -> None:
    task = Regression()
    x = nn.Parameter(task.start.clone())
    optimiser, untouched = LBFGS([x]), LBFGS([nn.Parameter(task.start.clone())])
    for _ in range(4):
        optimiser.step(closure_of(task, x))
        untouched.step(closure_of(task, untouched.param_groups[0]["params"][0]))
    with torch.no_grad():
        x.add_(move)
    optimiser.step(closure_of(task, x))
    untouched.step(closure_of(task, untouched.param_groups[0]["params"][0]))
    assert optimiser.report.changed == "the weights were changed between steps"
    assert optimiser.report.restarted is None
    # Where they were moved by a rounding, the kept gradient holds.
    assert optimiser.report.gradients == untouched.report.gradients + (move > 1e-10)
    memory = optimiser._memory
    assert memory.pairs == untouched._memory.pairs == 4
    assert torch.equal(memory.s[:4], untouched._memory.s[:4])
    assert torch.equal(memory.y[:4], untouched._memory.y[:4])


def test_host_synchronisations_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    # Allowed: one an evaluation, two for products, and two that no patch sees (torch.equal and the copy of the products
    # to the host).
    x = nn.Parameter(ROSENBROCK.clone())
    optimiser = LBFGS([x])
    for _ in range(2):
        optimiser.step(closure_of(PROBLEMS[0], x))
    fetches = Fetches(monkeypatch)
    for _ in range(6):
        fetches.count = 0
        optimiser.step(closure_of(PROBLEMS[0], x))
        assert optimiser.report.restarted is None
        assert fetches.count <= optimiser.report.values + optimiser.report.gradients + 2

"""Self-scaled quasi-Newton methods against the published formulas in plain NumPy, and linear conjugate gradients."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from convexlab.errors import MisuseError
from convexlab.optim import DiagonalPreconditioner, SelfScaledBroyden, self_scaled_update_names
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

every_update = pytest.mark.parametrize("update", self_scaled_update_names())
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)

_run = functools.partial(run, SelfScaledBroyden)


# The formulas, as Urbán, Stefanou and Pons print them, with B by inversion.


def _updated(update: str, h: np.ndarray, s: np.ndarray, y: np.ndarray, *, first: bool) -> np.ndarray:
    scale = y @ h @ y / (y @ s) if first else 1.0
    h = h / scale
    n, h_y, y_s = len(s), h @ y, y @ s
    b_k, h_k = s @ np.linalg.solve(h, s) / y_s, y @ h_y / y_s
    a_k = b_k * h_k - 1.0
    if update == "ssbroyden":
        rho_minus = min(1.0, h_k * (1.0 - math.sqrt(a_k / (1.0 + a_k))))
        theta = max((rho_minus - 1.0) / a_k, min(1.0 / rho_minus, (1.0 - b_k) / b_k))
        sigma = 1.0 + a_k * theta
        rho, root = min(1.0, 1.0 / b_k), sigma ** (1.0 / (1.0 - n))
        tau = min(rho * root, sigma) if theta <= 0.0 else rho * min(root, 1.0 / theta)
        tau = 1.0 / sigma if first else tau
        phi = (1.0 - theta) / (1.0 + a_k * theta)
    else:
        tau = {"ssbfgs": min(1.0, 1.0 / b_k), "bfgs": 1.0}[update]
        tau, phi = 1.0 if first else tau, 1.0
    v = s / y_s - h_y / (y @ h_y)
    return (h - np.outer(h_y, h_y) / (y @ h_y) + phi * (y @ h_y) * np.outer(v, v)) / tau + np.outer(s, s) / y_s


@every_update
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("task", ["rosenbrock", "network"])
def test_directions_are_those_of_the_formulas(update: str, preconditioned: bool, task: str) -> None:
    loss, start = (PROBLEMS[0], ROSENBROCK) if task == "rosenbrock" else (Regression(), Regression().start)
    n = start.numel()
    p = torch.linspace(0.5, 2.0, n, dtype=torch.float64) if preconditioned else torch.ones(n, dtype=torch.float64)
    options = {"preconditioner": DiagonalPreconditioner(p)} if preconditioned else {}
    gradient_at = torch.func.grad(loss)
    x, g, h, first = start, gradient_at(start), np.diag(p.numpy()), True
    for new_x, report, optimiser in _run(loss, start, 25, update=update, **options):
        expected = -h @ g.numpy()
        error = np.linalg.norm(optimiser._memory.direction.numpy() - expected)
        # s is the difference of points of order 1 and at least 1e-3 long, so known to 1e-13, y likewise; both count
        # as often as there are pairs, 25, times the condition number of H, some 1e4 (the network: 1e5).
        assert error <= 25 * 1e5 * 1e-13 * np.linalg.norm(expected)
        assert report.restarted is None
        new_g = gradient_at(new_x)
        h, first = _updated(update, h, (new_x - x).numpy(), (new_g - g).numpy(), first=first), False
        x, g = new_x, new_g


@every_update
def test_the_matrix_meets_the_secant_equation_and_stays_positive_definite(update: str) -> None:
    task = Regression()
    x, g = task.start, torch.func.grad(task)(task.start)
    for new_x, _, optimiser in _run(task, task.start, 60, update=update):
        new_g = torch.func.grad(task)(new_x)
        optimiser._absorb(new_g)
        matrix = optimiser._memory.matrix
        s, y = new_x - x, new_g - g
        size = torch.linalg.matrix_norm(matrix, 2) * torch.linalg.vector_norm(y)
        # s is the difference of points of order 1, known to 1e-15; Hy is rounded relative to ‖H‖‖y‖, in 33 sums.
        assert torch.linalg.vector_norm(matrix @ y - s) <= 1e-14 + 100 * 2.0**-52 * size
        assert torch.linalg.eigvalsh(matrix)[0] > 0.0
        x, g = new_x, new_g


@every_update
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_quadratic_takes_the_steps_of_linear_conjugate_gradients(update: str, preconditioned: bool, seed: int) -> None:
    # Every member of Broyden's family does with exact searches (Dixon 1972), scaled or not (Oren and Luenberger 1974).
    h, b, loss = quadratic(seed=seed)
    p = np.linspace(0.5, 2.0, 8) / np.diag(h) if preconditioned else np.ones(8)
    options = {"preconditioner": DiagonalPreconditioner(torch.tensor(p))} if preconditioned else {}
    start = torch.zeros(8, dtype=torch.float64)
    points = [x for x, *_ in _run(loss, start, 8, line_search=EXACT, update=update, **options)]
    check_linear_conjugate_gradients(points, h, b, np.diag(p))
    assert np.linalg.norm(h @ points[-1].numpy() - b) <= ITERATE_TOLERANCE * np.linalg.norm(b)


def test_one_parameter_is_newtons_method_by_secants() -> None:
    # There bh = 1 and no θ matters: H₊ = s / y.
    x = torch.tensor([3.0], dtype=torch.float64)
    loss = lambda x: (x**2 / 2.0 + x.cosh()).sum()  # noqa: E731
    old, g = x, torch.func.grad(loss)(x)
    secant = torch.ones(1, dtype=torch.float64)
    for new, report, _ in _run(loss, x, 12):
        assert report.slope == pytest.approx((-secant * g * g).item(), rel=1e-9)
        new_g = torch.func.grad(loss)(new)
        secant, old, g = (new - old) / (new_g - g), new, new_g
    assert abs(g.item()) <= 1e-6


@every_update
@every_problem
def test_minimum_is_the_published_one(update: str, problem: Problem) -> None:
    start = torch.tensor(problem.start, dtype=torch.float64)
    *_, (_, report, _) = _run(problem, start, 1000, problem.tolerance, update=update)
    # Published to six digits; where the minimum is zero, the loss is of the order of the gradient's square.
    assert any(abs(report.loss - minimum) <= 5e-6 * minimum + problem.tolerance for minimum in problem.minima)


@every_update
def test_power_of_two_on_the_loss_changes_no_bit(update: str) -> None:
    scales = (1.0, 2.0**-40, 2.0**40)
    runs = [_run(lambda x, c=c: c * PROBLEMS[0](x), ROSENBROCK, 12, update=update) for c in scales]
    for (x, report, _), *others in zip(*runs, strict=True):
        for other, other_report, _ in others:
            assert torch.equal(other, x)
            assert (other_report.values, other_report.gradients) == (report.values, report.gradients)


@every_update
@pytest.mark.parametrize("seed", mostly_slow(range(2), quick=1))
def test_float32_goes_on_with_a_float64_matrix(update: str, seed: int) -> None:
    task = Regression(seed)
    for x, report, optimiser in _run(task, task.start.float(), 400, update=update):
        assert x.dtype == torch.float32
        assert torch.isfinite(x).all()
        assert np.isfinite([report.loss, report.gradient_norm, report.step_size, report.slope]).all()
        assert optimiser._memory.matrix is None or optimiser._memory.matrix.dtype == torch.float64
    assert report.loss <= 0.02 * task(task.start)


@every_update
def test_pairs_of_negative_curvature_are_damped(update: str) -> None:
    # Two evaluations a step take whatever is lower, and a sum of cosines is concave there.
    start = torch.linspace(0.2, 1.0, 6, dtype=torch.float64)
    loss = lambda x: torch.cos(x).sum()  # noqa: E731
    concave, x, g = 0, start, torch.func.grad(loss)(start)
    for new_x, report, optimiser in _run(loss, start, 8, max_evaluations=2, update=update):
        if report.failed:  # The limit ended a search, which drops the matrix.
            break
        assert report.slope < 0.0
        new_g = torch.func.grad(loss)(new_x)
        concave += bool((new_x - x) @ (new_g - g) < 0.0)
        x, g = new_x, new_g
        optimiser._absorb(g)
        assert torch.linalg.eigvalsh(optimiser._memory.matrix)[0] > 0.0
    assert concave >= 1


class Refusing(HagerZhang):
    """Fails at every call."""

    def __call__(self, line: Line, initial_step: float) -> SearchResult:
        line.value_and_slope(initial_step)  # Moves the weights.
        return SearchResult(0.0, line.start.value, None, 0, 1, False, "refused")


def test_failed_searches_leave_the_weights_and_start_afresh() -> None:
    x = nn.Parameter(ROSENBROCK.clone())
    optimiser = SelfScaledBroyden([x])
    for _ in range(6):
        optimiser.step(closure_of(PROBLEMS[0], x))
    before, search, optimiser.line_search = x.detach().clone(), optimiser.line_search, Refusing()
    optimiser.step(closure_of(PROBLEMS[0], x))
    assert torch.equal(x, before)
    assert optimiser.report.failed == "refused; then refused"
    assert optimiser.report.restarted == "the search along the first direction failed"
    optimiser.line_search = search
    optimiser.step(closure_of(PROBLEMS[0], x))
    assert optimiser.report.slope == pytest.approx(-(optimiser.report.gradient_norm**2), rel=1e-13)
    assert PROBLEMS[0](x) < PROBLEMS[0](before)


@pytest.mark.parametrize("factor", [-1.0, 0.0, float("nan"), float("inf")])
def test_preconditioner_that_is_not_positive_definite_is_left_out(factor: float) -> None:
    _, _, loss = quadratic()
    for _, report, _ in _run(loss, torch.ones(8, dtype=torch.float64), 5, preconditioner=lambda g: factor * g):
        assert report.failed is None
        assert "not positive definite" in report.restarted
        assert report.slope == pytest.approx(-(report.gradient_norm**2), rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("split", [0, 1, 2, 7])
def test_state_continues_bit_for_bit(dtype: torch.dtype, split: int) -> None:
    task = Regression()
    check_state_continues(lambda x: SelfScaledBroyden([x]), task, task.start.to(dtype), split, 15)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_after_an_exception_the_run_goes_on_as_if_there_had_been_none(at: int) -> None:
    check_exceptions_leave_no_trace(lambda x: SelfScaledBroyden([x]), PROBLEMS[0], ROSENBROCK, at)


def test_a_loaded_state_and_a_deep_copy_are_left_alone() -> None:
    x = nn.Parameter(ROSENBROCK.clone())
    optimiser = SelfScaledBroyden([x])
    for _ in range(5):
        optimiser.step(closure_of(PROBLEMS[0], x))
    state = copy.deepcopy(optimiser.state_dict())
    untouched = state["state"][0]["matrix"].clone()
    other_x, other = copy.deepcopy((x, optimiser))
    loaded_x = nn.Parameter(x.detach().clone())
    loaded = SelfScaledBroyden([loaded_x])
    loaded.load_state_dict(state)
    for _ in range(4):
        for parameter, each in ((x, optimiser), (other_x, other), (loaded_x, loaded)):
            each.step(closure_of(PROBLEMS[0], parameter))
        assert torch.equal(other_x, x)
        assert torch.equal(loaded_x, x)
    assert torch.equal(state["state"][0]["matrix"], untouched)


def test_too_many_parameters_are_refused_before_anything_is_allocated() -> None:
    with pytest.raises(MisuseError, match="for 100,000 parameters takes 80 GB: expected at most 10,000"):
        SelfScaledBroyden([nn.Parameter(torch.zeros(100_000))])
    SelfScaledBroyden([nn.Parameter(torch.zeros(100_000))], max_parameters=100_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update": "ssbroydn"}, "unknown update 'ssbroydn'. Did you mean 'ssbroyden'"),
        ({"line_search": "armijo"}, "unknown line search"),
        ({"preconditioner": torch.ones(2)}, "preconditioner must be"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        SelfScaledBroyden([nn.Parameter(torch.zeros(2))], **options)


def test_host_synchronisations_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    # Allowed: one an evaluation, three products that the next operation waits for, and the rounding in a long search.
    x = nn.Parameter(ROSENBROCK.clone())
    optimiser = SelfScaledBroyden([x])
    for _ in range(2):
        optimiser.step(closure_of(PROBLEMS[0], x))
    fetches = Fetches(monkeypatch)
    for _ in range(6):
        fetches.count = 0
        optimiser.step(closure_of(PROBLEMS[0], x))
        assert optimiser.report.restarted is None
        evaluations = optimiser.report.values + optimiser.report.gradients
        assert fetches.count <= evaluations + 3 + (evaluations >= 4)

"""Levenberg-Marquardt against SciPy's least squares, dense damped systems and the published rule for the damping."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import MisuseError
from tests.optim.networks import Regression
from tests.optim.problems import PROBLEMS, Problem
from tests.optim.running import check_exceptions_leave_no_trace, check_state_continues, residuals_of

EPSILON = 2.0**-52


def scaled(task: Regression) -> Callable[[Tensor], Tensor]:
    """Return the residuals whose squares sum to the task's loss."""
    return lambda weights: task.residuals(weights) / math.sqrt(len(task.y))


def few(weights: Tensor) -> Tensor:
    """Return 12 of the residuals: fewer than the 33 parameters."""
    return Regression().residuals(weights)[:12]


def steps(
    residuals: Callable[[Tensor], Tensor], start: Tensor, count: int, **options: Any
) -> tuple[nn.Parameter, cl.LevenbergMarquardt]:
    x = nn.Parameter(start.clone())
    optimiser = cl.LevenbergMarquardt([x], **options)
    for _ in range(count):
        optimiser.step(lambda: residuals(x))
        if optimiser.report.state != "moved":
            break
    return x, optimiser


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_minimum_is_the_published_one_and_that_of_scipy(problem: Problem) -> None:
    start = torch.tensor(problem.start, dtype=torch.float64)
    x, _ = steps(problem.residuals, start, 100)
    loss = problem(x.detach()).item()
    assert any(loss == pytest.approx(minimum, rel=1e-5, abs=problem.tolerance) for minimum in problem.minima)
    theirs = scipy.optimize.least_squares(
        lambda values: problem.residuals(torch.tensor(values)).numpy(),
        problem.start,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    if len(problem.minima) == 1:
        # Steps are taken by the loss: it is as low as rounding lets it be told.
        assert loss <= 2 * theirs.cost * (1 + 1e-10) + 1e-20


@pytest.mark.parametrize("residuals", [scaled(Regression()), few], ids=["more residuals", "fewer residuals"])
def test_first_step_solves_the_damped_system(residuals: Callable[[Tensor], Tensor]) -> None:
    start = Regression().start
    x, _ = steps(residuals, start, 1, damping=0.5)
    r, j = residuals(start).numpy(), torch.func.jacrev(residuals)(start).numpy()
    gram = j.T @ j
    damping = 0.5 * gram.diagonal().max()
    expected = np.linalg.solve(gram + damping * np.eye(33), -j.T @ r)
    # The condition number is at most 1 + 33 / 0.5, for the largest eigenvalue is at most the trace.
    assert np.linalg.norm((x.detach() - start).numpy() - expected) <= 67 * 33 * EPSILON * np.linalg.norm(expected)


def test_linear_least_squares_end_at_the_solution() -> None:
    dice = np.random.default_rng(0)
    a, b = torch.tensor(dice.standard_normal((30, 6))), torch.tensor(dice.standard_normal(30))
    x, optimiser = steps(lambda x: a @ x - b, torch.zeros(6, dtype=torch.float64), 40)
    expected = torch.linalg.lstsq(a, b[:, None]).solution[:, 0]
    assert optimiser.report.state == "converged"
    # Converged is where the loss would fall by no more than 8 roundings: a distance of the root of these.
    assert torch.linalg.vector_norm(x - expected) <= 100 * math.sqrt(8 * EPSILON) * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("rows", [4, 40])
def test_columns_that_depend_on_each_other(rows: int) -> None:
    """A parameter that counts twice, one that counts not at all: J has rank 2 of 4."""
    t = torch.linspace(0.0, 1.0, rows, dtype=torch.float64)

    def residuals(x: Tensor) -> Tensor:
        return (x[0] + x[1]) * t + x[2] ** 2 - (3.0 * t + 4.0)

    x, optimiser = steps(residuals, torch.ones(4, dtype=torch.float64), 60)
    assert optimiser.report.loss <= 1e-28
    assert x[3].item() == 1.0
    assert x[0].item() == pytest.approx(x[1].item(), rel=1e-12)  # Damping moves both by the same.
    assert x[0].item() + x[1].item() == pytest.approx(3.0, rel=1e-12)


def test_the_damping_follows_the_decrease_that_was_had() -> None:
    residuals, x = scaled(Regression()), nn.Parameter(Regression().start.clone())
    optimiser, factors, rejected = cl.LevenbergMarquardt([x], damping=1e-6), set(), 0
    for _ in range(12):
        before = x.detach().clone()
        gram, damping = torch.func.jacrev(residuals)(before), optimiser._memory.damping
        optimiser.step(residuals_of(residuals, x))
        tried = optimiser._tried
        # λ of the trial that was taken: after k that were not, 2^(k (k + 1) / 2) times the first.
        trials = optimiser.report.values
        if damping is not None:
            assert tried.damping == pytest.approx(damping * 2.0 ** (trials * (trials - 1) // 2), rel=1e-12)
        rejected += trials - 1
        d = x.detach() - before
        r, now = residuals(before), residuals(x.detach())
        had = (r @ r - now @ now) / (r @ r - (r + gram @ d) @ (r + gram @ d))
        factor = max(1 / 3, 1 - (2 * had.item() - 1) ** 3)
        factors.add(factor > 1 / 3)
        assert optimiser._memory.damping == pytest.approx(tried.damping * factor, rel=1e-6)
    assert rejected > 0
    assert factors == {True, False}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_trial_that_is_not_finite_is_a_step_too_long(bad: float) -> None:
    start = torch.tensor([2.0, 1.0], dtype=torch.float64)

    def residuals(x: Tensor) -> Tensor:
        inside = (x.detach() - start).norm() < 0.5
        return torch.stack([x[0], 3.0 * x[1]]) * (1.0 if inside else bad)

    x, optimiser = steps(residuals, start, 1, damping=1e-9)
    assert optimiser.report.state == "moved"
    assert optimiser.report.values > 3
    assert 0.0 < (x.detach() - start).norm() < 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_that_is_not_finite(bad: float) -> None:
    start = torch.ones(2, dtype=torch.float64)
    x, optimiser = steps(lambda x: x * bad, start, 1)
    assert optimiser.report.state == "not finite"
    assert torch.equal(x.detach(), start)


def test_at_the_rounding_of_float32_the_weights_stay() -> None:
    task = Regression()
    x, optimiser = steps(scaled(task), task.start.float(), 500)
    assert optimiser.report.state == "converged"
    # No damped step promised a fall by more than eight roundings of the loss.
    assert -0.5 * optimiser.report.slope <= 8 * torch.finfo(torch.float32).eps * optimiser.report.loss
    before = x.detach().clone()
    optimiser.step(lambda: scaled(task)(x))
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("split", [0, 1, 4])
@pytest.mark.parametrize("residuals", [scaled(Regression()), few], ids=["more residuals", "fewer residuals"])
def test_state_continues_bit_for_bit(residuals: Callable[[Tensor], Tensor], dtype: torch.dtype, split: int) -> None:
    start = Regression().start.to(dtype)
    check_state_continues(lambda x: cl.LevenbergMarquardt([x]), residuals, start, split, 8, residuals_of)


@pytest.mark.parametrize("at", [0, 1, 5])
def test_exceptions_leave_no_trace(at: int) -> None:
    start = Regression().start
    check_exceptions_leave_no_trace(lambda x: cl.LevenbergMarquardt([x]), scaled(Regression()), start, at, residuals_of)


def test_a_limit_ends_a_step_and_the_next_goes_on_from_its_damping() -> None:
    x = nn.Parameter(Regression().start.clone())
    optimiser = cl.LevenbergMarquardt([x], damping=1e-12, max_evaluations=1)
    states: list[str] = []
    dampings: list[float] = []
    for _ in range(30):
        optimiser.step(residuals_of(scaled(Regression()), x))
        states.append(optimiser.report.state)
        dampings.append(optimiser._memory.damping)
        assert optimiser.report.values <= 1
        if states[-1] == "moved":
            break
    assert states[:-1] == ["limit reached"] * (len(states) - 1)
    assert len(states) > 2
    assert states[-1] == "moved"
    assert dampings[:-1] == sorted(dampings[:-1])


def test_lr_is_a_factor_on_the_step() -> None:
    start = Regression().start
    whole, _ = steps(scaled(Regression()), start, 1, damping=1.0)
    x = nn.Parameter(start.clone())
    optimiser = cl.LevenbergMarquardt([x], damping=1.0)
    optimiser.param_groups[0]["lr"] = 0.25
    optimiser.step(residuals_of(scaled(Regression()), x))
    torch.testing.assert_close(x.detach() - start, 0.25 * (whole.detach() - start), rtol=1e-12, atol=1e-14)


class _Doubled(torch.autograd.Function):
    """An operation that torch cannot batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2.0 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.from_numpy(2.0 * gradient.detach().numpy())


def test_operations_that_torch_cannot_batch_are_differentiated_row_by_row() -> None:
    task = Regression()
    ends = [
        steps(lambda x, twice=twice: twice(scaled(task)(x)), task.start, 3)[0].detach()
        for twice in (lambda r: 2.0 * r, _Doubled.apply)
    ]
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


def test_parts_and_parameters_of_any_shape() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randn(10, 2, dtype=torch.float64)
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    frozen = nn.Parameter(torch.ones(1, dtype=torch.float64), requires_grad=False)
    optimiser = cl.LevenbergMarquardt([*model.parameters(), unused, frozen])

    def parts() -> list[Tensor]:
        errors = (model(x) - y) / math.sqrt(y.numel())
        return [errors[:4], errors[4:]]

    before = nn.functional.mse_loss(model(x), y).item()
    assert optimiser.step(parts).item() == pytest.approx(before, rel=1e-14)
    for _ in range(8):
        optimiser.step(parts)
    assert nn.functional.mse_loss(model(x), y).item() < 0.5 * before
    assert torch.equal(unused.detach(), torch.ones(2, dtype=torch.float64))
    assert frozen.item() == 1.0


def test_a_closure_may_change_between_steps() -> None:
    task = Regression()
    x, optimiser = nn.Parameter(task.start.clone()), None
    optimiser = cl.LevenbergMarquardt([x])
    for seed in range(10):
        optimiser.step(residuals_of(scaled(Regression(seed)), x))
        assert optimiser.report.state == "moved"


def test_a_closure_that_is_no_function_is_told() -> None:
    x = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimiser, factors = cl.LevenbergMarquardt([x]), iter(10.0**power for power in range(0, 300, 6))
    with pytest.warns(UserWarning, match="the closure is not one function"):
        optimiser.step(lambda: x * next(factors))
    assert optimiser.report.state == "stuck"
    assert torch.equal(x.detach(), torch.ones(2, dtype=torch.float64))


def test_a_copy_goes_on_as_the_original() -> None:
    x, optimiser = steps(scaled(Regression()), Regression().start, 3)
    pair = copy.deepcopy((x, optimiser))
    ends = []
    for weights, each in ((x, optimiser), pair):
        each.step(residuals_of(scaled(Regression()), weights))
        ends.append(weights.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (None, "step needs a closure that returns the residuals, .* got none"),
        (lambda x: x.square().sum(), "got one number, which looks like the loss itself"),
        (lambda x: 3.0, "that returns the residuals, .* got float"),
        (lambda x: [], "got none"),
        (lambda x: x > 0, "got Tensor"),
        (lambda x: x.detach(), "do not depend on any parameter"),
    ],
)
def test_what_is_no_closure_of_residuals(closure: Callable[[Tensor], Any] | None, message: str) -> None:
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(MisuseError, match=message):
        cl.LevenbergMarquardt([x]).step(None if closure is None else lambda: closure(x))
    assert torch.equal(x.detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("returned", "got"), [(None, "NoneType"), ((torch.ones(3), torch.ones(2, 3)), r"\(3,\) and \(2, 3\)")]
)
def test_what_is_no_jacobian(returned: Any, got: str) -> None:
    def closure(jacobian: list[Tensor] | None = None) -> Any:
        return returned

    with pytest.raises(MisuseError, match=rf"residuals \(m,\) and their Jacobian \(m, 2\), got {got}"):
        cl.LevenbergMarquardt([nn.Parameter(torch.ones(2))]).step(closure)


def test_frozen_parameters_alone_are_refused() -> None:
    x = nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(MisuseError, match="every parameter is frozen"):
        cl.LevenbergMarquardt([x]).step(lambda: x * 1.0)


def test_a_jacobian_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexlab.machine.memory.available_memory", lambda device: 8 * 5 * 2)
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(MisuseError, match=r"Jacobian of 5 residuals in 2 .* takes 320 B, expected at most the 80 B"):
        cl.LevenbergMarquardt([x]).step(lambda: torch.cat([x, x, x[:1]]))


def test_residuals_of_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexlab.optim.residuals.process_count", lambda: 2)
    x = nn.Parameter(torch.ones(2))
    optimiser = cl.LevenbergMarquardt([x])
    optimiser.processes = "averaged"
    with pytest.raises(MisuseError, match="residuals are those of one process"):
        optimiser.step(lambda: x * 1.0)


@pytest.mark.parametrize("damping", [0.0, -1.0, math.nan, math.inf])
def test_settings_that_make_no_sense(damping: float) -> None:
    with pytest.raises(MisuseError, match="damping must be positive"):
        cl.LevenbergMarquardt([nn.Parameter(torch.zeros(2))], damping=damping)


def test_a_state_of_another_method_is_refused() -> None:
    x, optimiser = steps(scaled(Regression()), Regression().start, 2)
    with pytest.raises(MisuseError, match=r"a state that LevenbergMarquardt stored, got one with 'carried'"):
        optimiser.load_state_dict(cl.LBFGS([x]).state_dict())

"""L-BFGS with a matrix that is scaled at every step, against the two loops and the dense method."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn

from convexlab.optim import LBFGS, DiagonalPreconditioner, SelfScaledBroyden
from tests.optim.networks import Regression, quadratic
from tests.optim.problems import PROBLEMS, Problem
from tests.optim.running import check_exceptions_leave_no_trace, check_state_continues, run

_run = functools.partial(run, LBFGS, self_scaled=True)


def _build(x: nn.Parameter, history: int) -> LBFGS:
    return LBFGS([x], history=history, self_scaled=True)


def _two_loops(
    gradient: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]], taus: list[float], start: np.ndarray
) -> np.ndarray:
    """Apply Vᵀ(H/τ)V + ρssᵀ for pair after pair to the gradient; ``start`` is the matrix before the first of them."""
    q, alphas = gradient.copy(), []
    for s, y in reversed(pairs):
        alphas.append(s @ q / (s @ y))
        q -= alphas[-1] * y
    r = start * q
    for (s, y), tau, alpha in zip(pairs, taus, reversed(alphas), strict=True):
        r /= tau
        r += s * (alpha - y @ r / (s @ y))
    return -r


@pytest.mark.parametrize("history", [1, 3, 9, 100])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_directions_are_those_of_the_two_loops(history: int, preconditioned: bool) -> None:
    task = Regression()
    p = torch.linspace(0.5, 2.0, 33, dtype=torch.float64) if preconditioned else torch.ones(33, dtype=torch.float64)
    gradient_at = torch.func.grad(task)
    x, g, pairs, taus, scaled, gamma = task.start, gradient_at(task.start), [], [], 0, 0.0
    for new_x, report, optimiser in _run(task, x, 25, history=history, preconditioner=DiagonalPreconditioner(p)):
        direction = optimiser._memory.direction.numpy()
        if pairs:
            dropped = len(taus) - len(pairs)
            expected = _two_loops(g.numpy(), pairs, taus[dropped:], gamma * p.numpy() / np.prod(taus[:dropped]))
            error = np.linalg.norm(direction - expected)
            # As for the matrix that is not scaled: 25 pairs, each known to 1e-13, and condition numbers of some 1e4.
            assert error <= 25 * 1e4 * 1e-13 * np.linalg.norm(direction)
        new_g = gradient_at(new_x)
        s, y = (new_x - x).numpy(), (new_g - g).numpy()
        gamma = gamma or (s @ y) / (y @ (p.numpy() * y))  # The first pair sets γ, and scales nothing else.
        taus.append(min(1.0, s @ y / (-report.step_size * (s @ g.numpy()))) if pairs else 1.0)
        scaled += taus[-1] < 1.0
        pairs = [*pairs, (s, y)][-history:]
        x, g = new_x, new_g
    assert scaled >= 3


def test_with_every_pair_kept_it_is_the_dense_method() -> None:
    task = Regression()
    dense = run(SelfScaledBroyden, task, task.start, 20, update="ssbfgs")
    for (x, report, _), (other, other_report, _) in zip(_run(task, task.start, 20), dense, strict=True):
        # Twenty steps of relative error 1e-13, amplified by curvatures that differ by 1e4.
        assert torch.linalg.vector_norm(x - other) <= 20 * 1e4 * 1e-13 * torch.linalg.vector_norm(x)
        assert report.gradients == other_report.gradients


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_minimum_is_the_published_one(problem: Problem) -> None:
    start = torch.tensor(problem.start, dtype=torch.float64)
    *_, (_, report, _) = _run(problem, start, 1000, problem.tolerance)
    assert any(abs(report.loss - minimum) <= 5e-6 * minimum + problem.tolerance for minimum in problem.minima)


def test_a_quadratic_takes_no_scaling_once_the_matrix_is_right() -> None:
    # Where B⁻¹ = H, sᵀy = sᵀB⁻¹s: from then on τ = 1 and α = 1.
    _, _, loss = quadratic()
    *_, (_, report, _) = _run(loss, torch.zeros(8, dtype=torch.float64), 60, 1e-12)
    assert report.gradient_norm <= 1e-12
    assert report.step_size == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("history", [3, 100])
@pytest.mark.parametrize("split", [0, 1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_continues_bit_for_bit(history: int, split: int, dtype: torch.dtype) -> None:
    task = Regression()
    build = functools.partial(_build, history=history)
    check_state_continues(build, task, task.start.to(dtype), split, 15)


@pytest.mark.parametrize("history", [2, 100])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_after_an_exception_the_run_goes_on_as_if_there_had_been_none(history: int, at: int) -> None:
    task = Regression()
    check_exceptions_leave_no_trace(functools.partial(_build, history=history), task, task.start, at)

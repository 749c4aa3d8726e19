"""Truncated linear conjugate gradients against SciPy's, dense solutions and eigenvalues."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from convexlab.optim import DiagonalPreconditioner
from convexlab.optim.linear_cg import Truncated, truncated_cg
from tests.optim.networks import quadratic

EPSILON = 2.0**-52


def _system(n: int = 12, condition: float = 100.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return A, g and a diagonal p that is not A's."""
    h, b, _ = quadratic(n, condition, seed)
    return torch.tensor(h), torch.tensor(b), torch.linspace(0.5, 2.0, n, dtype=torch.float64)


def _solve(a: Tensor, g: Tensor, p: Tensor | None, steps: int, **options: object) -> Truncated:
    preconditioner = None if p is None else DiagonalPreconditioner(p)
    settings = {"tolerance": 1e-30, "error": EPSILON} | options
    return truncated_cg(lambda v: a @ v, g, preconditioner, max_products=steps, **settings)


def _model(a: Tensor, g: Tensor, p: Tensor) -> float:
    return (g @ p + 0.5 * p @ a @ p).item()


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_iterates_are_those_of_scipy(preconditioned: bool, seed: int) -> None:
    a, g, p = _system(seed=seed)
    expected: list[np.ndarray] = []
    m = np.diag(p.numpy()) if preconditioned else None
    scipy.sparse.linalg.cg(a.numpy(), -g.numpy(), rtol=1e-13, M=m, callback=lambda x: expected.append(x.copy()))
    for steps, theirs in enumerate(expected[:6], start=1):  # Later ones have lost their conjugacy, each in its own way.
        ours = _solve(a, g, p if preconditioned else None, steps)
        # A step's length is known to rounding times the condition number, at most 400 with P, and spoils the conjugacy
        # of the next by as much again.
        assert np.linalg.norm(ours.vector.numpy() - theirs) <= steps * 400**2 * EPSILON * np.linalg.norm(theirs)
        assert ours.products == steps
        assert not ours.negative_curvature


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_decrease_is_that_of_the_damped_quadratic_and_the_end_its_minimum(preconditioned: bool, damping: float) -> None:
    a, g, p = _system()
    p = p if preconditioned else torch.ones_like(p)
    damped = a + damping * torch.diag(1.0 / p)
    for steps in range(1, 25):
        ours = _solve(a, g, p, steps, damping=lambda quotient: damping)
        assert ours.damping == damping
        # A sum of up to 24 terms of one sign, each rounded as inner products of 12 are, amplified as the iterates are.
        assert ours.decrease == pytest.approx(-_model(damped, g, ours.vector), rel=24 * 400 * 100 * EPSILON)
    expected = torch.linalg.solve(damped, -g)
    # Twice n steps make up for lost conjugacy; what stays is rounding times the condition number, in sums of 12.
    assert torch.linalg.vector_norm(ours.vector - expected) <= 12 * 400 * EPSILON * torch.linalg.vector_norm(expected)


def test_damping_is_told_the_curvature_along_the_first_direction() -> None:
    a, g, p = _system()
    seen: list[float] = []

    def damping(quotient: float) -> float:
        seen.append(quotient)
        return 0.0

    _solve(a, g, p, 5, damping=damping)
    z = p * g
    assert seen == [pytest.approx((z @ a @ z / (z @ (z / p))).item(), rel=1e-13)]


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01])
def test_it_ends_by_nash_and_sofers_test(tolerance: float) -> None:
    a, g, p = _system(40, 1e4)
    steps = _solve(a, g, p, 40, tolerance=tolerance).products
    # The models of the iterates, by their definition.
    models = [0.0, *(_model(a, g, _solve(a, g, p, k).vector) for k in range(1, 41))]
    met = [k * (1.0 - models[k - 1] / models[k]) <= tolerance for k in range(1, 41)]
    assert steps == 1 + met.index(True)
    assert steps > 2


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60])
def test_scale_changes_no_bit(scale: float) -> None:
    a, g, p = _system(20, 1e3)
    plain, scaled = _solve(a, g, p, 20, tolerance=0.1), _solve(a * scale, g * scale, p / scale, 20, tolerance=0.1)
    assert torch.equal(plain.vector, scaled.vector)
    assert plain.products == scaled.products


@pytest.mark.parametrize("preconditioned", [False, True])
def test_negative_curvature_is_followed(preconditioned: bool) -> None:
    a, g, p = _system()
    p = p if preconditioned else torch.ones_like(p)
    values, vectors = torch.linalg.eigh(a)
    a = vectors @ torch.diag(torch.where(values == values.max(), -values, values)) @ vectors.T
    ours = _solve(a, g, p, 12)
    assert ours.negative_curvature
    before = _solve(a, g, p, ours.products - 1).vector
    d = ours.vector - before
    assert d @ a @ d < 0.0
    assert g @ d < 0.0
    # p is stationary along d before, so the decrease to come is that of gᵀd and of the curvature together.
    assert _model(a, g, ours.vector) < _model(a, g, before)
    # As far as positive curvature of that size would send it: the minimum of gᵀd t + ½ t² |dᵀAd|.
    assert (g + a @ before) @ d == pytest.approx((d @ a @ d).item(), rel=1e-9)


def test_curvature_within_the_error_of_a_product_counts_as_none() -> None:
    # Along the last eigenvector there is -1e-9, beside 1 elsewhere; g has the same part along all.
    a = torch.eye(3, dtype=torch.float64)
    a[2, 2] = -1e-9
    ours = _solve(a, torch.ones(3, dtype=torch.float64), None, 10, error=1e-8)
    assert not ours.negative_curvature
    assert torch.isfinite(ours.vector).all()
    finer = _solve(a, torch.ones(3, dtype=torch.float64), None, 10, error=1e-12)
    assert finer.negative_curvature


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_product_that_says_nothing_ends_it(value: float) -> None:
    a, g, _ = _system()
    run = functools.partial(truncated_cg, gradient=g, preconditioner=None, tolerance=1e-30, error=EPSILON)
    at_once = run(lambda v: torch.full_like(v, value), max_products=9)
    assert torch.equal(at_once.vector, torch.zeros_like(g))
    assert at_once.products == 1
    later = run(_good_for(3, a, value), max_products=9)
    assert torch.equal(later.vector, _solve(a, g, None, 3).vector)
    assert not later.negative_curvature


def _good_for(count: int, a: Tensor, value: float) -> Callable[[Tensor], Tensor]:
    left = [count]

    def product(v: Tensor) -> Tensor:
        left[0] -= 1
        return a @ v if left[0] >= 0 else torch.full_like(v, value)

    return product

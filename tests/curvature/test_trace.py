"""Trace estimates against the sum of the diagonal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import convexlab as cl
from convexlab.errors import MisuseError
from tests.curvature.matrices import SPECTRA, matrix_with, random_matrix
from tests.dense import Dense

METHODS = ("hutchinson", "hutch++")
every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA)
every_method = pytest.mark.parametrize("method", METHODS)


class _Counting(Dense):
    products = 0

    def matvec(self, v: Tensor) -> Tensor:
        assert v.shape == (self.shape[0],)
        self.products += 1
        return super().matvec(v)


@every_method
@every_spectrum
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_trace_is_within_four_standard_errors(method: str, spectrum: str, dtype: torch.dtype) -> None:
    for seed in range(5):
        matrix = random_matrix(spectrum, seed, least=45).to(dtype)
        exact = float(matrix.double().trace())
        operator = _Counting(matrix)
        found = cl.trace(operator, method=method, samples=90, seed=seed)
        assert operator.products == found.products <= 90
        # |t| > 4 with 29 degrees of freedom: 4 in 10,000; rounding adds √n products of size ‖A‖.
        scale = len(matrix) * float(np.abs(np.linalg.eigvalsh(matrix.double().numpy())).max())
        assert abs(found.value - exact) <= 4 * found.standard_error + 10 * torch.finfo(dtype).eps * scale


@every_method
def test_the_estimate_is_unbiased_and_its_error_is_the_one_stated(method: str) -> None:
    matrix = random_matrix("isolated negative", 0, least=60)
    exact = float(matrix.trace())
    found = [cl.trace(Dense(matrix), method=method, samples=30, seed=seed) for seed in range(300)]
    values = np.array([estimate.value for estimate in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact) <= 4 * spread / math.sqrt(300)
    # The mean square of the stated errors is an unbiased estimate of the variance; over 300 runs with 9 degrees of
    # freedom or more it is within √(2 / 300) + √(2 / 2700) = 11 % of it at one standard error of either.
    stated = math.sqrt(np.mean([estimate.standard_error**2 for estimate in found]))
    assert stated == pytest.approx(spread, rel=4 * 0.11 / 2)


def test_hutchinson_is_exact_on_a_diagonal_matrix() -> None:
    values = torch.linspace(-1, 3, 20, dtype=torch.float64)
    found = cl.trace(Dense(torch.diag(values)), method="hutchinson", samples=2)
    assert found.value == pytest.approx(float(values.sum()), rel=1e-14)
    assert found.standard_error == pytest.approx(0, abs=1e-14)


def test_hutch_plus_plus_is_exact_on_a_matrix_of_low_rank() -> None:
    values = np.zeros(60)
    values[:8] = np.linspace(-1, 3, 8)
    matrix = matrix_with(values, np.random.default_rng(0))
    found = cl.trace(Dense(matrix), samples=3 * 8)
    assert found.value == pytest.approx(values.sum(), rel=1e-9)
    assert found.standard_error < 1e-9
    assert found.products == 24
    poorer = cl.trace(Dense(matrix), method="hutchinson", samples=24)
    assert poorer.standard_error > 0.1


def test_hutch_plus_plus_is_the_better_where_the_spectrum_decays() -> None:
    matrix = matrix_with(np.geomspace(1, 1e-12, 100), np.random.default_rng(0))
    errors = {
        method: np.mean(
            [
                (cl.trace(Dense(matrix), method=method, samples=45, seed=seed).value - float(matrix.trace())) ** 2
                for seed in range(30)
            ]
        )
        for method in METHODS
    }
    # Beyond the best 15 directions eigenvalues are below 1e-12^(15/99) = 0.015; variances go by squares, 2e-4, with a
    # third of the samples. A random sketch finds directions less good by a factor of some ten in squares.
    assert errors["hutch++"] < errors["hutchinson"] / 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_enough_samples_give_the_trace_itself(dtype: torch.dtype) -> None:
    for n in (1, 2, 7):
        matrix = random_matrix("normal", n, least=n, most=n).to(dtype)
        operator = _Counting(matrix)
        found = cl.trace(operator, samples=3 * n)
        assert found.value == pytest.approx(float(matrix.double().trace()), abs=20 * n * torch.finfo(dtype).eps)
        assert found.standard_error == 0
        assert found.products == operator.products == 2 * n
    assert cl.trace(Dense(torch.zeros(9, 9)), samples=9) == cl.TraceEstimate(0.0, 0.0, 9)


@every_method
def test_seeds_decide_and_the_global_generator_does_not(method: str) -> None:
    operator = Dense(random_matrix("normal", 0, least=40))
    state = torch.get_rng_state()
    first, second, other = (cl.trace(operator, method=method, samples=9, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first.value != other.value
    assert torch.equal(torch.get_rng_state(), state)


def test_a_standard_error_needs_two_samples() -> None:
    operator = Dense(random_matrix("normal", 0, least=10))
    assert math.isnan(cl.trace(operator, method="hutchinson", samples=1).standard_error)
    assert math.isnan(cl.trace(operator, samples=3).standard_error)
    assert cl.trace(operator, samples=7).products == 6


@every_method
def test_a_product_that_is_not_finite_gives_no_number(method: str) -> None:
    assert math.isnan(cl.trace(Dense(torch.full((30, 30), math.nan)), method=method).value)


def test_misuse() -> None:
    operator = Dense(torch.eye(3))
    with pytest.raises(MisuseError, match=r"unknown trace method 'hutch'.*mean 'hutch\+\+'"):
        cl.trace(operator, method="hutch")
    for method, samples in (("hutchinson", 0), ("hutch++", 2)):
        with pytest.raises(MisuseError, match="at least"):
            cl.trace(operator, method=method, samples=samples)

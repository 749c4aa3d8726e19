"""Trace estimates against the sum of the diagonal."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import MisuseError
from tests.curvature.matrices import SPECTRA, matrix_with, random_matrix
from tests.dense import Dense
from tests.slowly import mostly_slow, seeds

METHODS = ("hutchinson", "hutch++", "xtrace")
every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA)
every_method = pytest.mark.parametrize("method", METHODS)


class _Counting(Dense):
    products = 0

    def matvec(self, v: Tensor) -> Tensor:
        assert v.shape == (self.shape[0],)
        self.products += 1
        return super().matvec(v)


class _Recording(Dense):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.vectors: list[np.ndarray] = []

    def matvec(self, v: Tensor) -> Tensor:
        self.vectors.append(v.numpy().copy())
        return super().matvec(v)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_trace_is_within_four_standard_errors(method: str, dtype: torch.dtype) -> None:
    for spectrum, seed in product(SPECTRA, range(5)):
        matrix = random_matrix(spectrum, seed, least=45).to(dtype)
        exact = float(matrix.double().trace())
        operator = _Counting(matrix)
        estimate = cl.trace(operator, method=method, samples=90, seed=seed)
        assert operator.products == estimate.effort.products <= 90, f"{spectrum}, seed {seed}"
        # |t| > 4 with 29 degrees of freedom: 4 in 10,000; rounding adds √n products of size ‖A‖. XTrace is exact here.
        scale = len(matrix) * float(np.abs(np.linalg.eigvalsh(matrix.double().numpy())).max())
        allowed = 4 * estimate.standard_error + 10 * torch.finfo(dtype).eps * scale
        assert abs(estimate.value - exact) <= allowed, f"{spectrum}, seed {seed}"


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_the_estimate_is_unbiased_and_its_error_is_the_one_stated(method: str) -> None:
    matrix = random_matrix("isolated negative", 0, least=60)
    exact = float(matrix.trace())
    estimates = [cl.trace(Dense(matrix), method=method, samples=30, seed=seed) for seed in range(300)]
    values = np.array([estimate.value for estimate in estimates])
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact) <= 4 * spread / math.sqrt(300)
    # The mean square of the stated errors is an unbiased estimate of the variance; over 300 runs with 9 degrees of
    # freedom or more it is within √(2 / 300) + √(2 / 2700) = 11 % of it at one standard error of either.
    stated = math.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    assert stated == pytest.approx(spread, rel=4 * 0.11 / 2)


def test_hutchinson_is_exact_on_a_diagonal_matrix() -> None:
    values = torch.linspace(-1, 3, 20, dtype=torch.float64)
    estimate = cl.trace(Dense(torch.diag(values)), method="hutchinson", samples=2)
    assert estimate.value == pytest.approx(float(values.sum()), rel=1e-14)
    # The square root of a difference of equal numbers: √ε of their size.
    assert estimate.standard_error < 1e-7


def test_hutch_plus_plus_is_exact_on_a_matrix_of_low_rank() -> None:
    values = np.zeros(60)
    values[:8] = np.linspace(-1, 3, 8)
    matrix = matrix_with(values, np.random.default_rng(0))
    estimate = cl.trace(Dense(matrix), samples=3 * 8)
    assert estimate.value == pytest.approx(values.sum(), rel=1e-9)
    assert estimate.standard_error < 1e-9
    assert estimate.effort.products == 24
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
    # Beyond 22 directions they are below 2e-3, another 40 to the square less, and all 22 vectors estimate the rest.
    assert errors["xtrace"] < errors["hutch++"] / 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_enough_samples_give_the_trace_itself(dtype: torch.dtype) -> None:
    for n in (1, 2, 7):
        matrix = random_matrix("normal", n, least=n, most=n).to(dtype)
        operator = _Counting(matrix)
        estimate = cl.trace(operator, samples=3 * n)
        assert estimate.value == pytest.approx(float(matrix.double().trace()), abs=20 * n * torch.finfo(dtype).eps)
        assert estimate.standard_error == 0
        assert estimate.effort.products == operator.products == 2 * n
    estimate = cl.trace(Dense(torch.zeros(9, 9)), samples=9)
    assert (estimate.value, estimate.standard_error, estimate.effort.products) == (0, 0, 9)


# XTrace.


def _left_out_one_by_one(matrix: np.ndarray, vectors: np.ndarray) -> tuple[float, float]:
    """Return XTrace's estimate (algorithm 1.2, section 2.3), a factorisation a vector, and its jackknife error."""
    count = vectors.shape[1]
    without = [_xtrace_by_definition(matrix, np.delete(vectors, i, axis=1)) for i in range(count)]
    return _xtrace_by_definition(matrix, vectors), math.sqrt((count - 1) * np.var(without))


def _xtrace_by_definition(matrix: np.ndarray, vectors: np.ndarray) -> float:
    n, count = vectors.shape
    estimates = []
    for i in range(count):
        basis, _ = np.linalg.qr(matrix @ np.delete(vectors, i, axis=1))
        rest = vectors[:, i] - basis @ (basis.T @ vectors[:, i])
        rest *= math.sqrt(n - count + 1) / np.linalg.norm(rest)
        estimates.append(np.trace(basis.T @ matrix @ basis) + rest @ matrix @ rest)
    return sum(estimates) / count


@seeds(5, quick=1)
@every_spectrum
def test_xtrace_is_the_mean_of_the_estimates_with_one_vector_left_out(spectrum: str, seeds: range) -> None:
    for samples, seed in product((4, 11, 30), seeds):
        operator = _Recording(random_matrix(spectrum, seed, least=40))
        estimate = cl.trace(operator, method="xtrace", samples=samples, seed=seed)
        vectors = np.stack(operator.vectors[: samples // 2], axis=1)
        assert np.allclose(np.linalg.norm(vectors, axis=0), math.sqrt(len(vectors)), rtol=1e-14)
        mean, error = _left_out_one_by_one(operator.matrix.numpy(), vectors)
        # Projectors are off by some 10 ε of ‖A‖ in either computation, traces by n times that.
        rounding = 20 * len(vectors) * 2.0**-52 * float(torch.linalg.matrix_norm(operator.matrix, 2))
        assert abs(estimate.value - mean) <= rounding, f"{samples} samples, seed {seed}"
        # The jackknife adds up the deviations of as many estimates as there are vectors.
        assert abs(estimate.standard_error - error) <= samples * rounding, f"{samples} samples, seed {seed}"
        assert estimate.effort.products == len(operator.vectors) == 2 * (samples // 2)


@pytest.mark.parametrize("spectrum", mostly_slow(["geometric", "normal", "isolated negative"], quick=1))
def test_xtrace_is_unbiased_and_its_stated_error_is_not_too_small(spectrum: str) -> None:
    runs, count = 300, 15
    matrix = random_matrix(spectrum, 0, least=60)
    estimates = [cl.trace(Dense(matrix), method="xtrace", samples=2 * count, seed=seed) for seed in range(runs)]
    values = np.array([estimate.value for estimate in estimates])
    spread = values.std(ddof=1)
    assert abs(values.mean() - float(matrix.trace())) <= 4 * spread / math.sqrt(runs)
    # The square of a jackknife's error is on average at least (k - 1) / k of the variance with a vector less (Efron &
    # Stein 1981, doi 10.1214/aos/1176345462, theorem 2), which is no smaller than that with all.
    stated = math.sqrt(np.mean([estimate.standard_error**2 for estimate in estimates]))
    sampling = 4 * 0.11 / 2  # As for the others above.
    assert stated / spread >= math.sqrt((count - 1) / count) * (1 - sampling)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [0, 1, 8])
def test_xtrace_is_exact_on_a_matrix_of_lower_rank_than_its_sketch(rank: int, dtype: torch.dtype) -> None:
    values = np.zeros(60)
    values[:rank] = np.linspace(3, -1, 8)[:rank]
    operator = Dense(matrix_with(values, np.random.default_rng(0)).to(dtype))
    # Each of up to 60 eigenvalues is off by some ten roundings of the products.
    rounding = 600 * torch.finfo(dtype).eps * 3
    for samples in (2 * (rank + 1), 2 * (rank + 2) + 1, 58):
        estimate = cl.trace(operator, method="xtrace", samples=samples)
        assert estimate.value == pytest.approx(values.sum(), abs=rounding)
        assert estimate.effort.products == 2 * (samples // 2)
        # With a vector less it is exact too where there are two more than the rank; then the jackknife sees no error.
        if samples >= 2 * (rank + 2):
            assert estimate.standard_error <= samples * rounding
    if rank > 1:  # One vector less, and what is left out is missing.
        assert cl.trace(operator, method="xtrace", samples=2 * rank).standard_error > 10 * rounding


def test_xtrace_is_exact_on_a_multiple_of_the_identity() -> None:
    """tr_i = (k - 1) + (n - k + 1), whatever the vectors: what their normalisation is for."""
    for samples in (2, 9, 40):
        estimate = cl.trace(Dense(-3 * torch.eye(50, dtype=torch.float64)), method="xtrace", samples=samples)
        assert estimate.value == pytest.approx(-150, rel=1e-13)
        assert samples < 4 or estimate.standard_error < 1e-11


@pytest.mark.parametrize("n", [1, 2, 9])
def test_xtrace_takes_the_trace_itself_where_that_costs_no_more(n: int) -> None:
    matrix = random_matrix("normal", n, least=n, most=n)
    operator = _Counting(matrix)
    estimate = cl.trace(operator, method="xtrace", samples=max(n, 2))
    assert estimate.value == pytest.approx(float(matrix.trace()), abs=1e-14 * n)
    assert estimate.standard_error == 0
    assert estimate.effort.products == operator.products == n


@every_method
def test_all_products_of_an_objective_are_made_at_once(method: str) -> None:
    rows = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return torch.tanh(super().forward(x))

    torch.manual_seed(0)
    batch = torch.randn(6, 4).double(), torch.randn(6, 10).double()
    objective = cl.Objective(Counting(4, 10).double(), [batch], nn.MSELoss(), micro_batch=2, memory_budget=0)
    operator = objective.hessian()
    dense = Dense(operator @ torch.eye(50))
    operator.prove()
    rows.clear()
    estimate = cl.trace(operator, method=method, samples=12)
    expected = cl.trace(dense, method=method, samples=12)
    assert estimate.value == pytest.approx(expected.value, rel=1e-9)
    assert estimate.standard_error == pytest.approx(expected.standard_error, rel=1e-9)
    assert estimate.effort.products == expected.effort.products == 12
    # Graphs that are not kept are built once for the vectors of a stage, not once for each.
    assert rows == [2, 2, 2] * {"hutchinson": 1, "hutch++": 3, "xtrace": 2}[method]


# All of them.


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
    assert cl.trace(operator, samples=7).effort.products == 6
    assert math.isnan(cl.trace(operator, method="xtrace", samples=3).standard_error)
    assert cl.trace(operator, method="xtrace", samples=7).effort.products == 6


@every_method
@pytest.mark.parametrize("n", [30, 60])
def test_a_product_that_is_not_finite_gives_no_number(method: str, n: int) -> None:
    assert math.isnan(cl.trace(Dense(torch.full((n, n), math.nan)), method=method).value)


def test_misuse() -> None:
    operator = Dense(torch.eye(3))
    with pytest.raises(MisuseError, match=r"unknown trace method 'hutch'.*mean 'hutch\+\+'"):
        cl.trace(operator, method="hutch")
    for method, samples in (("hutchinson", 0), ("hutch++", 2), ("xtrace", 1)):
        with pytest.raises(MisuseError, match="at least"):
            cl.trace(operator, method=method, samples=samples)

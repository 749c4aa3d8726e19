"""The Lanczos process against its defining equations, and where it has to stop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from convexlab.curvature import Lanczos
from convexlab.curvature.lanczos import random_unit_vector
from convexlab.errors import FailureError
from tests.curvature.matrices import SPECTRA, matrix_with, random_matrix
from tests.dense import Dense

EPS = float(np.finfo(np.float64).eps)
every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA)


def _run(matrix: Tensor, steps: int, seed: int = 0) -> Lanczos:
    operator = Dense(matrix)
    process = Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(seed)), steps)
    process.extend(steps)
    return process


def _basis(process: Lanczos) -> np.ndarray:
    return process.ritz_vectors(np.eye(process.steps)).numpy()


def _tridiagonal(process: Lanczos) -> np.ndarray:
    diagonal, off_diagonal = process.coefficients()
    return np.diag(diagonal) + np.diag(off_diagonal[:-1], 1) + np.diag(off_diagonal[:-1], -1)


@every_spectrum
def test_the_basis_is_orthonormal_and_the_recurrence_holds(spectrum: str) -> None:
    for seed in range(6):
        matrix = random_matrix(spectrum, seed)
        n = len(matrix)
        process = _run(matrix, 1 + seed * n // 5, seed)
        k, v, t = process.steps, _basis(process), _tridiagonal(process)
        assert k <= process.max_steps
        # Entry by entry an inner product of n terms that sum up to at most 1 in size, twice.
        np.testing.assert_allclose(v.T @ v, np.eye(k), atol=4 * n * EPS, err_msg=f"seed {seed}")
        remainder = matrix.numpy() @ v - v @ t
        scale = float(np.abs(np.linalg.eigvalsh(matrix.numpy())).max())
        # A product of a matrix of n columns, and k axpys.
        rounding = 4 * n * EPS * scale
        assert np.abs(remainder[:, :-1]).max(initial=0.0) <= rounding, f"seed {seed}"
        coupling = pytest.approx(process.coefficients()[1][-1], abs=rounding)
        assert np.linalg.norm(remainder[:, -1]) == coupling, f"seed {seed}"
        assert np.abs(v.T @ remainder[:, -1]).max() <= rounding, f"seed {seed}"


@every_spectrum
def test_ritz_values_are_rayleigh_quotients_within_the_spectrum_and_move_outwards(spectrum: str) -> None:
    matrix = random_matrix(spectrum, 3, least=30)
    eigenvalues = np.linalg.eigvalsh(matrix.numpy())
    slack = 4 * len(matrix) * EPS * float(np.abs(eigenvalues).max())
    process = _run(matrix, 0)
    assert process.steps == 0
    process = Lanczos(process.operator, random_unit_vector(process.operator, torch.Generator()), len(matrix))
    ends = [(math.inf, -math.inf)]
    while not process.exhausted:
        process.extend(3)
        values, coefficients = process.ritz()
        vectors = process.ritz_vectors(coefficients)
        torch.testing.assert_close(torch.linalg.vector_norm(vectors, dim=0), torch.ones(process.steps).double())
        quotients = (vectors * (matrix @ vectors)).sum(dim=0).numpy()
        np.testing.assert_allclose(values, quotients, atol=slack, rtol=0)
        assert np.all(np.diff(values) >= 0)
        assert eigenvalues[0] - slack <= values[0] <= ends[-1][0] + slack
        assert ends[-1][1] - slack <= values[-1] <= eigenvalues[-1] + slack
        ends.append((values[0], values[-1]))
    # The start has a part along every eigenvector.
    assert ends[-1] == pytest.approx((eigenvalues[0], eigenvalues[-1]), abs=slack)


@pytest.mark.parametrize("pieces", [(1,) * 20, (7, 1, 12), (20,), (50,), (0, 20, 0)])
def test_extending_in_pieces_is_extending_at_once(pieces: tuple[int, ...]) -> None:
    matrix = random_matrix("normal", 0, least=40)
    whole, process = _run(matrix, 20), _run(matrix, 20)
    process = Lanczos(whole.operator, random_unit_vector(whole.operator, torch.Generator().manual_seed(0)), 20)
    for steps in pieces:
        process.extend(steps)
    assert process.steps == process.products == 20
    assert process.exhausted
    assert not process.invariant
    for ours, theirs in zip(process.coefficients(), whole.coefficients(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    process.extend(5)
    assert process.steps == process.products == 20


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([1.0] * 9, 1),
        ([0.0] * 9, 1),
        ([-3.0] * 5 + [2.0] * 4, 2),
        ([0.0] * 7 + [1.0, -1.0], 3),
        ([0.0] * 7 + [1e-9, 1.0], 3),
        ([5.0], 1),
        ([1.0, 2.0], 2),
    ],
)
@pytest.mark.parametrize("scale", [1e-120, 1.0, 1e120])
def test_the_process_ends_with_the_last_distinct_eigenvalue(values: list[float], steps: int, scale: float) -> None:
    matrix = matrix_with(scale * np.array(values), np.random.default_rng(0))
    process = _run(matrix, 100)
    assert process.steps == steps
    assert process.invariant
    assert process.exhausted
    ritz_values, coefficients = process.ritz()
    # Each distinct eigenvalue once, to the rounding of the matrix; a start's part along it is 1e-2 at the least here,
    # and a value comes out that much less exactly.
    np.testing.assert_allclose(
        ritz_values, np.unique(scale * np.array(values)), atol=1e3 * EPS * scale * max(map(abs, values))
    )
    vectors = process.ritz_vectors(coefficients)
    residual = matrix @ vectors - vectors * torch.from_numpy(ritz_values)
    assert float(residual.abs().max()) <= 100 * EPS * scale * max(map(abs, values))


def test_an_eigenvector_is_a_space_of_its_own() -> None:
    matrix = torch.diag(torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64))
    process = Lanczos(Dense(matrix), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), 3)
    process.extend(3)
    assert process.steps == 1
    assert process.ritz()[0].tolist() == [-2.0]


@every_spectrum
def test_a_float32_operator_is_no_end_of_the_process_and_the_basis_stays_orthonormal(spectrum: str) -> None:
    matrix = random_matrix(spectrum, 1, least=30).float()
    process = _run(matrix, len(matrix))
    v = _basis(process)
    assert v.dtype == np.float64
    n, k = v.shape
    np.testing.assert_allclose(v.T @ v, np.eye(k), atol=4 * n * EPS)
    eigenvalues = np.linalg.eigvalsh(matrix.double().numpy())
    ritz_values = process.ritz()[0]
    # What a matrix changes its eigenvalues by when every product is off by √n ε ‖A‖ (Weyl).
    bound = math.sqrt(n) * float(np.finfo(np.float32).eps) * float(np.abs(eigenvalues).max())
    assert ritz_values[0] == pytest.approx(eigenvalues[0], abs=bound)
    assert ritz_values[-1] == pytest.approx(eigenvalues[-1], abs=bound)


class _Failing(Dense):
    def __init__(self, matrix: Tensor, good: int, value: float) -> None:
        super().__init__(matrix)
        self.good, self.value = good, value

    def matvec(self, v: Tensor) -> Tensor:
        self.good -= 1
        product = super().matvec(v)
        if self.good < 0:
            product[-1] = self.value
        return product


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("good", [0, 1, 4])
def test_products_that_are_not_finite_are_a_failure(value: float, good: int) -> None:
    operator = _Failing(random_matrix("normal", 0, least=20), good, value)
    process = Lanczos(operator, random_unit_vector(operator, torch.Generator()), 10)
    with pytest.raises(FailureError, match=r"not finite.*float64"):
        process.extend(10)


def test_random_unit_vectors_are_uniform_on_the_sphere_and_repeatable() -> None:
    operator = Dense(torch.eye(5, dtype=torch.float32))
    generator = torch.Generator().manual_seed(7)
    vectors = torch.stack([random_unit_vector(operator, generator) for _ in range(4000)])
    assert vectors.dtype == torch.float64
    assert torch.equal(vectors[0], random_unit_vector(operator, torch.Generator().manual_seed(7)))
    torch.testing.assert_close(
        torch.linalg.vector_norm(vectors, dim=1), torch.ones(4000).double(), rtol=0, atol=4 * EPS
    )
    # On the sphere in n dimensions E u uᵀ = I / n, Var u_i² = 2 (n - 1) / (n² (n + 2)), E u_i² u_j² = 1 / (n (n + 2)).
    # Four standard errors of a mean of 4000.
    second = (vectors.T @ vectors / 4000).numpy()
    np.testing.assert_allclose(np.diag(second), 0.2, atol=4 * math.sqrt(8 / 175 / 4000))
    off_diagonal = second - np.diag(np.diag(second))
    assert np.abs(off_diagonal).max() < 4 * math.sqrt(1 / 35 / 4000)
    assert np.abs(vectors.mean(dim=0).numpy()).max() < 4 * math.sqrt(0.2 / 4000)


def test_the_start_is_left_alone() -> None:
    start = torch.tensor([0.6, 0.8], dtype=torch.float64)
    process = Lanczos(Dense(torch.diag(torch.tensor([1.0, 2.0]).double())), start, 2)
    process.extend(2)
    assert start.tolist() == [0.6, 0.8]

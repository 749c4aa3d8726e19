"""The diagonal of matrices and of a Hessian, against the dense one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import convexlab as cl
from convexlab.errors import MisuseError
from tests.curvature.matrices import SPECTRA, random_matrix
from tests.dense import Dense


def test_intervals_hold() -> None:
    """Of entries and of matrices; one in twenty is allowed to miss."""
    held = total = 0
    for spectrum in SPECTRA:
        for samples in (3, 12):
            matrix = random_matrix(spectrum, samples, least=40)
            estimate = cl.diagonal(Dense(matrix), samples=samples, seed=samples)
            low, high = estimate.interval()
            rounding = 1e-14 * matrix.abs().max()
            held += int(((low - rounding <= matrix.diagonal()) & (matrix.diagonal() <= high + rounding)).sum())
            total += len(matrix)
    assert total > 900
    assert 0.9 * total <= held <= 0.99 * total


def test_it_is_the_mean_and_the_error_of_the_samples() -> None:
    matrix = random_matrix("normal", 0, least=30)
    vectors = []

    class Recording(Dense):
        def matvec(self, v: torch.Tensor) -> torch.Tensor:
            vectors.append(v.numpy().copy())
            return super().matvec(v)

    estimate = cl.diagonal(Recording(matrix), samples=7)
    assert set(np.unique(vectors)) == {-1.0, 1.0}
    rows = np.array([v * (matrix.numpy() @ v) for v in vectors])
    np.testing.assert_allclose(estimate.values.numpy(), rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(estimate.standard_errors.numpy(), rows.std(axis=0, ddof=1) / math.sqrt(7), rtol=1e-10)
    assert (estimate.samples, estimate.effort.products) == (7, 7)


def test_it_is_exact_on_a_diagonal_matrix() -> None:
    values = torch.linspace(-1, 3, 20, dtype=torch.float64)
    estimate = cl.diagonal(Dense(torch.diag(values)), samples=2)
    torch.testing.assert_close(estimate.values, values, rtol=1e-15, atol=0)
    assert float(estimate.standard_errors.max()) == 0


def test_a_hessian_costs_its_products() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    objective = cl.Objective(model, [(torch.randn(20, 3).double(), torch.randn(20, 2).double())], nn.MSELoss())
    dense = objective.hvp(torch.eye(objective.size, dtype=torch.float64))
    estimate = cl.diagonal(objective.hessian(), samples=64)
    # Beside its products the check that they are right, of ten gradients at most over data as small as these.
    assert estimate.effort.gradient_equivalents is not None
    assert 2 * 64 <= estimate.effort.gradient_equivalents <= 2 * 64 + 10
    # Of 26 entries, each with Student's t of 63 degrees: five errors in 5 of a million.
    assert bool(((estimate.values - dense.diagonal()).abs() <= 5 * estimate.standard_errors + 1e-12).all())


def test_one_sample_has_no_error_and_none_is_misuse() -> None:
    operator = Dense(torch.eye(3))
    assert bool(cl.diagonal(operator, samples=1).standard_errors.isnan().all())
    assert bool(cl.diagonal(operator, samples=1).interval().isnan().all())
    for samples in (0, 1.5, True):
        with pytest.raises(MisuseError, match="whole number from 1"):
            cl.diagonal(operator, samples=samples)  # type: ignore[arg-type]

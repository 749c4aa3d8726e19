"""What a symmetric operator does with vectors, and SciPy with an operator."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.operators import SymmetricOperator


class _Matrix(SymmetricOperator):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__(len(matrix), dtype=matrix.dtype, device=matrix.device)
        self.matrix = matrix

    def _multiply(self, v: Tensor) -> Tensor:
        assert v.ndim == 2
        assert v.dtype == self.matrix.dtype
        return self.matrix @ v


@pytest.fixture
def matrix() -> Tensor:
    square = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return square + square.T


def test_products_of_vectors_and_matrices(matrix: Tensor) -> None:
    operator = _Matrix(matrix)
    v = torch.randn(12, 3, dtype=torch.float64)
    assert operator.shape == (12, 12)
    torch.testing.assert_close(operator @ v, matrix @ v)
    torch.testing.assert_close(operator.matmat(v), matrix @ v)
    torch.testing.assert_close(operator @ v[:, 0], matrix @ v[:, 0])
    torch.testing.assert_close(operator.matvec(v[:, 0].float()), matrix @ v[:, 0].float().double())


def test_shapes_that_do_not_fit_are_refused(matrix: Tensor) -> None:
    operator = _Matrix(matrix)
    for shape in ((), (11,), (13,), (3, 12), (12, 1, 1)):
        with pytest.raises(MisuseError, match="expected a tensor of shape"):
            operator @ torch.ones(shape)
    with pytest.raises(MisuseError, match=r"\(12,\), got \(12, 2\)"):
        operator.matvec(torch.ones(12, 2))
    with pytest.raises(MisuseError, match=r"\(12, k\), got \(12,\)"):
        operator.matmat(torch.ones(12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scipy_finds_the_eigenvalues(matrix: Tensor, dtype: torch.dtype) -> None:
    operator = _Matrix(matrix.to(dtype)).to_scipy()
    assert operator.dtype == (np.float32 if dtype == torch.float32 else np.float64)
    start = np.ones(12, dtype=operator.dtype)
    ends = scipy.sparse.linalg.eigsh(operator, k=2, which="BE", v0=start, return_eigenvectors=False)
    values = np.linalg.eigvalsh(matrix.numpy())
    # ARPACK stops at machine precision relative to the eigenvalue; the matrix was rounded to dtype.
    np.testing.assert_allclose(np.sort(ends), values[[0, -1]], rtol=100 * torch.finfo(dtype).eps)


def test_scipy_may_hand_over_any_array(matrix: Tensor) -> None:
    operator, reference = _Matrix(matrix).to_scipy(), matrix.numpy()
    frozen = np.arange(12.0)
    frozen.flags.writeable = False
    for v in (frozen, frozen[::-1], frozen[:, None], np.arange(24.0)[::2], np.arange(12), frozen.astype(np.float32)):
        np.testing.assert_allclose(operator @ v, reference @ v, rtol=1e-12, atol=1e-12)
    block = np.arange(36.0).reshape(3, 12).T
    for v in (block, block[::-1, ::-1], np.asfortranarray(block)):
        np.testing.assert_allclose(operator @ v, reference @ v, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(operator @ np.eye(12), reference, rtol=1e-15)


def test_scipy_may_multiply_from_the_left(matrix: Tensor) -> None:
    operator, reference = _Matrix(matrix).to_scipy(), matrix.numpy()
    v = np.arange(12.0)
    np.testing.assert_allclose(operator.T @ v, reference @ v, rtol=1e-12)
    np.testing.assert_allclose(operator.H @ np.eye(12), reference, rtol=1e-12)
    singular = scipy.sparse.linalg.svds(operator, k=1, v0=np.ones(12), return_singular_vectors=False)
    np.testing.assert_allclose(singular, np.abs(np.linalg.eigvalsh(reference)).max(), rtol=1e-10)


def test_a_product_is_what_every_subclass_has_to_give() -> None:
    with pytest.raises(TypeError, match="_multiply"):
        SymmetricOperator(3, dtype=torch.float64, device=torch.device("cpu"))

"""The basis of a Krylov space, against matrices."""

from __future__ import annotations

import pytest
import torch

from convexlab.curvature.basis import Basis
from convexlab.machine.memory import LiveTensors

EPS = torch.finfo(torch.float64).eps


def _orthonormal(n: int, k: int) -> torch.Tensor:
    """Return k orthonormal rows (k, n)."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))[0].T.contiguous()


def _basis(rows: torch.Tensor, most: int) -> Basis:
    basis = Basis(rows[0], most)
    for row in rows[1:]:
        basis.append(row)
    return basis


@pytest.mark.parametrize("count", [1, 15, 16, 17, 70])
@pytest.mark.parametrize("n", [100, 40_000])  # One block, and several.
def test_products_with_all_blocks_are_those_with_one_matrix(count: int, n: int) -> None:
    rows = _orthonormal(n, count)
    basis = _basis(rows, 200)
    assert torch.equal(basis.first, rows[0])
    assert torch.equal(basis.last, rows[-1])
    vector = torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    given = vector.clone()
    rest, coefficient = basis.project_out(vector)
    assert torch.equal(vector, given)
    # Inner products of n terms, vectors of length √n.
    tolerance = {"rtol": 0, "atol": 4 * n * EPS}
    torch.testing.assert_close(rest, vector - rows.T @ (rows @ vector), **tolerance)
    torch.testing.assert_close(coefficient, rows[-1] @ vector, **tolerance)
    for used in {1, (count + 1) // 2, count}:
        weights = torch.randn(used, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        torch.testing.assert_close(basis.combined(weights), weights.T @ rows[:used], **tolerance)


def test_memory_grows_with_the_vectors_and_never_beyond_the_most() -> None:
    n = 20_000
    row = torch.ones(n, dtype=torch.float64)
    sizes = []
    with LiveTensors() as live:
        basis = Basis(row, 150)
        for count in range(1, 151):
            if count > 1:
                basis.append(row)
            sizes.append(live.bytes / row.nbytes)
    for count, size in enumerate(sizes, start=1):
        assert count <= size <= count + max(16, count / 4)
    assert sizes[-1] == 150


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_basis_is_of_its_first_vector(dtype: torch.dtype) -> None:
    basis = Basis(torch.tensor([0.6, 0.8], dtype=dtype), 2)
    assert basis.dtype == basis.last.dtype == dtype
    assert basis.combined(torch.ones(1, 1, dtype=torch.float64)).dtype == dtype


@pytest.mark.parametrize("n", [100, 40_000])
def test_compressed_to_combinations_of_its_vectors(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexlab.curvature.basis._CHUNK_BYTES", 2**12)
    rows = _orthonormal(n, 41)
    weights = _orthonormal(40, 20).T
    basis = _basis(rows, 60)
    basis.compress(weights)
    expected = torch.cat([weights.T @ rows[:40], rows[40:]])
    torch.testing.assert_close(basis.combined(torch.eye(21, dtype=torch.float64)), expected, rtol=0, atol=100 * EPS)
    for row in rows[1:40]:  # It has its whole room again.
        basis.append(row)
    torch.testing.assert_close(basis.last, rows[39], rtol=0, atol=0)
    vector = rows[0] + rows[40]
    rest = basis.without_part_in_first(vector, 21)
    torch.testing.assert_close(rest, vector - expected.T @ (expected @ vector), rtol=0, atol=100 * EPS)

"""The plane of a path against scikit-learn's principal component analysis of the weights themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from convexlab.probing import pca
from convexlab.probing.pca import Projection
from convexlab.probing.vectors import StoredVectors


def project(points: list[torch.Tensor]) -> Projection | None:
    with StoredVectors() as vectors:
        for point in points:
            vectors.append(point)
        return pca.project(vectors)


def walk(count: int, size: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """A random walk, of which a plane holds most."""
    steps = torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    return list(steps.cumsum(dim=0).to(dtype))


@pytest.mark.parametrize(("count", "dtype"), [(3, torch.float64), (7, torch.float64), (20, torch.float32)])
def test_against_scikit_learn(count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca, "_CHUNK", 17 * count)  # 100 parameters in six parts
    points = walk(count, 100, dtype)
    found = project(points)
    assert found is not None
    matrix = torch.stack(points).double().numpy()
    theirs = PCA(n_components=2, svd_solver="full").fit(matrix)
    # Both are exact but for rounding in float64; eigenvectors by that over the gap of these walks, above a tenth.
    assert found.explained == pytest.approx(theirs.explained_variance_ratio_, rel=1e-12)
    overlap = found.directions.numpy() @ theirs.components_.T
    np.testing.assert_allclose(np.abs(overlap), np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(2), atol=1e-13)
    differences = matrix - matrix[-1]
    np.testing.assert_allclose(found.coordinates, differences @ found.directions.numpy().T, atol=1e-11)
    on_plane = found.coordinates.numpy() @ found.directions.numpy()
    # A distance is the root of a difference of squares of the order of 1,000.
    np.testing.assert_allclose(found.distances, np.linalg.norm(differences - on_plane, axis=1), atol=1e-5)
    assert found.coordinates[-1].tolist() == [0, 0]
    assert found.distances[-1] == 0


def test_three_checkpoints_lie_on_their_plane() -> None:
    found = project(walk(3, 40))
    assert found is not None
    assert sum(found.explained) == pytest.approx(1.0, abs=1e-14)
    assert found.distances.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_picture_does_not_depend_on_signs() -> None:
    points = walk(6, 30)
    found, mirrored = project(points), project([-point for point in points])
    assert found is not None
    assert mirrored is not None
    torch.testing.assert_close(found.coordinates, mirrored.coordinates)
    assert found.coordinates[0, 0] < 0
    assert found.coordinates[found.coordinates[:, 1].abs().argmax(), 1] > 0


def test_no_plane_without_three_points_off_a_line() -> None:
    first, second, _ = walk(3, 30)
    assert project([]) is None
    assert project([first, second]) is None
    assert project([first, first, second]) is None
    assert project([first, first, first]) is None
    assert project([first, second, 0.3 * first + 0.7 * second]) is None
    assert project([first, second, 0.3 * first + 0.7 * second + 1e-3]) is not None

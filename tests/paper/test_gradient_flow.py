"""Against the flow on quadratics and a rotationally symmetric well, whose moments are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from paper.gradient_flow import curvature_at, descend

from convexlab.errors import MisuseError


def bell(p: torch.Tensor) -> torch.Tensor:
    """-exp(-‖p‖²/2): along a ray the second derivative is (1 - r²)e, across it e, e = exp(-r²/2)."""
    return -torch.exp(-(p**2).sum(1) / 2)


def trough(p: torch.Tensor) -> torch.Tensor:
    """p₁²/2 - exp(-p₂²/2) / 10: across the fall into the trough, the Hessian is negative while |p₂| > 1."""
    return p[:, 0] ** 2 / 2 - torch.exp(-(p[:, 1] ** 2) / 2) / 10


def test_curvature_of_a_quadratic_form_a_row() -> None:
    rng = np.random.default_rng(0)
    matrices, points = rng.standard_normal((4, 3, 3)), rng.standard_normal((4, 3))
    matrices = matrices + matrices.transpose(0, 2, 1)
    held = torch.from_numpy(matrices)
    found = curvature_at(lambda p: torch.einsum("mi,mij,mj->m", p, held, p) / 2, points)
    gradient = np.stack([matrix @ point for matrix, point in zip(matrices, points, strict=True)])
    np.testing.assert_allclose(found.gradient, gradient, atol=1e-14)
    np.testing.assert_allclose(found.hessian, matrices, atol=1e-14)
    np.testing.assert_allclose(found.norm, np.linalg.norm(gradient, axis=1), rtol=1e-14)
    np.testing.assert_allclose(found.smallest, [np.linalg.eigvalsh(matrix)[0] for matrix in matrices], atol=1e-13)
    along = [g @ matrix @ g / (g @ g) for g, matrix in zip(gradient, matrices, strict=True)]
    np.testing.assert_allclose(found.along_gradient, along, atol=1e-13)


def test_no_gradient_no_curvature_along_it() -> None:
    assert np.isnan(curvature_at(bell, [[0.0, 0.0]]).along_gradient).all()


def test_on_the_bell_all_three_moments_are_at_radius_one() -> None:
    starts = np.array([[2.0, 0.0], [-1.2, 1.6], [0.3, 0.4]])
    outer, tilted, inner = descend(bell, starts, length=5.0, samples=300, tolerance=1e-3)
    for path in (outer, tilted):
        for moments in (path.along_changes, path.smallest_changes):
            (moment,) = moments
            # The integrator's relative tolerance is 1e-9 a step, over some hundred steps.
            assert np.hypot(*moment.position) == pytest.approx(1, abs=1e-6)
            assert moment.value == pytest.approx(-np.exp(-0.5), abs=1e-6)
            assert moment.norm == pytest.approx(np.exp(-0.5), abs=1e-6)
        (peak,) = path.norm_peaks
        # Found on the flat top of the norm: half as many digits.
        assert np.hypot(*peak.position) == pytest.approx(1, abs=1e-4)
        assert path.is_simple
        assert path.arrived
        assert path.norm[-1] >= 1e-3
    # A ray stays a ray.
    np.testing.assert_allclose(tilted.position[:, 1], -4 / 3 * tilted.position[:, 0], atol=1e-8)
    assert inner.norm_peaks == inner.along_changes == inner.smallest_changes == ()
    assert inner.ends_convex
    assert not inner.is_simple


@pytest.mark.slow
def test_in_the_trough_the_norm_only_falls_and_the_region_is_convex_later() -> None:
    (path,) = descend(trough, [[3.0, 1.5]], length=8.0, samples=800, tolerance=1e-4)
    assert path.along_gradient[0] > 0 > path.smallest[0]
    (entry,) = path.smallest_changes
    assert entry.position[1] == pytest.approx(1, abs=1e-6)
    # dp₁/dp₂ = 10 p₁ exp(p₂²/2) / p₂: at the entry p₁ is 3 exp(-10 ∫ exp(q²/2)/q dq) from 1 to 1.5, next to nothing.
    q = np.linspace(1, 1.5, 100_001)
    expected = 3 * np.exp(-10 * np.trapezoid(np.exp(q**2 / 2) / q, q))
    assert entry.position[0] == pytest.approx(expected, abs=1e-6)
    assert path.is_simple


def test_the_norm_changes_as_its_identity_says() -> None:
    loss = trough
    point = np.array([[0.02, 1.4]])
    found = curvature_at(loss, point)
    step = 1e-5
    after, before = (curvature_at(loss, point - sign * step * found.gradient).norm ** 2 for sign in (1, -1))
    # d‖g‖²/dt = -2gᵀHg; central differences are right to step² and epsilon / step.
    np.testing.assert_allclose((after - before) / (2 * step), -2 * found.along_gradient * found.norm**2, atol=1e-9)


def test_rows_do_not_touch_each_other() -> None:
    centres = torch.tensor([[1.0, 0.0], [0.0, -2.0]], dtype=torch.float64)
    paths = descend(lambda p: ((p - centres) ** 2).sum(1), [[0.0, 0.0], [0.0, 0.0]], length=4.0, tolerance=1e-2)
    for path, centre in zip(paths, centres.numpy(), strict=True):
        # The norm 2‖p - c‖ falls at the rate 2/τ = 20 at most: by 8.4 % from one of the 1,000 samples to the next:
        # the last one kept is that much above the tolerance at most.
        assert path.arrived
        assert 0.005 <= np.linalg.norm(path.position[-1] - centre) <= 0.005 * 1.084
        assert (np.diff(path.value) < 0).all()


def test_a_path_that_is_too_short_has_not_arrived() -> None:
    (path,) = descend(bell, [[2.0, 0.0]], length=0.5, samples=10)
    assert not path.arrived
    assert not path.ends_convex
    assert len(path.norm) == 10


def test_misuse() -> None:
    with pytest.raises(MisuseError, match=r"a point a row, got shape \(2,\)"):
        descend(bell, [1.0, 2.0], length=1.0)
    with pytest.raises(MisuseError, match="positive length"):
        descend(bell, [[1.0, 2.0]], length=0.0)

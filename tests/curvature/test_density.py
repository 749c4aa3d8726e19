"""The spectral density against quadratic forms, dense traces and the eigenvalues themselves."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

import convexlab as cl
from convexlab.curvature import Lanczos
from convexlab.curvature.density import density_of
from convexlab.curvature.effort import Meter
from convexlab.curvature.lanczos import random_unit_vector
from convexlab.errors import FailureError, MisuseError
from tests.curvature.matrices import SPECTRA, matrix_with, random_matrix
from tests.dense import Dense
from tests.slowly import mostly_slow, seeds

EPS = float(np.finfo(np.float64).eps)
every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA)


@every_spectrum
def test_weights_are_a_distribution_on_the_spectrum(spectrum: str) -> None:
    matrix = random_matrix(spectrum, 0, least=30)
    truth = np.linalg.eigvalsh(matrix.numpy())
    slack = 100 * EPS * np.abs(truth).max()
    for probes, steps in ((1, 1), (4, 7), (3, 200)):
        density = cl.spectral_density(Dense(matrix), probes=probes, steps=steps)
        assert density.nodes.shape == density.weights.shape
        assert density.nodes.shape[0] == probes
        assert density.nodes.shape[1] <= min(steps, len(matrix))
        assert density.nodes.dtype == density.weights.dtype == torch.float64
        assert bool((density.weights >= 0).all())
        np.testing.assert_allclose(density.weights.sum(dim=1).numpy(), 1 / probes, rtol=1e-12)
        assert truth[0] - slack <= float(density.nodes.min()), f"{probes} probes of {steps} steps"
        assert float(density.nodes.max()) <= truth[-1] + slack, f"{probes} probes of {steps} steps"
        assert density.size == len(matrix)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_probe_is_gauss_quadrature_for_its_start(steps: int) -> None:
    """Exact for powers up to 2 steps - 1: Σ w θ^p = vᵀA^p v for every start v."""
    matrix = random_matrix("normal", 0, least=30)
    operator = Dense(matrix)
    density = cl.spectral_density(operator, probes=3, steps=steps, seed=5)
    generator = torch.Generator().manual_seed(5)
    for probe in range(3):
        v = random_unit_vector(operator, generator)
        for power in range(2 * steps):
            form = float(v @ (torch.linalg.matrix_power(matrix, power) @ v))
            estimate = float(3 * (density.weights[probe] * density.nodes[probe] ** power).sum())
            assert estimate == pytest.approx(form, rel=1e-10, abs=1e-10)


@seeds(5, quick=1)
@every_spectrum
def test_moments_are_dense_traces_within_four_standard_errors(spectrum: str, seeds: range) -> None:
    for seed in seeds:
        matrix = random_matrix(spectrum, seed, least=40)
        density = cl.spectral_density(Dense(matrix), probes=40, steps=6, seed=seed)
        for power in (1, 2, 3):
            exact = float(torch.linalg.matrix_power(matrix, power).trace())
            estimate, error = density.moment(power)
            # With 40 probes a Student's t of 39 degrees: |t| > 4 three times in 10,000.
            size = len(matrix) * float(np.abs(np.linalg.eigvalsh(matrix.numpy())).max()) ** power
            assert abs(estimate - exact) <= 4 * error + 1e-12 * size
            assert error < size


@pytest.mark.slow
def test_a_standard_error_is_neither_too_small_nor_too_large() -> None:
    """Over 100 seeds, a normal variable exceeds two standard deviations in one case out of 20."""
    matrix = random_matrix("isolated negative", 0, least=60)
    values = np.linalg.eigvalsh(matrix.numpy())
    beyond = {"trace": 0, "negative mass": 0}
    for seed in range(100):
        density = cl.spectral_density(Dense(matrix), probes=8, steps=30, seed=seed)
        estimate, error = density.moment(1)
        beyond["trace"] += abs(estimate - values.sum()) > 2 * error
        # One eigenvalue out of n: its mass in a probe is a square of a normal variable, far from normal itself.
        beyond["negative mass"] += abs(density.negative_mass - 1 / len(matrix)) > 2 * density.standard_error
    # 5 expected; a Poisson variable of mean 5 exceeds 15 once in 20,000.
    assert beyond["trace"] <= 15
    assert beyond["negative mass"] <= 40
    assert beyond["trace"] + beyond["negative mass"] > 0


@every_spectrum
@pytest.mark.parametrize("dtype", mostly_slow([torch.float32, torch.float64], quick=1))
def test_negative_mass_is_the_fraction_of_negative_eigenvalues(spectrum: str, dtype: torch.dtype) -> None:
    matrix = random_matrix(spectrum, 2, least=50)
    values = np.linalg.eigvalsh(matrix.numpy())
    density = cl.spectral_density(Dense(matrix.to(dtype)), probes=16, steps=len(matrix))
    # With all steps, only what rounding leaves open may be counted on either side.
    scale = np.abs(values).max()
    width = math.sqrt(len(matrix)) * float(torch.finfo(dtype).eps) * scale
    assert density.zero_width == pytest.approx(width, rel=0.01)
    surely, perhaps = (values < -3 * width).mean(), (values < 0.3 * width).mean()
    slack = 4 * density.standard_error
    assert surely - slack <= density.negative_mass <= perhaps + slack


def test_zeros_are_not_negative() -> None:
    values = np.concatenate([np.zeros(40), np.linspace(1, 2, 20)])
    for dtype in (torch.float64, torch.float32):
        matrix = matrix_with(values, np.random.default_rng(0)).to(dtype)
        assert cl.spectral_density(Dense(matrix), probes=4, steps=60).negative_mass == 0
    density = cl.spectral_density(Dense(torch.zeros(5, 5)), probes=4)
    assert (density.negative_mass, density.standard_error) == (0, 0)
    assert density.moment(1) == (0, 0)


def test_the_density_integrates_to_one_and_widens_by_its_width() -> None:
    matrix = random_matrix("normal", 1, least=40)
    density = cl.spectral_density(Dense(matrix))
    grid = torch.linspace(-8, 8, 8001)
    for width in (None, 0.05, 0.5):
        heights = density.density(grid, width).numpy()
        assert heights.shape == (8001,)
        assert (heights >= 0).all()
        # The trapezoidal rule on analytic functions that have decayed at both ends is exact to rounding.
        assert np.trapezoid(heights, grid.double().numpy()) == pytest.approx(1, abs=1e-6)
    mean = density.moment(1)[0] / len(matrix)
    variance = density.moment(2)[0] / len(matrix) - mean**2
    heights, points = density.density(grid, 0.5).numpy(), grid.double().numpy()
    assert np.trapezoid(heights * points, points) == pytest.approx(mean, abs=1e-6)
    spread = np.trapezoid(heights * (points - mean) ** 2, points)
    assert spread == pytest.approx(variance + 0.5**2, abs=1e-5)


def test_a_spectrum_of_one_point_has_a_density_too() -> None:
    density = cl.spectral_density(Dense(3 * torch.eye(4, dtype=torch.float64)), probes=2)
    heights = density.density(torch.tensor([3.0, 30.0]))
    assert bool(torch.isfinite(heights).all())
    assert heights[0] > heights[1]
    with pytest.raises(MisuseError, match="width"):
        density.density(torch.zeros(1), width=0.0)
    with pytest.raises(MisuseError, match="width"):
        density.density(torch.zeros(1), width=math.nan)


def test_runs_of_unequal_length_count_alike() -> None:
    matrix = random_matrix("normal", 2, least=40)
    operator, generator = Dense(matrix), torch.Generator().manual_seed(0)
    runs = []
    for steps in (3, 20, 11):
        process = Lanczos(operator, random_unit_vector(operator, generator), 30)
        process.extend(steps)
        runs.append(process)
    with Meter(operator) as meter:
        density = density_of(runs, meter)
    assert density.nodes.shape == (3, 20)
    np.testing.assert_allclose(density.weights.sum(dim=1).numpy(), 1 / 3, rtol=1e-12)
    forms = [float(process.coefficients()[0][0]) for process in runs]  # vᵀA v
    assert density.moment(1)[0] == pytest.approx(len(matrix) * sum(forms) / 3, rel=1e-10)
    low, high = np.linalg.eigvalsh(matrix.numpy())[[0, -1]]
    assert low - 1e-12 <= float(density.nodes.min())
    assert float(density.nodes.max()) <= high + 1e-12


def test_one_basis_at_a_time_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Lanczos] = weakref.WeakSet()
    most = []

    class Watched(Lanczos):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            alive.add(self)
            most.append(len(alive))

    monkeypatch.setattr("convexlab.curvature.lanczos.Lanczos", Watched)
    cl.spectral_density(Dense(torch.eye(4)), probes=6)
    assert len(most) == 6
    assert max(most) == 1


def test_a_single_probe_has_a_standard_error_and_seeds_decide() -> None:
    matrix = random_matrix("normal", 0, least=30)
    single = cl.spectral_density(Dense(matrix), probes=1, seed=1)
    assert single.standard_error > 0
    # All steps, so that the moments are known: the variance of n vᵀBv for v uniform on the sphere, in closed form.
    (second, error), (fourth, _), n = single.moment(2), single.moment(4), len(matrix)
    assert error == pytest.approx(math.sqrt(2 * (n * fourth - second**2) / (n + 2)), rel=1e-12)
    again, other = (cl.spectral_density(Dense(matrix), probes=1, seed=seed) for seed in (1, 2))
    assert torch.equal(single.weights, again.weights)
    assert not torch.equal(single.weights, other.weights)
    two = cl.spectral_density(Dense(matrix), probes=2, seed=1)
    assert not torch.equal(two.weights[0], two.weights[1])


def test_misuse_and_failure() -> None:
    for options in ({"probes": 0}, {"steps": 0}, {"probes": -1}):
        with pytest.raises(MisuseError, match="at least one"):
            cl.spectral_density(Dense(torch.eye(3)), **options)
    broken: Tensor = torch.full((3, 3), math.nan)
    with pytest.raises(FailureError):
        cl.spectral_density(Dense(broken))

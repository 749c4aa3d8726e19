"""Ends of spectra, bounds, densities, traces and verdicts, against dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from tests.curvature.matrices import SPECTRA, random_matrix
from tests.dense import Dense
from tests.verification.conftest import Record
from tests.verification.problems import small

pytestmark = pytest.mark.verify

EPS = float(np.finfo(np.float64).eps)
NETWORKS = ("vit-mlp, width 4", "vit-nomlp-wkewq-wvwo, width 4", "vgg5-max-relu, ends")
every_network = pytest.mark.parametrize("name", NETWORKS)


@every_network
def test_the_ends_of_a_networks_spectrum(record: Record, name: str) -> None:
    problem = small(name)
    values = np.linalg.eigvalsh(problem.dense()[2].numpy())
    scale = np.abs(values).max()
    found = cl.extreme_eigenvalues(problem.objective.hessian(), tolerance=1e-15)
    # As many steps as dimensions, a basis that is orthonormal to n ε, and products as exact as in test_products.
    bound = (1e3 + len(values)) * EPS
    record(f"smallest eigenvalue, {name}", "numpy eigvalsh", abs(found.smallest - values[0]) / scale, bound)
    record(f"largest eigenvalue, {name}", "numpy eigvalsh", abs(found.largest - values[-1]) / scale, bound)
    some = cl.extreme_eigenvalues(problem.objective.hessian(), tolerance=0.05)
    error = max(some.smallest - values[0], values[-1] - some.largest) / (some.largest - some.smallest)
    record(f"both ends in {some.steps} steps, {name}", "numpy eigvalsh", error, 0.05)


def test_bounds_on_hard_spectra(record: Record) -> None:
    for confidence, steps in ((0.999, 25), (0.5, 12)):
        failures, total = 0, 0
        for spectrum in SPECTRA:
            for seed in range(22):
                matrix = random_matrix(spectrum, 100 + seed, least=40)
                values = np.linalg.eigvalsh(matrix.numpy())
                found = cl.extreme_eigenvalues(Dense(matrix), max_steps=steps, confidence=confidence, seed=seed)
                failures += not (found.smallest_lower_bound <= values[0] and values[-1] <= found.largest_upper_bound)
                total += 1
        what = f"bounds of {100 * confidence:g} % that fail, {total} matrices, {steps} steps"
        record(what, "numpy eigvalsh", failures / total, 1 - confidence)


@every_network
def test_moments_of_the_density(record: Record, name: str) -> None:
    problem = small(name)
    hessian = problem.dense()[2]
    density = cl.spectral_density(problem.objective.hessian(), probes=40, steps=4)
    for power in (1, 2, 3):
        exact = float(torch.linalg.matrix_power(hessian, power).trace())
        estimate, error = density.moment(power)
        record(f"trace H^{power} by density, {name} (standard errors)", "dense", abs(estimate - exact) / error, 3)


@every_network
def test_negative_mass_and_trace(record: Record, name: str) -> None:
    problem = small(name)
    hessian = problem.dense()[2]
    values = np.linalg.eigvalsh(hessian.numpy())
    density = cl.spectral_density(Dense(hessian), probes=16, steps=len(values))
    exact = float((values < -density.zero_width).mean())
    error = abs(density.negative_mass - exact) / density.standard_error
    record(f"negative mass, {name} (standard errors)", "numpy eigvalsh", error, 4)
    for method in ("hutchinson", "hutch++", "xtrace"):
        found = cl.trace(problem.objective.hessian(), method=method, samples=60)
        error = abs(found.value - float(hessian.trace())) / found.standard_error
        record(f"trace by {method}, {name} (standard errors)", "dense", error, 4)


@every_network
def test_a_witness(record: Record, name: str) -> None:
    problem = small(name)
    hessian = problem.dense()[2]
    verdict = cl.convexity_verdict(problem.objective)
    assert verdict.kind == "non-convex"
    assert verdict.witness is not None
    exact = float(verdict.witness @ hessian @ verdict.witness)
    assert exact < -verdict.rounding_floor
    record(f"curvature along the witness, {name}", "dense", abs(verdict.curvature - exact), verdict.rounding_floor)


def _convex(seed: int) -> tuple[nn.Module, Tensor, Tensor, nn.Module]:
    """Half of them linear, half softmax regressions, of deficient rank."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = torch.randn(20, 30, generator=generator)
    if seed % 2:
        return nn.Linear(30, 2), x, torch.randn(20, 2, generator=generator), nn.MSELoss()
    return nn.Linear(30, 3), x, torch.randint(0, 3, (20,), generator=generator), nn.CrossEntropyLoss()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convex_losses(record: Record, dtype: torch.dtype) -> None:
    claims = []
    for seed in range(20):
        model, x, y, criterion = _convex(seed)
        claims.append(cl.convexity_verdict(cl.Objective(model, [(x, y)], criterion, dtype=dtype), seed=seed).kind)
    name = str(dtype).removeprefix("torch.")
    record(f"20 convex losses called non-convex, {name}", "convexity", claims.count("non-convex"), 0)
    record(f"20 convex losses left unresolved, {name}", "convexity", claims.count("unresolved"), 0)


def test_a_curvature_that_is_known(record: Record) -> None:
    """(tanh p - 1)² has curvature 2 (1 - t²)² - 4 t (1 - t²) (t - 1), t = tanh p."""
    model = cl.build_model("tanh-1d")
    objective = cl.Objective(model, [(torch.ones(1, 1), torch.ones(1, 1))], nn.MSELoss(), dtype=torch.float64)
    errors = []
    for p in np.linspace(-2, 2, 9):
        with torch.no_grad():
            model.p.fill_(float(p))
        t = math.tanh(model.p.item())
        exact = 2 * (1 - t**2) ** 2 - 4 * t * (1 - t**2) * (t - 1)
        verdict = cl.convexity_verdict(objective)
        errors.append(abs(verdict.curvature - exact))
        assert verdict.kind == ("non-convex" if exact < 0 else "no-negative-curvature")
    record("curvature of tanh-1d at 9 points", "closed form", max(errors), 100 * EPS)

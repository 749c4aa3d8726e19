"""Intervals at 95 % against dense spectra: they have to hold in 90 to 99 of 100 cases.

`networks.json` holds all eigenvalues of the float64 Hessians of networks of 193 to 398 parameters, to four digits: one
or two hidden layers of 8 to 12 units, trained by Adam on 500 scikit-learn digits of 4 × 4 pixels, or on a sine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import beta, t
from torch import Tensor

import convexlab as cl
from convexlab.curvature import Lanczos
from convexlab.curvature.density import density_of
from convexlab.curvature.effort import Meter
from convexlab.curvature.intervals import share_interval, student_interval
from convexlab.curvature.lanczos import random_run, random_unit_vector
from convexlab.curvature.quadrature import share_below
from convexlab.curvature.trace import trace_beside
from convexlab.errors import MisuseError
from tests.curvature.matrices import SPECTRA, random_matrix
from tests.dense import Dense
from tests.slowly import mostly_slow

NETWORKS = {
    name: np.array(values) for name, values in json.loads(Path(__file__).with_name("networks.json").read_text()).items()
}
SEEDS = 40
CASES = SEEDS * len(NETWORKS)


def _cases() -> Iterator[tuple[Dense, np.ndarray, int]]:
    """Yield operators with randomly rotated eigenvectors, their eigenvalues, and a seed."""
    for values in NETWORKS.values():
        basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((len(values), len(values))))
        operator = Dense(torch.from_numpy((basis * values) @ basis.T))
        for seed in range(SEEDS):
            yield operator, values, seed


def _holds(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


@pytest.mark.parametrize(("probes", "steps"), mostly_slow([(5, 3), (1, 3), (2, 3)], quick=1))
def test_intervals_of_moments_hold(probes: int, steps: int) -> None:
    held = beyond = 0
    for operator, values, seed in _cases():
        density = cl.spectral_density(operator, probes=probes, steps=steps, seed=seed)
        held += _holds(density.moment_interval(1), values.sum())
        estimate, error = density.moment(1)
        beyond += abs(estimate - values.sum()) > 4 * error
    # With one probe or two, intervals are too wide rather than too narrow.
    assert 0.9 * CASES <= held <= (0.99 if probes > 2 else 1.0) * CASES
    assert beyond <= 0.05 * CASES


def test_intervals_of_the_negative_mass_hold_and_quadrature_is_counted_in() -> None:
    resolved = coarse = gauss_alone = 0
    for operator, values, seed in _cases():
        threshold = -1e-3 * np.abs(values).max()
        truth = (values < threshold).mean()
        process = Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(seed)), 80)
        with Meter(operator) as meter:
            process.extend(12)
            short = density_of([process], meter)
            process.extend(68)
            density = density_of([process], meter)
        resolved += _holds(density.mass_interval(threshold), truth)
        coarse += _holds(short.mass_interval(threshold), truth)
        mass = float(short.weights[0] @ (short.nodes[0] < threshold).double())
        gauss_alone += _holds(share_interval(mass, mass, size=len(values), probes=1, level=0.95), truth)
    assert 0.9 * CASES <= resolved <= 0.99 * CASES
    # After 12 steps quadrature's error is the larger one, and what bounds it for certain holds more often than 95 %.
    assert coarse >= 0.95 * CASES
    assert gauss_alone < 0.8 * CASES


@pytest.mark.parametrize(
    ("method", "samples", "most"),
    mostly_slow([("hutchinson", 16, 0.99), ("hutch++", 36, 0.99), ("xtrace", 16, 1.0)], quick=1),
)
def test_intervals_of_the_trace_hold(method: str, samples: int, most: float) -> None:
    """XTrace's error is the jackknife's, which is too large on average."""
    held = 0
    for operator, values, seed in _cases():
        estimate = cl.trace(operator, method=method, samples=samples, seed=seed)
        held += _holds(estimate.interval(), values.sum())
    assert 0.9 * CASES <= held <= most * CASES


def test_intervals_of_the_trace_beside_a_run_hold_and_are_narrow() -> None:
    held, widths = 0, []
    for operator, values, seed in _cases():
        generator = torch.Generator().manual_seed(seed)
        process = random_run(operator, generator, 12)
        estimate, error, degrees = trace_beside(process, 8, generator)
        assert process.products == 20
        assert degrees == 7
        interval = student_interval(estimate, error, degrees, 0.95)
        held += _holds(interval, values.sum())
        widths.append((interval[1] - interval[0]) / values.sum())
    assert 0.9 * CASES <= held <= 0.99 * CASES
    # Twenty products by Hutchinson alone leave ± 40 %.
    assert np.median(widths) / 2 < 0.1


# The parts.


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_measure_of_a_start_lies_within_its_bracket(spectrum: str) -> None:
    """For any start and threshold; squares of a start's parts along dense eigenvectors are its measure."""
    matrix = random_matrix(spectrum, 3, least=40)
    values, vectors = np.linalg.eigh(matrix.numpy())
    widths = []
    for steps in (1, 3, 9, 25):
        generator = torch.Generator().manual_seed(steps)
        process = random_run(Dense(matrix), generator, steps)
        start = process.ritz_vectors(np.eye(process.steps)[:, :1])[:, 0].numpy()
        squares = (vectors.T @ start) ** 2
        diagonal, off_diagonal = process.coefficients()
        off_diagonal[-1] *= not process.invariant
        slack = 1e-7 * np.abs(values).max()  # Rounding moves eigenvalues of clusters across a threshold.
        for threshold in [*np.linspace(values[0] - 1, values[-1] + 1, 23), float(process.ritz()[0][0])]:
            least, most = share_below(diagonal, off_diagonal, threshold)
            assert 0 <= least <= most <= 1
            assert least <= squares[values < threshold + slack].sum() + 1e-6
            assert most >= squares[values < threshold - slack].sum() - 1e-6
            widths.append(most - least)
    assert min(widths) < 1e-6 < max(widths)


def test_a_bracket_is_as_sharp_as_can_be_in_closed_form() -> None:
    """One step from v: mean m and variance s² are known, and Chebyshev's inequality by Cantelli is sharp."""
    mean, spread = 0.5, 2.0
    for distance in (1.0, 3.0):
        beyond = spread**2 / (spread**2 + distance**2)
        below = share_below(np.array([mean]), np.array([spread]), mean - distance)
        above = share_below(np.array([mean]), np.array([spread]), mean + distance)
        assert below == pytest.approx((0.0, beyond), abs=1e-14)
        assert above == pytest.approx((1 - beyond, 1.0), abs=1e-14)
    assert share_below(np.array([mean]), np.array([0.0]), 0.6) == (1.0, 1.0)
    assert share_below(np.array([0.0]), np.array([0.0]), 0.0) == (0.0, 0.0)
    assert share_below(np.array([0.0]), np.array([0.0]), 0.1) == (1.0, 1.0)


def test_a_share_is_what_makes_what_was_seen_unlikely() -> None:
    size, probes, seen = 100, 3, 0.2
    low, high = share_interval(seen, seen, size=size, probes=probes, level=0.9)
    concentration = probes * (size / 2 + 1) - 1
    assert beta.sf(seen, low * concentration, (1 - low) * concentration) == pytest.approx(0.05, rel=1e-6)
    assert beta.cdf(seen, high * concentration, (1 - high) * concentration) == pytest.approx(0.05, rel=1e-6)
    wider = share_interval(0.1, 0.3, size=size, probes=probes, level=0.9)
    assert wider[0] < low < high < wider[1]


@pytest.mark.parametrize("seen", [0.0, 1.0])
def test_nothing_and_everything_are_shares_too(seen: float) -> None:
    """A random start has a part along every eigenvector: where it has none below, nothing is below."""
    assert share_interval(seen, seen, size=50, probes=2, level=0.95) == (seen, seen)
    assert share_interval(0.0, 1.0, size=50, probes=2, level=0.95) == (0.0, 1.0)


def test_student() -> None:
    assert student_interval(3.0, 2.0, 7, 0.9) == pytest.approx((3 - 2 * t.ppf(0.95, 7), 3 + 2 * t.ppf(0.95, 7)))
    assert student_interval(3.0, 0.0, math.inf, 0.95) == (3.0, 3.0)
    assert student_interval(3.0, 0.0, 0, 0.95) == (3.0, 3.0)
    assert all(map(math.isnan, student_interval(3.0, math.nan, 0, 0.95)))


def test_moments_beyond_the_quadrature_have_no_interval() -> None:
    matrix = random_matrix("normal", 0, least=40)
    density = cl.spectral_density(Dense(matrix), probes=2, steps=3)
    assert not math.isnan(density.moment(2)[1])  # Exact up to the power 5.
    assert math.isnan(density.moment(3)[1])
    assert not any(map(math.isnan, density.moment_interval(1)))
    assert all(map(math.isnan, density.moment_interval(2)))
    whole = cl.spectral_density(Dense(matrix), probes=2, steps=len(matrix))
    assert not any(map(math.isnan, whole.moment_interval(9)))


def _density(matrix: Tensor) -> cl.SpectralDensity:
    return cl.spectral_density(Dense(matrix), steps=4)


@pytest.mark.parametrize(
    "interval",
    [
        lambda level: _density(torch.eye(3)).interval(level),
        lambda level: _density(torch.eye(3)).moment_interval(1, level),
        lambda level: cl.trace(Dense(torch.eye(40)), samples=12).interval(level),
    ],
)
@pytest.mark.parametrize("level", [0.0, 1.0, 95, math.nan])
def test_misuse(interval: Callable[[float], object], level: float) -> None:
    with pytest.raises(MisuseError, match="level of an interval between 0 and 1"):
        interval(level)

"""Both ends of a spectrum against LAPACK, and bounds against the truth."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import Tensor

import convexlab as cl
from convexlab.curvature.bounds import steps_for
from convexlab.errors import FailureError, MisuseError
from tests.curvature.matrices import SPECTRA, matrix_with, random_matrix
from tests.dense import Dense
from tests.slowly import mostly_slow, seeds

every_spectrum = pytest.mark.parametrize("spectrum", SPECTRA)
SEEDS = 24  # With eleven spectra, 264 matrices.


def _truth(matrix: Tensor) -> np.ndarray:
    return np.linalg.eigvalsh(matrix.double().numpy())


def _rounding(matrix: Tensor) -> float:
    """What n products of n terms each may be off by together, here and in LAPACK."""
    return 2 * math.sqrt(len(matrix)) * float(torch.finfo(matrix.dtype).eps) * float(np.abs(_truth(matrix)).max())


@seeds(SEEDS, quick=4)
@every_spectrum
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_truth_is_between_bound_and_ritz_value(spectrum: str, dtype: torch.dtype, seeds: range) -> None:
    for seed in seeds:
        matrix = random_matrix(spectrum, seed).to(dtype)
        truth, rounding = _truth(matrix), _rounding(matrix)
        # Few steps, enough steps, and all.
        for max_steps in (2 + seed, None):
            extremes = cl.extreme_eigenvalues(Dense(matrix), max_steps=max_steps, seed=seed)
            # The bounds allow for their own rounding; LAPACK's is on top.
            assert extremes.smallest_lower_bound - rounding / 2 <= truth[0] <= extremes.smallest + rounding
            assert extremes.largest - rounding <= truth[-1] <= extremes.largest_upper_bound + rounding / 2
            assert extremes.steps <= min(len(matrix), max_steps or len(matrix))
            spread = extremes.largest - extremes.smallest
            if extremes.converged:
                assert truth[0] >= extremes.smallest - 0.01 * spread - rounding
                assert truth[-1] <= extremes.largest + 0.01 * spread + rounding
                # The bounds are worth something: no wider than asked for, but for rounding and what it costs to find
                # both ends where the space ended early (a start's part of 1e-3 / √n, errors of ε).
                allowed = 0.01 * spread + 2 * rounding + 1e5 * float(np.finfo(np.float64).eps) * np.abs(truth).max()
                assert extremes.smallest - extremes.smallest_lower_bound <= allowed
                assert extremes.largest_upper_bound - extremes.largest <= allowed


@pytest.mark.parametrize("confidence", mostly_slow([0.5, 0.2, 0.9], quick=1))
def test_a_bound_holds_as_often_as_it_says(confidence: float) -> None:
    """At low confidence and after few steps, where it is of any use and the theory is nearest to being sharp."""
    failures, finite, total = 0, 0, 0
    for spectrum in SPECTRA:
        for seed in range(SEEDS):
            matrix = random_matrix(spectrum, seed, least=40)
            truth = _truth(matrix)
            extremes = cl.extreme_eigenvalues(Dense(matrix), max_steps=12, confidence=confidence, seed=1000 + seed)
            total += 1
            finite += math.isfinite(extremes.smallest_lower_bound)
            failures += not (extremes.smallest_lower_bound <= truth[0] and truth[-1] <= extremes.largest_upper_bound)
    assert total >= 200
    assert finite > total / 2
    assert failures <= (1 - confidence) * total


@pytest.mark.parametrize("spread", mostly_slow([1e-2, 1e-1], quick=1))
def test_a_bound_holds_for_the_matrix_on_which_lanczos_is_slowest(spread: float) -> None:
    """Half the spectrum at each end but for one eigenvalue a little beyond: over many starts on one matrix."""
    values = np.concatenate([[-spread], np.cos(np.pi * (np.arange(60) + 0.5) / 60) / 2 + 0.5])
    operator = Dense(matrix_with(values, np.random.default_rng(0)))
    for confidence in (0.2, 0.5, 0.9):
        bounds = [
            cl.extreme_eigenvalues(operator, max_steps=10, confidence=confidence, seed=seed).smallest_lower_bound
            for seed in range(200)
        ]
        assert sum(bound > -spread for bound in bounds) <= (1 - confidence) * 200


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_space_that_seems_invariant_may_have_missed_an_eigenvalue(dtype: torch.dtype) -> None:
    """One eigenvalue so near the others that a start's part along it is lost in rounding after the first step."""
    eps = float(torch.finfo(dtype).eps)
    early = 0
    for seed in range(40):
        values = np.where(np.arange(50) == 0, 1 - 50 * eps, 1.0)
        matrix = matrix_with(values, np.random.default_rng(seed)).to(dtype)
        truth = _truth(matrix)
        extremes = cl.extreme_eigenvalues(Dense(matrix), seed=seed)
        early += extremes.steps < 10
        assert extremes.smallest_lower_bound <= truth[0] + math.sqrt(50) * float(np.finfo(np.float64).eps)
    assert early >= 20 or dtype == torch.float32


@every_spectrum
def test_residuals_are_the_true_ones_and_prove_an_eigenvalue_near(spectrum: str) -> None:
    for seed in range(4):
        matrix = random_matrix(spectrum, seed, least=20)
        truth, rounding = _truth(matrix), _rounding(matrix)
        extremes = cl.extreme_eigenvalues(Dense(matrix), max_steps=6, seed=seed)
        for value, vector, residual in (
            (extremes.smallest, extremes.smallest_vector, extremes.smallest_residual),
            (extremes.largest, extremes.largest_vector, extremes.largest_residual),
        ):
            v = vector.numpy()
            exact = np.linalg.norm(matrix.numpy() @ v - value * v)
            assert np.linalg.norm(v) == pytest.approx(1, abs=1e-14), f"seed {seed}"
            assert residual == pytest.approx(exact, abs=rounding), f"seed {seed}"
            assert np.abs(truth - value).min() <= residual + rounding, f"seed {seed}"


@every_spectrum
def test_all_steps_give_both_ends_exactly(spectrum: str) -> None:
    for seed in range(4):
        matrix = random_matrix(spectrum, seed, least=1)
        truth = _truth(matrix)
        extremes = cl.extreme_eigenvalues(Dense(matrix), tolerance=1e-9, seed=seed)
        scale = np.abs(truth).max()
        assert extremes.converged, f"seed {seed}"
        ends = pytest.approx((truth[0], truth[-1]), abs=1e-8 * scale)
        assert (extremes.smallest, extremes.largest) == ends, f"seed {seed}"
        assert max(extremes.smallest_residual, extremes.largest_residual) <= 1e-8 * scale, f"seed {seed}"
        assert extremes.smallest_lower_bound >= truth[0] - 1e-8 * scale, f"seed {seed}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([-3.0], (-3, -3)),
        ([0.0], (0, 0)),
        ([1.0, -2.0], (-2, 1)),
        ([4.0, 4.0], (4, 4)),
        ([0.0] * 30, (0, 0)),
        ([1.0] * 30, (1, 1)),
        ([-2.0] * 30, (-2, -2)),
        ([0.0] * 29 + [1.0], (0, 1)),
        ([0.0] * 29 + [-1.0], (-1, 0)),
    ],
)
def test_matrices_that_are_hardly_any(values: list[float], ends: tuple[float, float], dtype: torch.dtype) -> None:
    extremes = cl.extreme_eigenvalues(Dense(torch.diag(torch.tensor(values, dtype=dtype))))
    # √n ε where all is found; where the space ended early, ε over the part of a start that one in 2000 falls below.
    slack = 10 * float(torch.finfo(dtype).eps) + 1e5 * float(np.finfo(np.float64).eps)
    slack *= max(map(abs, values))
    assert (extremes.smallest, extremes.largest) == pytest.approx(ends, abs=slack)
    assert ends[0] - slack <= extremes.smallest_lower_bound <= ends[0]
    assert ends[1] <= extremes.largest_upper_bound <= ends[1] + slack
    assert extremes.converged


def test_too_few_steps_are_not_called_converged_and_claim_next_to_nothing() -> None:
    matrix = random_matrix("isolated negative", 0, least=60)
    single = cl.extreme_eigenvalues(Dense(matrix), max_steps=1)
    assert single.steps == 1
    assert not single.converged
    assert single.smallest == pytest.approx(single.largest)
    # Nothing but the size of A v is known: the start's part along an eigenvector may be one in 10,000.
    assert single.smallest_lower_bound < -1e3
    assert single.largest_upper_bound > 1e3
    widths = []
    for steps in (10, 14, 18, 22):
        extremes = cl.extreme_eigenvalues(Dense(matrix), max_steps=steps)
        assert not extremes.converged
        widths.append(extremes.smallest - extremes.smallest_lower_bound)
    assert widths == sorted(widths, reverse=True)
    assert cl.extreme_eigenvalues(Dense(matrix), max_steps=1000).converged


@pytest.mark.parametrize("tolerance", [0.1, 0.03, 0.01])
def test_no_more_steps_are_made_than_the_tolerance_needs(tolerance: float) -> None:
    calls: Counter[str] = Counter()

    class Counting(Dense):
        def matvec(self, v: Tensor) -> Tensor:
            calls["products"] += 1
            return super().matvec(v)

    extremes = cl.extreme_eigenvalues(Counting(torch.diag(torch.linspace(0, 1, 2000).double())), tolerance=tolerance)
    assert extremes.converged
    assert calls["products"] == extremes.steps + 2  # Two for the residuals.
    assert extremes.steps <= steps_for(2000, tolerance, 0.999)
    # A tenth fewer would not have done; it looks more often than that.
    fewer = cl.extreme_eigenvalues(
        Counting(torch.diag(torch.linspace(0, 1, 2000).double())),
        tolerance=tolerance,
        max_steps=int(extremes.steps / 1.1) - 1,
    )
    assert not fewer.converged


def test_results_can_be_repeated() -> None:
    matrix = random_matrix("normal", 0, least=50)
    first, second, other = (cl.extreme_eigenvalues(Dense(matrix), max_steps=9, seed=seed) for seed in (1, 1, 2))
    assert first.smallest == second.smallest
    assert torch.equal(first.smallest_vector, second.smallest_vector)
    assert first.smallest != other.smallest
    state = torch.get_rng_state()
    cl.extreme_eigenvalues(Dense(matrix))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(FrozenInstanceError):
        first.smallest = 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_operator_that_is_not_finite_is_a_failure(value: float) -> None:
    matrix = random_matrix("normal", 0, least=10)
    matrix[3, 3] = value
    with pytest.raises(FailureError, match="not finite"):
        cl.extreme_eigenvalues(Dense(matrix))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": 0}, "confidence"),
        ({"confidence": math.nan}, "confidence"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_misuse_is_refused_before_any_product(options: dict[str, float], message: str) -> None:
    class Untouchable(Dense):
        def matvec(self, v: Tensor) -> Tensor:
            raise AssertionError("a product was made")

    with pytest.raises(MisuseError, match=message):
        cl.extreme_eigenvalues(Untouchable(torch.eye(3)), **options)

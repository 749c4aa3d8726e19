"""Bounds from Lanczos polynomials against null vectors by LAPACK, and against spectra that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from convexlab.curvature.bounds import least_overlaps, margins, steps_for
from convexlab.curvature.lanczos import Lanczos
from tests.curvature.matrices import SPECTRA, random_matrix
from tests.dense import Dense
from tests.slowly import seeds

EPS = float(np.finfo(np.float64).eps)


def _tridiagonal(seed: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    return dice.standard_normal(steps), dice.uniform(0.1, 2, steps)


def _ritz(diagonal: np.ndarray, off_diagonal: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off_diagonal[:-1], 1) + np.diag(off_diagonal[:-1], -1))


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
@pytest.mark.parametrize("overlap", [0.3, 1e-2, 1e-5])
def test_at_the_margin_an_eigenvector_has_just_the_overlap(steps: int, overlap: float) -> None:
    """Its parts along the basis are the null vector of (T - λ, β e)."""
    for seed in range(10):
        diagonal, off_diagonal = _tridiagonal(seed, steps)
        values = _ritz(diagonal, off_diagonal)
        below, above = margins(diagonal, off_diagonal, (overlap, overlap), precision=EPS)
        for margin, point in ((below, values[0] - below), (above, values[-1] + above)):
            square = np.diag(diagonal - point) + np.diag(off_diagonal[:-1], 1) + np.diag(off_diagonal[:-1], -1)
            last = np.zeros((steps, 1))
            last[-1] = off_diagonal[-1]
            null = np.linalg.svd(np.hstack([square, last]))[2][-1]
            # The margin is rounded up by 1e-6, and the overlap falls with its power k + 1 at most.
            assert abs(null[0]) <= overlap + 100 * EPS
            # Where the overlap is less already at the Ritz value, so large a one is not to be had beyond.
            if margin > 1e-12:
                assert abs(null[0]) == pytest.approx(overlap, rel=1e-5 * (steps + 1), abs=100 * EPS)


@seeds(20, quick=4)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_margin_always_holds_for_the_overlap_that_the_start_has(spectrum: str, seeds: range) -> None:
    """No probability is left: where the overlap is known, the bound is a theorem."""
    for seed in seeds:
        matrix = random_matrix(spectrum, seed, least=30)
        eigenvalues, eigenvectors = np.linalg.eigh(matrix.numpy())
        start = np.random.default_rng(seed).standard_normal(len(matrix))
        start /= np.linalg.norm(start)
        overlaps = tuple(np.abs(eigenvectors[:, [0, -1]].T @ start))
        process = Lanczos(Dense(matrix), torch.from_numpy(start), len(matrix))
        # Ours and LAPACK's.
        rounding = 4 * np.sqrt(len(matrix)) * EPS * np.abs(eigenvalues).max()
        while not process.exhausted:
            process.extend(1)
            values = process.ritz()[0]
            below, above = margins(*process.coefficients(), overlaps, precision=process.precision)
            assert values[0] - below <= eigenvalues[0] + rounding
            assert eigenvalues[-1] <= values[-1] + above + rounding


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000, 10**6])
@pytest.mark.parametrize("confidence", [0.1, 0.9, 0.999])
def test_the_least_overlap_is_exceeded_with_the_confidence(size: int, confidence: float) -> None:
    overlaps = least_overlaps(size, confidence)
    if size == 1:
        assert max(overlaps) < 1  # The start is the eigenvector.
        return
    # The square of one coordinate on the sphere is Beta(½, (n - 1) / 2).
    missed = sum(stats.beta(0.5, (size - 1) / 2).cdf(overlap**2) for overlap in overlaps)
    assert missed <= 1 - confidence
    if size >= 1000:
        # The density is flat there: within 10 % even where nine of ten may miss.
        assert missed >= 0.9 * (1 - confidence)


@given(st.integers(0, 10**6), st.integers(2, 10**9), st.floats(1e-3, 0.5), st.floats(0.5, 0.9999))
def test_after_the_steps_foretold_every_margin_is_within_tolerance(
    seed: int, size: int, tolerance: float, confidence: float
) -> None:
    steps = steps_for(size, tolerance, confidence)
    assert 1 <= steps <= size
    if not 1 < steps < min(size, 120):
        return
    diagonal, off_diagonal = _tridiagonal(seed, steps)
    values = _ritz(diagonal, off_diagonal)
    allowed = tolerance * (values[-1] - values[0]) * (1 + 1e-5)
    assert max(margins(diagonal, off_diagonal, least_overlaps(size, confidence), precision=EPS)) <= allowed


def test_few_steps_fewer_than_foretold_are_too_few_for_the_slowest_spectrum() -> None:
    """On the zeros of a Chebyshev polynomial, equally weighted, nothing is better than the polynomial itself."""
    size, tolerance, confidence = 10**5, 1e-2, 0.999
    steps = steps_for(size, tolerance, confidence) - 8
    # The Jacobi matrix of the first kind's weight: the spectrum is [-1, 1].
    diagonal, off_diagonal = np.zeros(steps), np.full(steps, 0.5)
    off_diagonal[0] = np.sqrt(0.5)
    below, above = margins(diagonal, off_diagonal, least_overlaps(size, confidence), precision=EPS)
    assert below < above
    assert above > tolerance * 2


@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(1e-6, 1e6))
def test_margins_scale_and_mirror_with_the_spectrum(seed: int, steps: int, scale: float) -> None:
    diagonal, off_diagonal = _tridiagonal(seed, steps)
    below, above = margins(diagonal, off_diagonal, (1e-4, 1e-4), precision=EPS)
    # A margin below 1e-12 of the scale is rounding.
    size = float(np.abs(_ritz(diagonal, off_diagonal)).max())
    close = {"rel": 1e-4, "abs": 1e-12 * size * scale}
    assert margins(scale * diagonal, scale * off_diagonal, (1e-4, 1e-4), precision=EPS) == (
        pytest.approx(scale * below, **close),
        pytest.approx(scale * above, **close),
    )
    assert margins(-diagonal, off_diagonal, (1e-4, 1e-4), precision=EPS) == (
        pytest.approx(above, rel=1e-4, abs=1e-12 * size),
        pytest.approx(below, rel=1e-4, abs=1e-12 * size),
    )


def test_a_space_without_extent_and_a_coupling_of_zero_have_no_margin_to_speak_of() -> None:
    assert margins(np.zeros(3), np.zeros(3), (1e-4, 1e-4), precision=EPS) == (0, 0)
    below, above = margins(np.array([1.0, 2.0]), np.array([0.5, 0.0]), (1e-4, 1e-4), precision=EPS)
    assert 0 < max(below, above) < 1e-10

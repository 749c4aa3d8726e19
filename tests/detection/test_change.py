"""Change points, unimodal fits and plateaus: against scikit-learn's isotonic regression, by hand, and on noise."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from convexlab import Detector, MisuseError
from convexlab.detection import GradientNormChange, LossPlateau, UnimodalNorm
from convexlab.detection.change import _blocks, _residuals
from tests.detection.test_peak import LARGE_BATCH, SMALL_BATCH

quick = settings(deadline=None, max_examples=50)


def fires_at(detector: Detector, norms: Sequence[float], losses: Sequence[float] | None = None) -> int | None:
    losses = losses or [1.0 / epoch for epoch in range(1, len(norms) + 1)]
    for epoch, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        if detector.update(loss=loss, gradient_norm=norm):
            return epoch
    return None


# Unimodal fits.


@quick
@given(st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=30))
def test_every_prefix_is_fitted_as_scikit_learn_does(values: list[float]) -> None:
    for end, residual in enumerate(_residuals(values), start=1):
        prefix = np.array(values[:end])
        fit = isotonic_regression(prefix)
        assert residual == pytest.approx(float(((prefix - fit) ** 2).sum()), abs=1e-10)
    levels = np.concatenate([[mean] * length for mean, length in _blocks(values)])
    np.testing.assert_allclose(levels, isotonic_regression(np.array(values)), atol=1e-12)


def unimodal_in_hindsight(norms: Sequence[float], losses: Sequence[float], factor: float, threshold: float) -> bool:
    """The rule on a whole curve, by scikit-learn and by trying every split."""
    logs = np.log([norm for _, norm in sorted(zip(losses, norms, strict=True), reverse=True)])
    # The transient ends at the least value before the largest rise.
    begin = max(
        range(len(logs)), key=lambda low: max(logs[low:]) - logs[low] if logs[low] == min(logs[: low + 1]) else -1
    )
    logs = logs[begin:]
    fits = [
        np.concatenate(
            [
                isotonic_regression(logs[:split]) if split else [],
                isotonic_regression(logs[split:], increasing=False) if split < len(logs) else [],
            ]
        )
        for split in range(len(logs) + 1)
    ]
    split = min(range(len(fits)), key=lambda split: float(((logs - fits[split]) ** 2).sum()))
    if split in (0, len(logs)):
        return False
    fit, noise = fits[split], 1.4826 * np.median(np.abs(np.diff(logs))) / math.sqrt(2.0)
    top = fit.max()
    for level in (fit[0], fit[-1]):
        lengths = [int(np.isclose(fit, height, rtol=0.0, atol=1e-12).sum()) for height in (level, top)]
        error = threshold * noise * math.sqrt(sum(1.0 / length for length in lengths))
        if top - level < max(-math.log(factor), error):
            return False
    return True


@pytest.mark.slow
@settings(quick, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.9), st.floats(1.0, 6.0))
def test_unimodal_norm_is_its_rule(seed: int, factor: float, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    shape = 2.0 * np.sin(np.linspace(0.0, generator.uniform(1.5, 4.0), 25))
    norms = np.exp(shape + 0.3 * generator.standard_normal(25)).tolist()
    losses = np.exp(-np.linspace(0.0, 3.0, 25) + 0.1 * generator.standard_normal(25)).tolist()
    ends = range(5, 26)
    expected = next((end for end in ends if unimodal_in_hindsight(norms[:end], losses[:end], factor, threshold)), None)
    assert fires_at(UnimodalNorm(factor, threshold=threshold, warmup=5), norms, losses) == expected


@pytest.mark.parametrize(
    ("norms", "epoch"),
    [
        ([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], None),  # only rises
        ([32.0, 16.0, 8.0, 4.0, 2.0, 1.0], None),  # only falls
        ([1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 1.0, 1.0], 7),  # steps without noise
        ([9.0, 1.0, 1.0, 4.0, 4.0, 4.0, 1.0, 1.0], 7),  # and from a random head
        ([1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 3.7, 3.7], None),  # above 0.9 of its maximum
        ([0.0] * 8, None),
    ],
)
def test_unimodal_norm_by_hand(norms: list[float], epoch: int | None) -> None:
    assert fires_at(UnimodalNorm(warmup=5), norms) == epoch


def test_unimodal_norm_goes_by_the_loss_not_by_the_epoch() -> None:
    # Sorted by the loss the norms are 1 1 1 4 4 4 1; by the epoch they go up and down, which is all noise.
    norms, losses = [1.0, 4.0, 1.0, 4.0, 1.0, 4.0, 1.0], [1.0, 0.6, 0.9, 0.5, 0.8, 0.4, 0.1]
    assert fires_at(UnimodalNorm(warmup=5), norms, losses) == 7
    assert fires_at(UnimodalNorm(warmup=5), norms) is None


@pytest.mark.parametrize("kind", [GradientNormChange, UnimodalNorm])
def test_few_curves_without_a_peak_fire(kind: type[Detector]) -> None:
    constant = [fires_at(kind(), noisy([1.0] * 60, seed)) for seed in range(40)]
    falling = [fires_at(kind(), noisy([0.9**epoch for epoch in range(60)], seed)) for seed in range(40)]
    # At most 4 % of either, as the docstrings say; six of 40 has a probability of 1e-3 then.
    assert sum(epoch is not None for epoch in constant) <= 5
    assert sum(epoch is not None for epoch in falling) <= 5


@pytest.mark.parametrize(("kind", "least"), [(GradientNormChange, 38), (UnimodalNorm, 27)])
def test_a_rise_and_a_fall_are_found_soon_after_they_are_there(kind: type[Detector], least: int) -> None:
    epochs = [fires_at(kind(), noisy(RISE_AND_FALL, seed)) for seed in range(40)]
    assert sum(epoch is not None and 31 <= epoch <= 33 for epoch in epochs) >= least


# Change points.


def noisy(levels: Sequence[float], seed: int, noise: float = 0.2) -> list[float]:
    generator = random.Random(seed)
    return [level * math.exp(generator.gauss(0.0, noise)) for level in levels]


RISE_AND_FALL = [*[1.0] * 15, *[4.0] * 15, *[1.0] * 15]


def test_change_point_by_hand() -> None:
    # The differences' median is 0.1 in logarithms: noise s = 0.1483 / sqrt(2) = 0.1048, δ = s / 2, λ = 5 s = 0.524.
    up, down = math.exp(0.1), math.exp(2.0)
    curve = [1.0, up, 1.0, up, 1.0, down]
    detector = GradientNormChange(threshold=5.0, warmup=4)
    assert fires_at(detector, curve) is None
    assert detector.reason == "the gradient norm has risen, and no fall stands out from its noise"
    assert detector.update(loss=0.1, gradient_norm=1.0)
    assert detector.reason.startswith("the gradient norm rose and then fell, from 7.39 to 1, by more than its noise")


# The plateau.


@pytest.mark.parametrize(
    ("losses", "epoch"),
    [
        ([1.0, 0.9, 0.8, 0.79, 0.78, 0.77], 6),  # none of three is below 0.76
        ([1.0, 0.96, 0.92, 0.88, 0.84], None),  # below 0.95, then below 0.874
        ([1.0, 1.0, 1.0, 1.0], 4),
        ([1.0, math.nan, 1.0, 1.0, 1.0], 5),
        ([1.0, 2.0, 3.0], None),
    ],
)
def test_plateau_by_hand(losses: list[float], epoch: int | None) -> None:
    assert fires_at(LossPlateau(patience=3), [1.0] * len(losses), losses) == epoch


@pytest.mark.parametrize("curve", [SMALL_BATCH, LARGE_BATCH])
@pytest.mark.parametrize("kind", [GradientNormChange, UnimodalNorm])
def test_recorded_curves_do_not_fire_in_the_transient(kind: type[Detector], curve: list[float]) -> None:
    epoch = fires_at(kind(), curve)
    assert epoch is None or epoch > 3 + curve.index(min(curve[:15]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GradientNormChange(drift=0.0), "expected drift to be a positive number, got 0.0"),
        (lambda: GradientNormChange(threshold=math.inf), "expected threshold to be a positive number, got inf"),
        (lambda: GradientNormChange(warmup=1), "expected warmup of at least 2 epochs, got 1"),
        (lambda: UnimodalNorm(1.0), "expected factor between 0 and 1, got 1.0"),
        (lambda: UnimodalNorm(threshold=0.0), "expected threshold to be a positive number, got 0.0"),
        (lambda: LossPlateau(share=1.0), "expected share between 0 and 1, got 1.0"),
        (lambda: LossPlateau(patience=0), "expected patience of at least 1 epoch, got 0"),
    ],
)
def test_settings_out_of_range(build: object, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        build()  # type: ignore[operator]

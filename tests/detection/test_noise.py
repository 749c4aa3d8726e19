"""The noise-aware detector: by hand, against its rule in hindsight by NumPy and SciPy, and on noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm as normal

from convexlab import MisuseError, NoiseAwarePeak

NAN = math.nan


def fires_at(detector: NoiseAwarePeak, norms: Sequence[float], noises: Sequence[float]) -> int | None:
    for epoch, (norm, noise) in enumerate(zip(norms, noises, strict=True), start=1):
        if detector.update(loss=1.0, gradient_norm=norm, gradient_noise=noise):
            return epoch
    return None


@pytest.mark.parametrize(
    ("window", "norms", "noises", "epoch"),
    [
        # Exact norms: a rise by 1 / 0.9, then a fall by 0.9.
        (5, [1.0, 1.2, 1.0], [0.0] * 3, 3),
        (5, [1.0, 1.1, 0.9], [0.0] * 3, None),
        (5, [1.0, 1.2, 1.09, 1.07], [0.0] * 4, 4),
        (5, [3.0, 2.0, 1.0], [0.0] * 3, None),
        # 0.9 x 2 - 1 = 0.8 against sqrt(0.18² + 0.2²) = 0.269 times z = 1.96 for the rise and 2.64 for the fall: 0.53
        # and 0.71.
        (1, [1.0, 2.0, 1.0], [0.2] * 3, 3),
        # Against 0.336: 0.66 and 0.89, and z only grows.
        (1, [1.0, 2.0, 1.0, 1.0, 1.0], [0.25] * 5, None),
        # 0.9 x 4 - 1 = 2.6 against 1.076 z, but against 0.538 z for four epochs each: 2.14 at epoch 12, z = 3.98.
        (1, [1.0] * 4 + [4.0] * 4 + [1.0] * 4, [0.8] * 12, None),
        (4, [1.0] * 4 + [4.0] * 4 + [1.0] * 4, [0.8] * 12, 12),
        # A single epoch of great noise does not stand in for a trough, nor hide one.
        (1, [1.0, 0.1, 4.0, 1.0], [0.0, 50.0, 0.0, 0.0], 4),
        # What is not known decides nothing and is not looked at.
        (5, [1.0, 0.1, 1.2, 9.0, 1.0], [0.0, NAN, 0.0, math.inf, 0.0], 5),
        (5, [1.0, 1.2, 0.0, 9.0, 1.0], [0.0, 0.0, 0.0, -1.0, 0.0], 5),
        (5, [0.0, 0.0], [0.0, 0.0], None),
    ],
)
def test_by_hand(window: int, norms: list[float], noises: list[float], epoch: int | None) -> None:
    assert fires_at(NoiseAwarePeak(window=window), norms, noises) == epoch


def in_hindsight(
    norms: Sequence[float], noises: Sequence[float], factor: float, error: float, window: int
) -> list[int]:
    """Every epoch at which there are a < b <= c < it with a rise from a to b and a fall from c to it."""
    ends = range(1, len(norms) + 1)
    parts = [slice(max(0, end - window), end) for end in ends]
    means = [np.average(norms[part], weights=1.0 / np.square(noises[part])) for part in parts]
    errors = [np.sum(1.0 / np.square(noises[part])) ** -0.5 for part in parts]

    def below(low: int, high: int, count: int) -> bool:
        z = normal.isf(error / (count * (count - 1) ** 2))
        return bool(factor * means[high] - means[low] > z * math.sqrt((factor * errors[high]) ** 2 + errors[low] ** 2))

    rises = [b for b in range(1, len(norms)) if any(below(a, b, b + 1) for a in range(b))]
    first = rises[0] if rises else len(norms)
    return [at + 1 for at in range(first + 1, len(norms)) if any(below(at, c, at + 1) for c in range(first, at))]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 0.95), st.floats(1e-3, 0.5), st.integers(1, 6))
def test_it_is_its_rule(seed: int, factor: float, error: float, window: int) -> None:
    generator = np.random.default_rng(seed)
    levels = np.exp(np.sin(np.linspace(0.0, 5.0, 30)))
    noises = levels * generator.uniform(0.02, 0.3, 30)
    norms = np.maximum(levels + noises * generator.standard_normal(30), 1e-3)
    expected = in_hindsight(norms, noises, factor, error, window)
    detector = NoiseAwarePeak(factor, error=error, window=window)
    assert fires_at(detector, norms.tolist(), noises.tolist()) == (expected[0] if expected else None)


def noisy(levels: Sequence[float], seed: int, noise: float) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng(seed)
    errors = noise * np.array(levels)
    return np.maximum(levels + errors * generator.standard_normal(len(levels)), 1e-9).tolist(), errors.tolist()


@pytest.mark.parametrize("levels", [[1.0] * 60, [0.9**epoch for epoch in range(60)]])
@pytest.mark.parametrize("noise", [0.2, 0.4])
def test_noise_alone_does_not_fire(levels: list[float], noise: float) -> None:
    # At most 5 % by construction: seven or more of 40 have a probability of 3e-3.
    assert sum(fires_at(NoiseAwarePeak(), *noisy(levels, seed, noise)) is not None for seed in range(40)) < 7


def test_a_rise_and_a_fall_are_found_soon_after_they_are_there() -> None:
    levels = [*[1.0] * 15, *[4.0] * 15, *[1.0] * 15]
    assert all(fires_at(NoiseAwarePeak(), *noisy(levels, seed, 0.2)) in (31, 32, 33) for seed in range(40))


def test_reasons_name_the_numbers_with_their_errors() -> None:
    detector = NoiseAwarePeak(window=2)
    assert fires_at(detector, [30.0], [NAN]) is None
    assert detector.reason == "the noise of the gradient norm is not known"
    assert fires_at(detector, [10.0, 30.0], [10.0, 5.0]) is None
    assert detector.reason == "no rise of the gradient norm stands out from its noise"
    assert fires_at(detector, [900.0], [0.0]) is None
    assert detector.reason == ("the gradient norm rose from 10 ± 10 to 900 ± 0, and no fall stands out from its noise")
    # Weights 1 and 4: 26 ± 500 / sqrt(5). At the fifth estimate z = 3.23: 722 < 0.9 x 900 - 26.
    assert fires_at(detector, [10.0, 30.0], [500.0, 250.0]) == 2
    assert detector.reason == (
        "the gradient norm rose from 10 ± 10 to 900 ± 0 and fell to 26 ± 224, by more than its noise"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 1.0}, "expected factor between 0 and 1, got 1.0"),
        ({"error": 0.0}, "expected error between 0 and 1, got 0.0"),
        ({"window": 0}, "expected window of at least 1 estimate, got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        NoiseAwarePeak(**settings)

"""The detectors of a gradient norm's peak: on curves worked out by hand, on recorded ones, and on noise."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convexlab import Algorithm1, Detector, GradientNormPeak, MisuseError, SmoothedNormPeak

# Full gradient norms after every epoch of Adam on the digits with vit-mlp: batch 72 and rate 2e-3, 512 and 1e-3.
SMALL_BATCH = [
    *(0.0849, 0.0378, 0.106, 0.0649, 0.234, 0.062, 0.168, 0.292, 0.142),
    *(0.135, 0.0695, 0.112, 0.219, 0.0624, 0.128, 0.0689, 0.0786),
]
LARGE_BATCH = [
    *(0.361, 0.195, 0.124, 0.152, 0.112, 0.0422, 0.0722, 0.0618, 0.043, 0.0252, 0.0333, 0.0386, 0.0297, 0.0189),
    *(0.027, 0.0262, 0.0267, 0.0301, 0.0902, 0.0719, 0.0695, 0.0943, 0.0639, 0.116, 0.112, 0.0694, 0.0765, 0.0773),
    *(0.165, 0.0825, 0.199, 0.0893, 0.144, 0.147, 0.099, 0.159, 0.176, 0.208, 0.153, 0.144),
]
NAN = math.nan

quick = settings(deadline=None, max_examples=50)
norms = st.lists(st.floats(1e-3, 1e3), max_size=40)


def fires_at(detector: Detector, curve: Sequence[float], loss: float = 1.0) -> int | None:
    for epoch, norm in enumerate(curve, start=1):
        if detector.update(loss=loss, gradient_norm=norm):
            assert detector.epoch == epoch
            return epoch
    assert not detector.fired
    return None


def tell(detector: Detector, *curve: float) -> None:
    for norm in curve:
        detector.update(loss=1.0, gradient_norm=norm)


def algorithm_1(curve: Sequence[float], factor: float = 0.9) -> int | None:
    """The pseudocode of the paper, line by line."""
    gn_max = 0.0
    for epoch, gn in enumerate(curve, start=1):
        gn_max = max(gn, gn_max)
        adam = gn > gn_max * factor
        if not adam:
            return epoch
    return None


def smoothed_peak(curve: Sequence[float], factor: float, rise: float, window: int, patience: int) -> int | None:
    """The rule in hindsight, from the whole curve of medians."""
    medians = [statistics.median(curve[max(0, end - window) : end]) for end in range(1, len(curve) + 1)]
    risen = (
        t for t, median in enumerate(medians) if median > min(medians[: t + 1]) and median >= rise * min(medians[:t])
    )
    start = next(risen, len(medians))
    fallen = [median <= factor * max(medians[start : start + k + 1]) for k, median in enumerate(medians[start:])]
    ends = (k for k in range(patience, len(fallen) + 1) if all(fallen[k - patience : k]))
    return next((start + end for end in ends), None)


@pytest.mark.parametrize(
    ("curve", "epoch"),
    [
        ([2.3, 0.06], 2),  # a random head: the collapse at the start is taken for the peak
        ([1.0, 2.0, 3.0, 2.8, 2.6, 9.0], 5),  # 2.8 > 2.7 >= 2.6
        ([1.0, 0.9], 2),  # on the threshold
        ([1.0, math.nextafter(0.9, 1.0)], None),
        ([1.0, 2.0, 4.0, 8.0], None),
        ([1.0, 0.95, 0.92, 0.91], None),  # falls by less
        ([0.5, 1.0, NAN, 0.1], 4),  # a NaN decides nothing
        ([math.inf, 1.0, 0.5], 3),  # an infinity is no largest norm
        ([0.0], 1),  # nothing left to descend
        ([], None),
        (SMALL_BATCH, 2),
        (LARGE_BATCH, 2),
    ],
)
def test_algorithm_1_by_hand(curve: list[float], epoch: int | None) -> None:
    assert fires_at(Algorithm1(), curve) == epoch


@quick
@given(norms, st.floats(0.01, 0.99))
def test_algorithm_1_is_the_printed_one(curve: list[float], factor: float) -> None:
    assert fires_at(Algorithm1(factor), curve) == algorithm_1(curve, factor)


@pytest.mark.parametrize(
    ("settings", "curve", "epoch"),
    [
        # Trough 1, risen at 1.25, peak 3; 2.8 is above 2.7, 2.6 below.
        ({"window": 1, "patience": 1}, [4.0, 2.0, 1.0, 1.2, 1.25, 2.0, 3.0, 2.8, 2.6], 9),
        # Trough 1, peak 2; one epoch below is not two.
        ({"window": 1, "patience": 2}, [1.0, 2.0, 1.0, 2.0, 1.0, 1.0], 6),
        # Medians 1 1 1 1 3 3 3 1.
        ({"window": 3, "patience": 1}, [1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 1.0, 1.0], 8),
        # Single outliers never reach the median.
        ({"window": 3, "patience": 1}, [1.0, 1.0, 1.0, 9.0, 1.0, 1.0, 9.0, 1.0, 1.0, 1.0], None),
        ({"window": 1, "patience": 1, "rise": 3.0}, [1.0, 2.0, 1.0, 2.9, 1.0], None),
        ({"window": 1, "patience": 1, "factor": 0.5}, [1.0, 2.0, 1.1, 0.9], 4),
        # A lower trough later resets what counts as risen: 1.1 is above 1.25 x 0.8.
        ({"window": 1, "patience": 1}, [1.0, 0.8, 1.1, 0.9], 4),
        ({"window": 1, "patience": 1}, [1.0, NAN, 2.0, NAN, 1.0], 5),
        # The default: five epochs, twice in a row.
        ({}, [1.0] * 5 + [4.0] * 5 + [1.0] * 5, 14),  # medians of the falling part: 4 4 1 1
        ({}, [0.0] * 10, None),
        ({"window": 1}, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0], 6),
        ({}, SMALL_BATCH, 11),
        # A false alarm: a dip on the way up, after which the norm doubles. It lasts five epochs, so that more patience
        # than would still see the real fall above in time is needed to sit it out.
        ({}, LARGE_BATCH, 28),
        ({}, [2.3 * 0.7**epoch for epoch in range(60)], None),  # the initial transient alone
    ],
)
def test_gradient_norm_peak_by_hand(settings: dict[str, float], curve: list[float], epoch: int | None) -> None:
    assert fires_at(GradientNormPeak(**settings), curve) == epoch


@quick
@given(norms, st.floats(0.1, 0.99), st.floats(1.01, 3.0), st.integers(1, 6), st.integers(1, 4))
def test_gradient_norm_peak_is_its_rule(
    curve: list[float], factor: float, rise: float, window: int, patience: int
) -> None:
    detector = GradientNormPeak(factor, rise=rise, window=window, patience=patience)
    assert fires_at(detector, curve) == smoothed_peak(curve, factor, rise, window, patience)


@pytest.mark.parametrize(
    ("settings", "curve", "epoch"),
    [
        # At β = 1/2 the mean is (x + 2 x' + 4 x'' + ...) / (1 + 2 + 4 + ...). In logarithms to base 2: 0, 2 and 10 / 7.
        ({}, [1.0, 8.0, 2.0], 3),
        # 0, 2, 2 and 22 / 15: the third is no fall.
        ({}, [1.0, 8.0, 4.0, 2.0], 4),
        ({"patience": 2}, [1.0, 8.0, 4.0, 2.0, 2.0], 5),
        # 2 / 3 is a rise by 1.59, and 2 / 3, 6 / 7, 6 / 15 a fall to 0.73 of the peak.
        ({"rise": 1.58}, [1.0, 2.0, 2.0, 1.0], 4),
        ({"rise": 1.9}, [1.0, 2.0, 2.0, 1.0], None),
        ({"factor": 0.7}, [1.0, 2.0, 2.0, 1.0], None),
        ({}, [1.0, 0.0, 8.0, NAN, 2.0], 5),  # a zero decides nothing
        ({}, [0.0] * 9, None),
        ({}, [8.0, 4.0, 2.0, 1.0, 1.0, 1.0], None),  # only falls
        # One outlier in a constant: 1, 2.52 at once, and 1.49 after it.
        ({}, [1.0, 1.0, 1.0, 1.0, 6.0, 1.0], 6),
    ],
)
def test_smoothed_norm_peak_by_hand(settings: dict[str, float], curve: list[float], epoch: int | None) -> None:
    assert fires_at(SmoothedNormPeak(**{"smoothing": 0.5, "patience": 1} | settings), curve) == epoch


@quick
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.99), st.floats(1.01, 3.0), st.floats(0.1, 0.9), st.integers(1, 4))
def test_smoothed_norm_peak_is_its_rule(seed: int, factor: float, rise: float, smoothing: float, patience: int) -> None:
    generator = np.random.default_rng(seed)
    curve = np.exp(np.sin(np.linspace(0.0, 5.0, 40)) + 0.3 * generator.standard_normal(40))
    ends = range(1, 41)
    means = [np.exp(np.average(np.log(curve[:end]), weights=smoothing ** np.arange(end)[::-1])) for end in ends]
    detector = SmoothedNormPeak(factor, rise=rise, smoothing=smoothing, patience=patience)
    # The smoothed curve's own peak, by the rule that needs no window.
    assert fires_at(detector, curve.tolist()) == smoothed_peak(means, factor, rise, 1, patience)


def test_what_noise_does_to_the_smoothed_norm() -> None:
    # 10 %, 0.5 % and 95 %, as the docstring says: 11 and 3 of 40, or fewer than 32, have a probability below 3e-3 each.
    flat, falling, peak = [1.0] * 60, [0.9**epoch for epoch in range(60)], [*[1.0] * 15, *[4.0] * 15, *[1.0] * 15]
    assert sum(fires_at(SmoothedNormPeak(), noisy(flat, seed)) is not None for seed in range(40)) < 11
    assert sum(fires_at(SmoothedNormPeak(), noisy(falling, seed)) is not None for seed in range(40)) < 3
    assert sum(fires_at(SmoothedNormPeak(), noisy(peak, seed)) in (31, 32, 33) for seed in range(40)) >= 32


def noisy(levels: Sequence[float], seed: int) -> list[float]:
    generator = random.Random(seed)
    return [level * math.exp(generator.gauss(0.0, 0.2)) for level in levels]


@quick
@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60))
def test_a_norm_that_only_falls_is_no_peak(steps: list[float]) -> None:
    curve = [1.0]
    for step in steps:
        curve.append(curve[-1] * math.exp(-step))
    assert fires_at(GradientNormPeak(), curve) is None
    assert fires_at(SmoothedNormPeak(), curve) is None


@quick
@given(st.integers(0, 2**32 - 1))
def test_noise_around_a_constant_is_no_peak_with_a_long_window(seed: int) -> None:
    # Noise of ±10 % keeps every median within 0.9 to 1.1, which is no rise by 1.25.
    generator = random.Random(seed)
    assert fires_at(GradientNormPeak(), [generator.uniform(0.9, 1.1) for _ in range(100)]) is None


def test_a_loss_without_a_number_decides_nothing_either() -> None:
    detector = Algorithm1()
    assert not detector.update(loss=1.0, gradient_norm=1.0)
    assert not detector.update(loss=NAN, gradient_norm=0.1)
    assert detector.update(loss=1.0, gradient_norm=0.1)
    assert detector.epoch == 3


def test_the_decision_is_final() -> None:
    detector = Algorithm1()
    assert fires_at(detector, [2.0, 1.0]) == 2
    reason = detector.reason
    assert detector.update(loss=1.0, gradient_norm=100.0)
    assert (detector.epoch, detector.reason) == (2, reason)


def test_reasons_name_the_numbers() -> None:
    detector = Algorithm1()
    assert detector.reason == "no epoch was seen"
    tell(detector, 2.0, 1.9)
    assert detector.reason == "the gradient norm 1.9 is still above 0.9 of its largest value so far, 2"
    tell(detector, 1.0)
    assert detector.reason == "the gradient norm 1 fell to 0.9 of its largest value so far, 2"
    peak = GradientNormPeak(window=1, patience=2)
    tell(peak, 3.0, 1.0)
    assert peak.reason == "the gradient norm has not risen by a factor of 1.25 from its trough, 1"
    tell(peak, 4.0, 2.0)
    assert peak.reason == "the gradient norm rose from a trough of 1 to a peak of 4 and has not stayed below 0.9 of it"
    tell(peak, 2.0)
    assert peak.reason.startswith("the gradient norm rose from a trough of 1 to a peak of 4 and fell to 2, below 0.9")


@pytest.mark.parametrize("factor", [0.0, 1.0, -0.5, 2.0, NAN])
@pytest.mark.parametrize("kind", [Algorithm1, GradientNormPeak, SmoothedNormPeak])
def test_factor_out_of_range(kind: type[Algorithm1 | GradientNormPeak | SmoothedNormPeak], factor: float) -> None:
    with pytest.raises(MisuseError, match="expected factor between 0 and 1, got"):
        kind(factor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rise": 1.0}, "expected rise to be above 1, got 1.0"),
        ({"rise": NAN}, "expected rise to be above 1, got nan"),
        ({"window": 0}, "expected window of at least 1 epoch, got 0"),
        ({"patience": 0}, "expected patience of at least 1 epoch, got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        GradientNormPeak(**settings)


@pytest.mark.parametrize("smoothing", [0.0, 1.0, NAN])
def test_smoothing_out_of_range(smoothing: float) -> None:
    with pytest.raises(MisuseError, match="expected smoothing between 0 and 1, got"):
        SmoothedNormPeak(smoothing=smoothing)


def test_the_smoothed_norm_is_told_in_its_own_unit() -> None:
    detector = SmoothedNormPeak(smoothing=0.5, patience=1)
    tell(detector, 10.0, 80.0)
    assert detector.reason == (
        "the gradient norm rose from a trough of 10 to a peak of 40 and has not stayed below 0.9 of it"
    )
    tell(detector, 20.0)
    assert detector.reason == (
        "the gradient norm rose from a trough of 10 to a peak of 40 and fell to 26.9, below 0.9 of it (running means "
        "of its logarithm)"
    )

"""The detectors of a gradient norm's peak: on curves worked out by hand, on recorded ones, and by their invariants."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convexlab import Algorithm1, Detector, GradientNormPeak, MisuseError
from convexlab.detection import build_detector, detector_names

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
detectors = pytest.mark.parametrize(
    "make",
    [*(partial(build_detector, name) for name in detector_names()), lambda: GradientNormPeak(patience=1)],
    ids=[*detector_names(), "patience 1"],
)


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


@quick
@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60))
def test_a_norm_that_only_falls_is_no_peak(steps: list[float]) -> None:
    curve = [1.0]
    for step in steps:
        curve.append(curve[-1] * math.exp(-step))
    assert fires_at(GradientNormPeak(), curve) is None


@quick
@given(st.integers(0, 2**32 - 1))
def test_noise_around_a_constant_is_no_peak_with_a_long_window(seed: int) -> None:
    # Noise of ±10 % keeps every median within 0.9 to 1.1, which is no rise by 1.25.
    generator = random.Random(seed)
    assert fires_at(GradientNormPeak(), [generator.uniform(0.9, 1.1) for _ in range(100)]) is None


@detectors
@quick
@given(curve=norms, loss_exponent=st.integers(-60, 60), norm_exponent=st.integers(-60, 60))
def test_units_of_loss_and_norm_do_not_matter(
    make: Callable[[], Detector], curve: list[float], loss_exponent: int, norm_exponent: int
) -> None:
    # Powers of two scale without rounding, so that the decision is the same to the last bit.
    scaled = [norm * 2.0**norm_exponent for norm in curve]
    assert fires_at(make(), scaled, loss=2.0**loss_exponent) == fires_at(make(), curve)


@detectors
@quick
@given(curve=norms, cut=st.integers(0, 40))
def test_the_future_does_not_matter(make: Callable[[], Detector], curve: list[float], cut: int) -> None:
    whole = fires_at(make(), curve)
    expected = whole if whole is not None and whole <= cut else None
    assert fires_at(make(), curve[:cut]) == expected


@detectors
@quick
@given(curve=norms, gaps=st.sets(st.integers(0, 40)), bad=st.sampled_from([NAN, math.inf, -math.inf]))
def test_epochs_without_a_number_only_delay(
    make: Callable[[], Detector], curve: list[float], gaps: set[int], bad: float
) -> None:
    whole = fires_at(make(), curve)
    holed: list[float] = []
    for index, norm in enumerate(curve):
        holed += [bad, norm] if index in gaps else [norm]
    delay = sum(index < (whole or 0) for index in gaps)
    assert fires_at(make(), holed) == (None if whole is None else whole + delay)


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
@pytest.mark.parametrize("kind", [Algorithm1, GradientNormPeak])
def test_factor_out_of_range(kind: type[Algorithm1 | GradientNormPeak], factor: float) -> None:
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

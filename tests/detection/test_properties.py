"""What holds for every detector, on random curves of all signals."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convexlab import Detector, FixedEpoch, GradientNormPeak, MisuseError
from convexlab.detection import Signals, build_detector, detector_names

NAN = math.nan

MAKES: dict[str, Callable[[], Detector]] = {
    **{name: partial(build_detector, name, budget=20) for name in detector_names()},
    "fixed": partial(FixedEpoch, 7),
    "patience 1": partial(GradientNormPeak, patience=1),
}
COUNTING = {"budget-fraction", "fixed"}
"""They count epochs, and look at nothing."""
NEEDING = {name: make for name, make in MAKES.items() if make().needs}

quick = settings(deadline=None, max_examples=20)


def textbook(seed: int) -> list[Signals]:
    """A run in which everything happens: the norm rises and falls, the loss settles, curvature and rate too."""
    generator = random.Random(seed)
    peak, last, scatter = generator.randint(8, 16), generator.randint(20, 36), generator.choice([0.0, 0.02, 0.2])
    epochs = []
    for epoch in range(last):
        jump = math.exp(generator.gauss(0.0, scatter))
        norm = jump * (4.0 if peak - 5 <= epoch < peak else 1.0)
        ends = (-1.0, 4.0) if epoch < peak else (-0.1 * jump, 4.0)
        measured = (jump, *ends) if epoch % 3 == 0 else (NAN, NAN, NAN)
        epochs.append(Signals(0.5 ** min(epoch, peak), norm, 0.1 * norm, *measured, 1.0 if epoch > 1 else 1.2))
    return epochs


def epochs(numbers: st.SearchStrategy[float], signed: st.SearchStrategy[float]) -> st.SearchStrategy[Signals]:
    maybe = signed | st.just(NAN)
    return st.builds(Signals, signed, numbers, numbers | st.just(NAN), maybe, maybe, maybe, maybe)


def runs(numbers: st.SearchStrategy[float], signed: st.SearchStrategy[float]) -> st.SearchStrategy[list[Signals]]:
    return st.lists(epochs(numbers, signed), max_size=30)


curves = st.builds(textbook, st.integers(0, 2**32 - 1)) | runs(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
anything = runs(st.floats(), st.floats())
extremes = runs(st.sampled_from([0.0, 5e-324, 1e-300, 1.0, 1.7e308]), st.sampled_from([0.0, -1.0, 1.0]))


def follow(detector: Detector, curve: Sequence[Signals]) -> list[tuple[bool, int, str]]:
    """Return what is known after every epoch."""
    decisions = [(detector.update(**asdict(signals)), detector.epoch, detector.reason) for signals in curve]
    assert detector.fired == any(fired for fired, _, _ in decisions)
    return decisions


def fires_at(detector: Detector, curve: Sequence[Signals]) -> int | None:
    return next((epoch for fired, epoch, _ in follow(detector, curve) if fired), None)


def scaled(curve: Sequence[Signals], loss: float, norm: float, curvature: float, rate: float) -> list[Signals]:
    factors = (loss, norm, norm, curvature, curvature, curvature, rate)
    return [
        Signals(*(value * factor for value, factor in zip(astuple(signals), factors, strict=True))) for signals in curve
    ]


# Curves take longer to draw than to follow: all detectors follow each.


@quick
@given(curve=curves, loss=st.integers(-60, 60), norm=st.integers(-60, 60), curvature=st.integers(-60, 60))
def test_units_of_the_loss_and_of_the_parameters_do_not_matter(
    curve: list[Signals], loss: int, norm: int, curvature: int
) -> None:
    # With the loss times c and the parameters times a, norm, curvature and rate are c / a, c / a² and a² / c times what
    # they were. Powers of two scale without rounding, so that the decision is the same to the last bit.
    other = scaled(curve, 2.0**loss, 2.0**norm, 2.0**curvature, 2.0**-curvature)
    for name, make in MAKES.items():
        assert fires_at(make(), other) == fires_at(make(), curve), name


whole_curves = runs(st.integers(1, 300).map(float), st.integers(-300, 300).map(float))


@quick
@given(curve=whole_curves)
def test_a_loss_three_times_as_large_does_not_matter(curve: list[Signals]) -> None:
    # Whole numbers times three are exact, and so a ratio rounds to the same number. A threshold, a multiple of 1 / 20
    # of them, either is a whole number, to which it rounds, or is far from all.
    curve = scaled(curve, 1.0, 1.0, 1.0, 3.0)
    for name, make in MAKES.items():
        assert fires_at(make(), scaled(curve, 3.0, 3.0, 3.0, 1.0 / 3.0)) == fires_at(make(), curve), name


@quick
@given(curve=curves, cut=st.integers(0, 40), tail=curves | anything)
def test_the_future_does_not_matter(curve: list[Signals], cut: int, tail: list[Signals]) -> None:
    cut = min(cut, len(curve))
    for name, make in MAKES.items():
        assert follow(make(), curve[:cut] + tail)[:cut] == follow(make(), curve)[:cut], name


@quick
@given(curve=curves, tail=curves | anything)
def test_a_decision_is_final(curve: list[Signals], tail: list[Signals]) -> None:
    for name, make in MAKES.items():
        decisions = follow(make(), curve + tail)
        first = next((index for index, (fired, _, _) in enumerate(decisions) if fired), len(decisions))
        assert [epoch for _, epoch, _ in decisions[:first]] == list(range(1, first + 1)), name
        assert all(after == decisions[first] for after in decisions[first:]), name


def with_gaps(curve: Sequence[Signals], gaps: set[int], gap: Signals) -> list[Signals]:
    holed: list[Signals] = []
    for index, signals in enumerate(curve):
        holed += [gap, signals] if index in gaps else [signals]
    return holed


bad = st.sampled_from([NAN, math.inf, -math.inf])
gaps = st.sets(st.integers(0, 30))


@quick
@given(
    curve=curves,
    gaps=gaps,
    gap=epochs(st.floats(), st.floats()),
    number=bad,
    which=st.sampled_from(["loss", "gradient_norm"]),
)
def test_epochs_without_a_number_only_delay(
    curve: list[Signals], gaps: set[int], gap: Signals, number: float, which: str
) -> None:
    holed = with_gaps(curve, gaps, replace(gap, **{which: number}))
    for name, make in MAKES.items():
        before, at = fires_at(make(), curve), fires_at(make(), holed)
        if name in COUNTING:
            detector = make()
            assert isinstance(detector, FixedEpoch)
            assert at == (detector.switch_epoch if len(holed) >= detector.switch_epoch else None), name
            continue
        # An epoch that decides nothing never fires, so that the one that does is the same.
        assert at == (None if before is None else before + sum(index < before for index in gaps)), name


@quick
@given(curve=curves, gaps=gaps)
def test_epochs_in_which_what_is_needed_is_not_known_only_delay(curve: list[Signals], gaps: set[int]) -> None:
    holed = with_gaps(curve, gaps, Signals(0.3, 7.0, NAN, NAN, NAN, NAN, NAN))
    for name, make in NEEDING.items():
        before = fires_at(make(), curve)
        delay = sum(index < (before or 0) for index in gaps)
        assert fires_at(make(), holed) == (None if before is None else before + delay), name


@settings(deadline=None, max_examples=50)
@given(curve=anything | extremes)
def test_no_numbers_raise(curve: list[Signals]) -> None:
    for name, make in MAKES.items():
        assert all(reason for _, _, reason in follow(make(), curve)), name


@pytest.mark.parametrize("name", MAKES)
def test_every_detector_fires_in_a_textbook_run(name: str) -> None:
    # Else the tests above would compare nothing with nothing.
    assert sum(fires_at(MAKES[name](), textbook(seed)) is not None for seed in range(20)) >= 5


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, make in NEEDING.items() for field in sorted(make().needs)]
)
def test_what_it_needs_is_asked_for_at_once(name: str, field: str) -> None:
    detector = MAKES[name]()
    with pytest.raises(MisuseError, match=rf"{type(detector).__name__} needs {field} as well, NaN where"):
        detector.update(**asdict(replace(textbook(0)[0], **{field: None})))
    with pytest.raises(MisuseError, match="as well, NaN where"):
        detector.update(loss=NAN, gradient_norm=NAN)
    assert detector.epoch == 0


def test_who_needs_what() -> None:
    assert {name: set(make().needs) for name, make in NEEDING.items()} == {
        "noise-aware": {"gradient_noise"},
        "curvature": {"gradient_curvature", "smallest", "largest"},
        "swats": {"projected_rate"},
    }

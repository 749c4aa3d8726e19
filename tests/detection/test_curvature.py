"""The detector that is told the curvature: on measurements worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from convexlab import MisuseError, NoNegativeCurvature

NAN = math.nan
Measured = tuple[float, float, float]

CONVEX, BETWEEN, NEGATIVE, SKIPPED = (1.0, -5.0, 100.0), (1.0, -7.0, 100.0), (1.0, -11.0, 100.0), (NAN, NAN, NAN)


def fires_at(detector: NoNegativeCurvature, measured: Sequence[Measured]) -> int | None:
    for epoch, (along, smallest, largest) in enumerate(measured, start=1):
        if detector.update(loss=1.0, gradient_norm=1.0, gradient_curvature=along, smallest=smallest, largest=largest):
            return epoch
    return None


@pytest.mark.parametrize(
    ("measured", "epoch"),
    [
        ([CONVEX, CONVEX], 2),  # convex from the start: on the threshold of 0.05
        ([NEGATIVE, NEGATIVE, CONVEX, CONVEX], 4),
        ([CONVEX, NEGATIVE, CONVEX, CONVEX], 4),
        ([CONVEX, BETWEEN, CONVEX], 3),  # hysteresis: neither counts nor begins anew
        ([CONVEX, (1.0, -10.0, 100.0), CONVEX], 3),  # on the threshold of 0.1
        ([BETWEEN] * 9, None),
        ([CONVEX, SKIPPED, SKIPPED, CONVEX], 4),  # nothing is decided between measurements
        ([CONVEX, SKIPPED, SKIPPED, SKIPPED], None),
        ([CONVEX, (2.0, NAN, NAN), (NAN, -5.0, 100.0)], 3),  # the last curvature along the gradient that is known
        ([CONVEX, (-2.0, NAN, NAN), CONVEX, CONVEX], 4),  # which alone begins anew
        ([CONVEX, (0.0, -5.0, 100.0), CONVEX, CONVEX], 4),
        ([CONVEX, (-1.0, NAN, NAN), (NAN, -5.0, 100.0), (NAN, -5.0, 100.0)], None),
        ([(NAN, -5.0, 100.0)] * 4, None),  # it was never known
        ([(1.0, -5.0, NAN), (1.0, NAN, 100.0)] * 3, None),  # both ends are wanted at once
        ([(math.inf, math.inf, math.inf)] * 4, None),
        ([(1.0, 5.0, 100.0), (1.0, 0.0, 0.0)], 2),  # all positive, or flat
        ([(1.0, -2.0, -1.0)] * 4, None),  # all negative
    ],
)
def test_by_hand(measured: list[Measured], epoch: int | None) -> None:
    assert fires_at(NoNegativeCurvature(), measured) == epoch


@pytest.mark.parametrize(
    ("settings", "measured", "epoch"),
    [
        ({"patience": 1}, [NEGATIVE, BETWEEN, CONVEX], 3),
        ({"patience": 3}, [CONVEX] * 5, 3),
        ({"leave": 0.05}, [CONVEX, BETWEEN, CONVEX, CONVEX], 4),  # no hysteresis
        ({"enter": 0.08}, [BETWEEN, BETWEEN], 2),
    ],
)
def test_settings_by_hand(settings: dict[str, float], measured: list[Measured], epoch: int) -> None:
    assert fires_at(NoNegativeCurvature(**settings), measured) == epoch


def test_reasons_name_the_numbers() -> None:
    detector = NoNegativeCurvature()
    fires_at(detector, [SKIPPED])
    assert detector.reason == "the curvature has not been measured"
    fires_at(detector, [(-2.0, -5.0, 100.0)])
    assert detector.reason == "the curvature along the gradient, -2, is not positive"
    fires_at(detector, [CONVEX, SKIPPED])
    assert detector.reason == (
        "the smallest eigenvalue is -5, the largest 100: 1 of 2 measurements without negative curvature"
    )
    assert fires_at(detector, [CONVEX]) == 1
    assert detector.reason == (
        "the smallest eigenvalue is -5, the largest 100, and the curvature along the gradient 1: no negative curvature "
        "below 0.05 of the largest in 2 measurements in a row"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"enter": 0.0}, "expected enter between 0 and 1, got 0.0"),
        ({"leave": 1.0}, "expected leave between 0 and 1, got 1.0"),
        ({"enter": 0.2}, "expected leave of at least enter, 0.2, got 0.1"),
        ({"patience": 0}, "expected patience of at least 1 measurement, got 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, float], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        NoNegativeCurvature(**settings)

"""Detectors by name, the fixed epoch, and what a detector costs."""

from __future__ import annotations

import math

import pytest

from convexlab import Algorithm1, FixedEpoch, GradientNormPeak, MisuseError
from convexlab.detection import DEFAULT_DETECTOR, build_detector, detector_names


def test_names() -> None:
    assert set(detector_names()) >= {"algorithm-1", "gradient-norm-peak"}
    assert DEFAULT_DETECTOR in detector_names()
    assert all(20 < len(description) < 200 for description in detector_names().values())


def test_a_name_builds_a_fresh_detector() -> None:
    assert type(build_detector("algorithm-1")) is Algorithm1
    assert type(build_detector("gradient-norm-peak")) is GradientNormPeak
    used = build_detector("algorithm-1")
    used.update(loss=1.0, gradient_norm=1.0)
    assert build_detector("algorithm-1").epoch == 0


def test_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(MisuseError, match=r"unknown detector 'algorithm1'. Did you mean 'algorithm-1'"):
        build_detector("algorithm1")


def test_only_what_looks_at_the_gradient_is_charged() -> None:
    assert {name: build_detector(name).cost for name in detector_names()} == {
        "algorithm-1": 1.0,
        "gradient-norm-peak": 1.0,
        "gradient-norm-change": 1.0,
        "unimodal-norm": 1.0,
        "loss-plateau": 1 / 3,
    }
    assert FixedEpoch(3).cost == 0.0


@pytest.mark.parametrize("switch_epoch", [1, 2, 7])
def test_fixed_epoch_counts_every_epoch(switch_epoch: int) -> None:
    detector = FixedEpoch(switch_epoch)
    for epoch in range(1, switch_epoch + 3):
        fired = detector.update(loss=math.nan, gradient_norm=math.inf)
        assert fired == detector.fired == (epoch >= switch_epoch)
        assert detector.epoch == min(epoch, switch_epoch)
    assert detector.reason == f"the switch was set to epoch {switch_epoch}"


@pytest.mark.parametrize("switch_epoch", [0, -1])
def test_fixed_epoch_below_one(switch_epoch: int) -> None:
    with pytest.raises(MisuseError, match="expected switch_epoch of at least 1"):
        FixedEpoch(switch_epoch)

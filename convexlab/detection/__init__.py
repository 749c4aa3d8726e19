"""Detectors: when to hand over from Adam to the second phase."""

from collections.abc import Callable

from convexlab.detection.base import Detector, Signals
from convexlab.detection.change import GradientNormChange, UnimodalNorm
from convexlab.detection.fixed import FixedEpoch
from convexlab.detection.peak import Algorithm1, GradientNormPeak
from convexlab.detection.plateau import LossPlateau
from convexlab.detection.watch import Watch
from convexlab.errors import unknown_name

__all__ = [
    "DEFAULT_DETECTOR",
    "Algorithm1",
    "Detector",
    "FixedEpoch",
    "GradientNormChange",
    "GradientNormPeak",
    "LossPlateau",
    "Signals",
    "UnimodalNorm",
    "Watch",
    "build_detector",
    "detector_names",
]

DEFAULT_DETECTOR = "gradient-norm-peak"

_DETECTORS: dict[str, Callable[[], Detector]] = {
    "algorithm-1": Algorithm1,
    "gradient-norm-peak": GradientNormPeak,
    "gradient-norm-change": GradientNormChange,
    "unimodal-norm": UnimodalNorm,
    "loss-plateau": LossPlateau,
}


def detector_names() -> dict[str, str]:
    """Return every detector's name with the first line of its description."""
    return {name: (cls.__doc__ or "").splitlines()[0] for name, cls in _DETECTORS.items()}


def build_detector(name: str) -> Detector:
    """Return a fresh detector with its default settings.

    Raises:
        MisuseError: an unknown name.
    """
    if name not in _DETECTORS:
        raise unknown_name("detector", name, _DETECTORS)
    return _DETECTORS[name]()

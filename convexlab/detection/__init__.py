"""Detectors: when to hand over from Adam to the second phase."""

from convexlab.detection.base import Detector, Signals
from convexlab.detection.change import GradientNormChange, UnimodalNorm
from convexlab.detection.curvature import NoNegativeCurvature
from convexlab.detection.fixed import BudgetFraction, FixedEpoch
from convexlab.detection.noise import NoiseAwarePeak
from convexlab.detection.peak import Algorithm1, GradientNormPeak, SmoothedNormPeak
from convexlab.detection.plateau import LossPlateau
from convexlab.detection.swats import Swats
from convexlab.detection.watch import Watch
from convexlab.errors import MisuseError, unknown_name

__all__ = [
    "DEFAULT_DETECTOR",
    "Algorithm1",
    "BudgetFraction",
    "Detector",
    "FixedEpoch",
    "GradientNormChange",
    "GradientNormPeak",
    "LossPlateau",
    "NoNegativeCurvature",
    "NoiseAwarePeak",
    "Signals",
    "SmoothedNormPeak",
    "Swats",
    "UnimodalNorm",
    "Watch",
    "build_detector",
    "detector_names",
]

DEFAULT_DETECTOR = "budget-fraction"
"""The rule with the least regret on tasks that it was not chosen on (``analyses/detector_validation.py``). No detector
that looks at a run did better than a switch at 30 % of the budget."""

_DETECTORS: dict[str, type[Detector]] = {
    "algorithm-1": Algorithm1,
    "gradient-norm-peak": GradientNormPeak,
    "smoothed-norm": SmoothedNormPeak,
    "noise-aware": NoiseAwarePeak,
    "gradient-norm-change": GradientNormChange,
    "unimodal-norm": UnimodalNorm,
    "curvature": NoNegativeCurvature,
    "loss-plateau": LossPlateau,
    "swats": Swats,
    "budget-fraction": BudgetFraction,
}


def detector_names() -> dict[str, str]:
    """Return every detector's name with the first line of its description."""
    return {name: (cls.__doc__ or "").splitlines()[0] for name, cls in _DETECTORS.items()}


def build_detector(name: str, *, budget: int | None = None) -> Detector:
    """Return a fresh detector with its default settings.

    Args:
        name: one of `detector_names`.
        budget: number of epochs of the whole training; only ``budget-fraction`` needs it.

    Raises:
        MisuseError: an unknown name, or a budget that is missing or below 1.
    """
    if name not in _DETECTORS:
        raise unknown_name("detector", name, _DETECTORS)
    kind = _DETECTORS[name]
    if kind is not BudgetFraction:
        return kind()
    if budget is None:
        raise MisuseError(
            f"expected a budget in epochs, which {name} switches at a fraction of, got none: pass budget=."
        )
    return BudgetFraction(budget)

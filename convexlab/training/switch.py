"""When a run leaves Adam: what decides it, what is stored of it, and what it is expected to bring."""

from __future__ import annotations

from convexlab.detection import Detector, FixedEpoch, build_detector
from convexlab.problems import Problem
from convexlab.runs import Row
from convexlab.training.config import TwoPhaseConfig
from convexlab.training.trajectory import Trajectory

__all__ = ["detector_of", "expectation", "expectation_of", "switch_row"]

# Evaluations of a second phase from an early switch on mini-batches below which it is expected to lose to Adam. With 21
# it lost on digits, with 70 it won (README); between them nothing is measured.
_FEW = 50


def detector_of(config: TwoPhaseConfig) -> Detector:
    """Return a fresh detector that decides as the settings say."""
    if config.switch_epoch is not None:
        return FixedEpoch(config.switch_epoch)
    return build_detector(config.detector, budget=config.epochs)


def switch_row(config: TwoPhaseConfig, trajectory: Trajectory, reason: str, *, fired: bool, budget: str) -> Row:
    """Return what is stored of the decision, made where the trajectory stands.

    Args:
        config: the settings.
        trajectory: on which Adam ends, or the budget has.
        reason: the detector's.
        fired: whether it is to switch.
        budget: in epochs, in words.
    """
    return {
        "epoch": trajectory.epoch if fired else None,
        "detector": "switch-epoch" if config.switch_epoch is not None else config.detector,
        "train_loss": trajectory.train_loss,
        "gradient_norm": trajectory.gradient_norm,
        "reason": reason if fired else f"no switch within the budget of {budget} epoch equivalents: {reason}",
    }


def expectation(problem: Problem, spent: float, budget: float) -> str | None:
    """Return what a switch is expected to bring, in a sentence, where that is worse than Adam; None elsewhere.

    It is a warning and prevents no switch. Rules by how fast Adam still falls did not distinguish the cases
    (docs/switching.md).
    """
    left = int(budget - spent)
    if problem.whole_batch or left >= _FEW or spent > 0.5 * budget:
        return None
    return (
        f"{left} evaluations are left to the second phase. With so few, after mini-batches, it is expected to end "
        "above Adam. With 21 on 1,442 digits it ended at 5 to 12 times Adam's loss. With 70 on 250 digits it ended "
        "below Adam's in four of five runs."
    )


def expectation_of(config: TwoPhaseConfig, trajectory: Trajectory) -> str | None:
    """Return what was expected of a trajectory's switch; None where it has none."""
    epoch = (trajectory.switch or {}).get("epoch")
    return None if epoch is None else expectation(trajectory.problem, epoch, config.epochs)

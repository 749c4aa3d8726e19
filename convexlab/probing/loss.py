"""The loss that the checkpoints of one setting are probed with."""

from __future__ import annotations

from dataclasses import dataclass

from convexlab.machine.ranks import current
from convexlab.objective import Objective
from convexlab.problems import ImageProblem, Setting

__all__ = ["ProbedLoss", "build_probed_loss"]


@dataclass(frozen=True)
class ProbedLoss:
    """An objective, whose model takes the weights of one checkpoint after the other."""

    objective: Objective
    problem: ImageProblem | None
    """Where fresh examples come from; None where there are none."""
    examples: int | None
    """That the loss is the mean over; None where nothing counts them."""
    train_size: int | None
    """Number of training examples; None where it is not known."""


def build_probed_loss(setting: Setting, device: str) -> ProbedLoss:
    """Put a setting together, with fresh weights.

    Raises:
        MisuseError: an unknown name, or parts that do not fit each other.
    """
    problem = setting.build(device)
    problem.share_out(current())
    if not isinstance(problem, ImageProblem):
        return ProbedLoss(problem.objective, None, None, setting.train_size)
    examples = problem.dataset.train_size
    train_size = examples if setting.probe_size is None else problem.population
    return ProbedLoss(problem.objective, problem, examples, train_size)

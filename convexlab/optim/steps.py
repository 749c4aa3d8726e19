"""What a step of a flat optimiser begins with, tries, and reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from convexlab.optim.evaluation import CountedClosure, Evaluation
from convexlab.optim.memory import Memory

__all__ = ["Attempt", "Direction", "Start", "StepReport", "StepState", "report_of"]

StepState = Literal["moved", "converged", "stuck", "not finite", "limit reached"]
"""How a step ended.

* ``moved``: at other weights.
* ``converged``: no direction promises more than the rounding of the loss or a move beyond that of the weights, or the
  gradient is zero.
* ``stuck``: no lower loss was met, though one was promised.
* ``not finite``: the loss or its gradient is not, where the step began.
* ``limit reached``: ``max_evaluations`` ended the search; the next step tries less.
"""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did and what it cost."""

    loss: float
    """Loss where the step began."""
    gradient_norm: float
    """‖g‖ where the step began."""
    step_size: float
    """α of x + αd; 0 if the step failed."""
    slope: float
    """gᵀd where the step began, along the direction last tried; 0 if none was."""
    values: int
    """Evaluations of the loss alone."""
    gradients: int
    """Evaluations of the loss with its gradient, including one at the start of the step if it was needed."""
    restarted: str | None
    """None, or why the memory of earlier directions was dropped."""
    failed: str | None
    """None, or why the weights stand where they stood."""
    state: StepState
    """How the step ended."""
    changed: str | None = None
    """None, or what has changed since the last step: the weights, or the closure."""
    evaluation_seconds: float = field(default=0.0, compare=False)
    """Seconds of the step in the closure; the others are vector work."""
    held_out_loss: float | None = None
    """For `ProgressiveLBFGS`: mean loss of the held-out examples where the step ended; None without any."""


@dataclass(frozen=True, slots=True)
class Direction:
    """A direction to search along, and where to begin."""

    vector: Tensor
    """d, (n,)."""
    slope: float
    """gᵀd, negative."""
    previous: tuple[float, float] | None = None
    """Step and slope of the accepted step before, from which the line search derives its first trial."""
    initial_step: float | None = None
    """First trial, if it is known. With neither, the preconditioner's `step_length` or the size of the weights sets
    it."""
    restarted: str | None = None
    """None, or why the memory was dropped."""
    memory: Memory | None = None
    """The optimiser's memory if this direction is taken; None leaves it as it is."""


class Start(NamedTuple):
    """Where a step begins."""

    evaluation: Evaluation
    fresh: bool
    """Whether it was evaluated in this step."""
    weights_changed: bool = False
    """Whether other code has set the weights since the last step."""
    closure_before: Evaluation | None = None
    """The closure's earlier result at these weights, if it is another function now."""

    @property
    def changed(self) -> str | None:
        """What was changed since the last step, in words."""
        if self.closure_before is not None:
            before, now = self.closure_before.loss, self.evaluation.loss
            return (
                f"the closure is another function than before: at the same weights it gave {before:.6g}, now {now:.6g}"
            )
        return "the weights were changed between steps" if self.weights_changed else None


@dataclass(slots=True)
class Attempt:
    """What the searches from one start came to."""

    step_size: float = 0.0
    """0 as long as all have failed."""
    slope: float = 0.0
    restarted: str | None = None
    failures: list[str] = field(default_factory=list)
    promised: float = 0.0
    """The largest fall of the loss that one of the directions promised."""
    last: float = 0.0
    """The last step tried."""
    again: Evaluation | None = None
    """At the start once more, where that is another than before."""


def report_of(start: Start, call: CountedClosure, attempt: Attempt, state: StepState) -> StepReport:
    """Return the report of a step."""
    squared_norm = start.evaluation.squared_norm
    return StepReport(
        start.evaluation.loss,
        math.sqrt(squared_norm) if squared_norm >= 0.0 else math.nan,
        attempt.step_size,
        attempt.slope,
        call.values,
        call.gradients,
        attempt.restarted,
        None if state == "moved" else "; then ".join(attempt.failures),
        state,
        start.changed,
        call.seconds,
    )

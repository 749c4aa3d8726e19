"""The second phase a step at a time, from where Adam stands: the one budget arithmetic, and when it is given up.

The trainer, its oracle, the studies and the benchmarks all step a second phase here. So measurements of one hold for
the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from convexlab.linalg.vectors import norm
from convexlab.objective import LeastSquares, Objective
from convexlab.optim import ProgressiveLBFGS
from convexlab.problems import Problem
from convexlab.training.phases import PhaseTwo

__all__ = ["Resort", "Step", "second_phase_steps"]

# When the second phase is given up for Adam, the paper's "safe resort". The numbers count failed steps in a row, and
# steps in a row with a gradient norm above all of Adam's. A plateau is no reason: on physics-informed networks the loss
# falls on behind it, by orders of magnitude (docs/training.md).
_FAILED_STEPS = 2
_RISE_STEPS = 10

# Gradient equivalents. Thirds do not add up to whole numbers exactly.
_GRADIENT, _VALUE, _ROUNDING = 1.0, 1 / 3, 1e-9


@dataclass(frozen=True)
class Step:
    """The result of one step of the second phase; on samples, of the steps that one gradient equivalent pays."""

    cost: float
    """Gradient equivalents of this step."""
    seconds: float
    """Seconds of this step, without measurements for the record."""
    loss: float
    """Loss over the whole training set, where the step ended."""
    gradient_norm: float
    """Likewise."""
    failed: str | None
    """None, or why the weights did not change."""
    given_up: str | None
    """None, or why Adam takes over again though the budget is not spent."""
    vector_seconds: float = 0.0
    """Seconds beside the loss and its gradients; gradient equivalents do not count them."""


class Resort:
    """The rules that end a second phase in favour of Adam, applied after every step.

    Args:
        largest_norm: of the gradient, over Adam's epochs until the switch; None if there were none, or if a risen norm
            says nothing.
        state: of `state_dict`, to go on from.
    """

    def __init__(self, largest_norm: float | None, state: Mapping[str, Any] | None = None) -> None:
        """See the class."""
        state = state or {}
        self._largest_norm = largest_norm
        self._failures = int(state.get("failures", 0))
        self._risen = int(state.get("risen", 0))

    @classmethod
    def of(cls, problem: Problem, largest_norm: float | None, state: Mapping[str, Any] | None = None) -> Resort:
        """Return the rules for a problem.

        On the whole batch a step of Adam costs as much as one of the second phase, so going back to Adam gains nothing.
        A risen norm counts only where Adam sees mini-batches.
        """
        return cls(None if problem.whole_batch else largest_norm, state)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers from which it goes on."""
        return {"failures": self._failures, "risen": self._risen}

    def against(self, gradient_norm: float, failed: str | None) -> str | None:
        """Take in where a step has ended, and return why to go back to Adam, or None."""
        # A search that the budget cut short has not failed for good.
        self._failures = self._failures + 1 if failed else 0
        above = self._largest_norm is not None and gradient_norm > self._largest_norm
        self._risen = self._risen + 1 if above else 0
        if self._failures >= _FAILED_STEPS:
            return failed
        if self._risen >= _RISE_STEPS:
            return (
                f"the gradient norm has been above Adam's largest, {self._largest_norm:.3g}, for {_RISE_STEPS} steps: "
                "the peak before the switch was not the only one"
            )
        return None


class _BudgetSpentError(Exception):
    """Ends a step from within its closure."""


class _Purse:
    """Gradient equivalents: what a step costs, and what is left for it and those after it."""

    def __init__(self, budget: float) -> None:
        self.left = budget
        self.cost = 0.0
        """Cost of the step, counted from zero: the same bits after a resume."""
        self.evaluation_seconds = 0.0
        """Seconds of the step in the closure."""

    def pay(self, price: float) -> None:
        """Pay for an evaluation, or end the step."""
        if self.cost + price > self.left + _ROUNDING:
            raise _BudgetSpentError
        self.cost += price

    def next_step(self) -> None:
        """Close the account of the step."""
        self.left -= self.cost
        self.cost = self.evaluation_seconds = 0.0


def second_phase_steps(
    optimizer: Any,
    phase: PhaseTwo,
    objective: Objective,
    resort: Resort,
    *,
    budget: float = math.inf,
    closure: Callable[..., Tensor] | None = None,
    examples: int | None = None,
    measure: Callable[[], tuple[float, float]] | None = None,
    least_squares: LeastSquares | None = None,
) -> Iterator[Step]:
    """Take the steps of a second phase from the model's present parameters, until the budget is spent.

    A value with its gradient costs 1 gradient equivalent, a value alone 1/3. On a sample of m of N examples the cost is
    m / N of that. Residuals with their Jacobian cost `LeastSquares.price`. A step begins only if the budget covers one
    evaluation of its search. It must also cover the gradient at the start, where the step before has not left one. No
    step takes more than is left: searches get a limit of evaluations, and an optimiser that does not read it is
    interrupted. The phase ends where it has converged, to the rounding of the loss.

    Args:
        optimizer: what ``phase`` has built for the model's parameters, or torch's own L-BFGS.
        phase: the second phase.
        objective: the training loss.
        resort: says when to give up; it takes in every step.
        budget: gradient equivalents.
        closure: evaluates at the model's present parameters; None is the objective's. Of a phase on samples it takes
            the rows of the examples.
        examples: of the training set, for a phase on samples.
        measure: returns loss and gradient norm where the model stands, for the record: not charged, and asked only
            where the optimiser does not know them. None asks the objective.
        least_squares: the objective's, for a phase on residuals and no other; its `LeastSquares.setup` is charged by
            whoever makes it.

    Yields:
        Every step; the last one says why, if Adam is to take over again.
    """
    evaluate: Callable[..., Tensor] = closure or objective.closure
    purse = _Purse(budget)

    def charged(*, backward: bool = True) -> Tensor:
        purse.pay(_GRADIENT if backward else _VALUE)
        return evaluate(backward=backward)

    def charged_rows(rows: Tensor) -> Tensor:
        assert examples is not None
        purse.pay(len(rows) / examples)
        return evaluate(rows)

    assert (least_squares is not None) == phase.residuals

    def charged_residuals(*, jacobian: Sequence[Tensor] | None = None) -> Any:
        assert least_squares is not None
        purse.pay(_VALUE if jacobian is None else least_squares.price)
        return least_squares.closure(jacobian=jacobian)

    begins = _GRADIENT if least_squares is None else least_squares.price
    while True:
        opening = 0.0 if _known(optimizer) else begins
        if purse.left + _ROUNDING < opening + phase.search_cost:
            return
        begin, failed = time.perf_counter(), None
        try:
            if phase.sampled:
                assert examples is not None
                failed = _steps_on_samples(optimizer, charged_rows, examples, purse)
            else:
                _limit(optimizer, (purse.left - opening) / phase.search_cost)
                optimizer.step(charged_residuals if phase.residuals else charged)
                failed = _failure(optimizer)
                purse.evaluation_seconds += _evaluation_seconds(optimizer)
        except _BudgetSpentError:
            pass  # A peer that does not read its limit, or a last look at whether the closure is one function.
        seconds = time.perf_counter() - begin
        if purse.cost == 0.0 and failed is None:
            return  # Nothing that is left pays for a step.
        loss, gradient_norm = _known(optimizer) or (measure or (lambda: _measured(objective)))()
        converged = _converged(optimizer)
        given_up = None if converged else resort.against(gradient_norm, failed)
        vector_seconds = max(0.0, seconds - purse.evaluation_seconds)
        yield Step(purse.cost, seconds, loss, gradient_norm, failed, given_up, vector_seconds)
        if converged or given_up is not None:
            return
        purse.next_step()


def _steps_on_samples(
    optimizer: ProgressiveLBFGS, closure: Callable[[Tensor], Tensor], examples: int, purse: _Purse
) -> str | None:
    """Take steps until about one gradient equivalent is spent, and return why the last one failed, or None."""
    failed = None
    while failed is None and purse.cost < _GRADIENT - _ROUNDING:
        # What the sample has grown by since the last step costs less than one evaluation of it.
        affordable = (purse.left - purse.cost) * examples / optimizer.sample_size - 1.0
        if affordable < 1.0 - _ROUNDING:
            break
        _limit(optimizer, affordable)
        optimizer.step(closure)
        failed = _failure(optimizer)
        purse.evaluation_seconds += _evaluation_seconds(optimizer)
    return failed


def _limit(optimizer: Any, evaluations: float) -> None:
    """Give our optimiser the limit of evaluations of its next search; torch's does not read it."""
    limit = None if evaluations == math.inf else max(1, int(evaluations + _ROUNDING))
    optimizer.param_groups[0]["max_evaluations"] = limit


def _known(optimizer: Any) -> tuple[float, float] | None:
    """Return loss and gradient norm where the optimiser stands, if it has evaluated both there."""
    return getattr(optimizer, "known", None)  # Which only ours have.


def _failure(optimizer: Any) -> str | None:
    report = getattr(optimizer, "report", None)  # Which only ours write.
    return None if report is None else report.failed


def _evaluation_seconds(optimizer: Any) -> float:
    report = getattr(optimizer, "report", None)
    return 0.0 if report is None else report.evaluation_seconds


def _converged(optimizer: Any) -> bool:
    report = getattr(optimizer, "report", None)
    return report is not None and report.state == "converged"


def _measured(objective: Objective) -> tuple[float, float]:
    loss, gradient = objective.value_and_gradient()
    return loss, float(norm(gradient))

"""Levenberg-Marquardt in the space of residuals, for sums of squares on small networks, as a torch optimiser.

Notation: r residuals (m,), J their Jacobian (m, n), the loss rᵀr, g = 2Jᵀr its gradient, d step, λ damping, ν its
growth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.least_squares import NormalEquations
from convexlab.linalg.vectors import dot
from convexlab.optim.evaluation import Closure, CountedClosure, Evaluation, Ray
from convexlab.optim.flat import FlatOptimizer
from convexlab.optim.line_search import Line, LineSearch, SearchResult, Trial
from convexlab.optim.line_search.interface import SearchStopped
from convexlab.optim.memory import Memory
from convexlab.optim.residuals import CountedResiduals
from convexlab.optim.steps import Attempt, Direction, Start, StepReport, StepState

__all__ = ["LevenbergMarquardt", "TrustMemory"]

# Nielsen's rule, Madsen, Nielsen and Tingleff (2004), algorithm 3.16: ν begins at 2, and λ falls to a third at most.
_GROWTH, _LEAST_FACTOR = 2.0, 1.0 / 3.0
_EPSILON = 2.0**-52


@dataclass
class TrustMemory(Memory):
    """How far the linear model is trusted."""

    damping: float | None = None
    """λ to begin with, in units of JᵀJ; None before the first step."""
    growth: float = _GROWTH
    """ν, the factor of λ after a step that does not lower the loss; it doubles each time."""


@dataclass(frozen=True, kw_only=True)
class _OneTrial(LineSearch):
    """The step as it is, or none: what is too long is shortened by the damping, not along its direction."""

    def _search(self, line: Line, initial_step: float) -> Trial:
        trial = line.value(initial_step)
        if trial.value < line.start.value:
            return trial
        raise SearchStopped("the loss does not fall by the damped step")


class _Tried(NamedTuple):
    """The damped step that was tried last."""

    damping: float
    growth: float
    slope: float
    """gᵀd."""
    bend: float
    """‖Jd‖²."""
    loss: float
    """rᵀr where the step began."""

    def promised(self, step: float) -> float:
        """Return rᵀr - ‖r + αJd‖²."""
        return -step * self.slope - step**2 * self.bend


class LevenbergMarquardt(FlatOptimizer):
    """Levenberg-Marquardt: θ₊ = θ + d with (JᵀJ + λI) d = -Jᵀr, which takes the residuals one by one.

    The closure returns not the loss but the residuals r, a tensor or a list of them, whose squares sum to the loss. It
    calls no backward. J is then made of m vector-Jacobian products, as many backward passes as there are residuals. A
    closure may take a keyword ``jacobian``, such as that of ``objective.least_squares()``. Where J is needed, it is
    called with ``jacobian=parameters``, and returns r (m,) and J (m, n) in the order of these parameters.

    λ begins at ``damping`` times the largest diagonal entry of JᵀJ. A trial that lowers the loss is taken, and λ
    becomes max(1/3, 1 - (2ρ - 1)³) λ. ρ is the decrease over that of the linear model. After a trial that does not
    lower it, or is NaN, λ grows by ν, which doubles each time. Source: Madsen, Nielsen and Tingleff 2004, "Methods for
    non-linear least squares problems", 2nd ed., IMM, DTU, algorithm 3.16, whose F is half of this loss. Where residuals
    are fewer than parameters, the same d comes from the m equations of the dual.

    There are three departures from the source. λ is no less than the rounding of JᵀJ, so that it does not fall to zero
    along a series of good steps. It also grows where the matrix is not positive definite to its rounding (columns of J
    that depend on each other). A series of trials ends where the next promises less than the rounding of the loss.

    J is held in float64 whatever the parameters' dtype, 8mn bytes, and a step takes mn min(m, n) operations. It is for
    up to some thousand residuals or parameters. Every step evaluates r and J where it begins, so a closure may change
    between steps. `report` counts Jacobians as ``gradients``, residuals alone as ``values``. Limits, groups, states and
    outcomes: see `FlatOptimizer`; ``lr`` is a factor on d.

    Args:
        params: parameters, or groups of them with equal settings.
        damping: first λ, relative.
        max_evaluations: limit on the trials of a step.

    Raises:
        MisuseError: parameters or settings other than these.
    """

    _tried: _Tried | None = None

    def __init__(self, params: Any, *, damping: float = 1e-3, max_evaluations: int | None = None) -> None:
        if not 0.0 < damping < math.inf:
            raise MisuseError(f"damping must be positive, got {damping!r}.")
        self.damping = damping
        super().__init__(params, line_search=_OneTrial(), max_evaluations=max_evaluations, reuse=False)

    def _counted(self, closure: Closure | None) -> CountedResiduals:
        return CountedResiduals(closure, self._parameters, averaged=self.processes == "averaged")

    @property
    def _memory(self) -> TrustMemory:
        return self._remembered(TrustMemory)

    def _directions(self, start: Evaluation) -> Iterator[Direction]:
        """Yield what is left beside the damped steps: nothing."""
        return iter(())

    def _propose(
        self, call: CountedClosure, weights: Tensor, start: Evaluation, limit: int | None
    ) -> Iterator[Direction]:
        assert isinstance(call, CountedResiduals)
        system, memory = NormalEquations(call.residuals, call.jacobian), self._memory
        largest, growth, restarted = system.largest(), memory.growth, memory.restarted
        damping = max(self.damping * largest if memory.damping is None else memory.damping, _EPSILON * largest)
        first, self._tried = True, None
        while damping < math.inf:
            d = system.solve(damping)
            if d is not None:
                slope = -2.0 * dot(system.descent, d).item()
                if not first and -0.5 * slope <= self._floor(start):
                    return
                if -math.inf < slope < 0.0:
                    # ‖Jd‖² = -gᵀd/2 - λ‖d‖², by the equation that d solves.
                    bend = -0.5 * slope - damping * dot(d, d).item()
                    self._tried, first = _Tried(damping, growth, slope, bend, start.loss), False
                    vector = d.to(weights.dtype)
                    yield Direction(vector, slope, initial_step=1.0, restarted=restarted, memory=memory)
            damping, growth = damping * growth, 2.0 * growth

    def _accept(self, ray: Ray, direction: Direction, result: SearchResult) -> None:
        super()._accept(ray, direction, result)
        assert self._tried is not None
        promised = self._tried.promised(result.step_size)
        ratio = (self._tried.loss - result.value) / promised if promised > 0.0 else math.inf
        factor = 1.0 - (2.0 * min(ratio, 1.0) - 1.0) ** 3
        damping = self._tried.damping * max(_LEAST_FACTOR, factor)
        self._remember(replace(self._memory, damping=damping, growth=_GROWTH))

    def _evaluated_again(self, call: CountedClosure, before: Evaluation) -> Evaluation:
        """Ask for the residuals alone: that the closure is no function is all there is to find out."""
        loss = call.value()
        assert loss is not None
        return replace(before, loss=loss)

    def _give_up(
        self, call: CountedClosure, weights: Tensor, start: Start, attempt: Attempt, state: StepState
    ) -> StepReport:
        if not attempt.failures:
            state, attempt.failures = "stuck", ["no damping made the normal equations positive definite"]
        elif attempt.failures[1:] == attempt.failures[:-1]:  # The same for each λ.
            attempt.failures = attempt.failures[:1]
        report = super()._give_up(call, weights, start, attempt, state)
        if state == "limit reached" and self._tried is not None:
            # The next step goes on where this one has ended.
            memory, tried = self._memory, self._tried
            self._remember(replace(memory, damping=tried.damping * tried.growth, growth=2.0 * tried.growth))
        return report

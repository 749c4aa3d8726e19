"""What every line search sees and returns: a function of one step, trial points, a result."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from convexlab.errors import MisuseError

__all__ = [
    "RETREAT",
    "SAME_POINT",
    "Line",
    "LineSearch",
    "SearchResult",
    "SearchStopped",
    "Trial",
    "before_barrier",
    "usable",
]

RETREAT = 0.1
"""How much of a step is kept after a trial whose loss was NaN or infinite (``nan_decay`` of CG_DESCENT)."""

_SHORT = 4  # Evaluations of a search that nearly all need at most.
_SAME_POINT = 0.1  # Roundings of the point, in its norm.

SAME_POINT = "neighbouring steps lead to the same weights"


class Trial(NamedTuple):
    """A point on the line: φ(step) = value and φ'(step) = slope; the slope is NaN where it was not asked for."""

    step: float
    value: float
    slope: float


class SearchStopped(Exception):  # noqa: N818 - it ends a search, it is not an error: `LineSearch` turns it into a value.
    """Ends a search whose conditions cannot be met; its text is the reason. Never leaves `LineSearch`."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Where a line search ended, what that cost, and whether it is any good."""

    step_size: float
    """The step α ≥ 0 chosen; 0 if the search failed."""
    value: float
    """φ(α)."""
    slope: float | None
    """φ'(α), or None if it was not evaluated there."""
    values: int
    """Evaluations of φ alone."""
    gradients: int
    """Evaluations of φ with φ'."""
    converged: bool
    """The search's own conditions hold at α. False with ``failed`` None: a lower value was found, nothing more."""
    failed: str | None
    """None, or why no acceptable step was found."""


class Line:
    """φ(α) = f(x + αd) along a direction of descent: counts evaluations, keeps the best, holds the limit.

    A value or slope that is not finite counts as φ = +∞, so that every search sees a step that is too long.

    Args:
        evaluate: ``evaluate(step, needs_slope)`` returns ``(value, slope)``; the slope may be None if not needed.
        value: φ(0).
        slope: φ'(0), negative.
        max_evaluations: limit on calls of ``evaluate`` (None: none).
        resolution: relative rounding error of a value, at least the unit of the floating-point type. A search that
            finds the values less exact raises it.
        grain: returns the step that moves the point by its rounding; asked once, and only where a search is long. None
            is 0.

    Raises:
        MisuseError: φ(0) or φ'(0) is not finite, or φ'(0) is not negative.
    """

    def __init__(
        self,
        evaluate: Callable[[float, bool], tuple[float, float | None]],
        value: float,
        slope: float,
        *,
        max_evaluations: int | None = None,
        resolution: float = sys.float_info.epsilon,
        grain: Callable[[], float] | None = None,
    ) -> None:
        if not (math.isfinite(value) and math.isfinite(slope) and slope < 0):
            raise MisuseError(
                "a line search needs a finite value and a finite negative slope at step 0, "
                f"got value {value!r} and slope {slope!r}. Pass a direction of descent."
            )
        self._evaluate = evaluate
        self._max_evaluations = max_evaluations
        self.resolution = resolution
        self._grain = grain
        self._known_grain: float | None = None
        self.start = Trial(0.0, value, slope)
        self.best = self.start
        self.flattest: Trial | None = None
        """The trial of the least slope, if that is below half of the start's: the nearest to a minimum of all."""
        self.values = 0
        self.gradients = 0

    @property
    def evaluations(self) -> int:
        """All evaluations so far."""
        return self.values + self.gradients

    @property
    def grain(self) -> float:
        """The step that moves the point by its rounding."""
        if self._known_grain is None:
            self._known_grain = 0.0 if self._grain is None else self._grain()
        return self._known_grain

    def invisible(self, width: float) -> bool:
        """Whether steps that differ by so much lead to the same point: most of its coordinates do not move."""
        return self.evaluations >= _SHORT and width <= _SAME_POINT * self.grain

    def limit(self, more: int) -> None:
        """Allow at most ``more`` further evaluations, or fewer if less was left."""
        total = self.evaluations + more
        self._max_evaluations = total if self._max_evaluations is None else min(total, self._max_evaluations)

    def value(self, step: float) -> Trial:
        """Evaluate φ."""
        return self._at(step, needs_slope=False)

    def value_and_slope(self, step: float) -> Trial:
        """Evaluate φ and φ'."""
        return self._at(step, needs_slope=True)

    def _at(self, step: float, *, needs_slope: bool) -> Trial:
        if self._max_evaluations is not None and self.evaluations >= self._max_evaluations:
            raise SearchStopped(f"the limit of {self._max_evaluations} evaluations was reached")
        value, slope = self._evaluate(step, needs_slope)
        if slope is None:
            self.values += 1
        else:
            self.gradients += 1
        if not math.isfinite(value) or not (slope is None or math.isfinite(slope)):
            return Trial(step, math.inf, math.nan)
        trial = Trial(step, value, math.nan if slope is None else slope)
        if trial.value < self.best.value:
            self.best = trial
        if abs(trial.slope) < (abs(self.flattest.slope) if self.flattest else -0.5 * self.start.slope):
            self.flattest = trial
        return trial


@dataclass(frozen=True, kw_only=True)
class LineSearch(ABC):
    """A method of finding a step along a `Line`; its fields are its settings, a call is one search."""

    max_trials: int = 60
    """Evaluations after which a search gives up. Doubling spans 1e18, bisection resolves 1e-18: enough for float64."""

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            MisuseError: ``max_trials`` is not positive.
        """
        if self.max_trials < 1:
            raise MisuseError(f"max_trials must be at least 1, got {self.max_trials}.")

    def __call__(self, line: Line, initial_step: float) -> SearchResult:
        """Search along ``line``, trying ``initial_step`` first.

        At the limit of evaluations the lowest point so far is returned; if none is lower than φ(0), `failed` says why.

        Raises:
            MisuseError: ``initial_step`` is not positive and finite.
        """
        if not 0.0 < initial_step < math.inf:
            raise MisuseError(f"the initial step must be positive and finite, got {initial_step!r}.")
        line.limit(self.max_trials)
        try:
            return _result(line, self._search(line, initial_step), converged=True)
        except SearchStopped as stop:
            if line.best.value < line.start.value:
                return _result(line, line.best, converged=False)
            return _result(line, line.start, converged=False, failed=f"{stop}; no lower value was found")

    def next_step(self, line: Line, previous_step: float, previous_slope: float) -> float:
        """Return the first trial after an accepted step: α φ'₋(0)/φ'(0), the same first-order change as before.

        Source: Nocedal and Wright, Numerical Optimization, 2nd ed. 2006, section 3.5.
        """
        return usable(previous_step * (previous_slope / line.start.slope), previous_step)

    @abstractmethod
    def _search(self, line: Line, initial_step: float) -> Trial:
        """Return a trial that meets the method's conditions, or raise `SearchStopped`."""


def before_barrier(best: Trial, step: float, barrier: float) -> float:
    """Return ``step``, or the middle between the best step and a longer one whose loss was not finite.

    Raises:
        SearchStopped: less than a tenth of the best step is left, which is not worth creeping up to.
    """
    if barrier - best.step < 0.1 * best.step:
        raise SearchStopped("the loss is not finite just beyond the best step")
    return min(step, 0.5 * (best.step + barrier))


def usable(step: float, otherwise: float) -> float:
    """Return ``step`` if it is positive and finite, else ``otherwise``."""
    return step if 0.0 < step < math.inf else otherwise


def _result(line: Line, trial: Trial, *, converged: bool, failed: str | None = None) -> SearchResult:
    slope = None if math.isnan(trial.slope) else trial.slope
    return SearchResult(trial.step, trial.value, slope, line.values, line.gradients, converged, failed)

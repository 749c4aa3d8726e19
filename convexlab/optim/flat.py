"""What all full-batch optimisers share: one flat vector, one ray at a time, and weights that are never lost."""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.vectors import accumulation_dtype, flatten, unflatten
from convexlab.optim.evaluation import Closure, CountedClosure, Evaluation, Ray
from convexlab.optim.line_search import Line, LineSearch, SearchResult, build_line_search
from convexlab.optim.line_search.interface import RETREAT
from convexlab.optim.memory import Memory

__all__ = ["Direction", "FlatOptimizer", "StepReport"]

_M = TypeVar("_M", bound=Memory)

_PSI_0 = 0.01  # First step as a share of the weights' largest entry: ψ₀ of Hager and Zhang (2005), rule I0.


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
    """First trial, if it is known. With neither, the size of the weights sets it."""
    restarted: str | None = None
    """None, or why the memory was dropped."""
    memory: Memory | None = None
    """The optimiser's memory if this direction is taken; None leaves it as it is."""


class FlatOptimizer(torch.optim.Optimizer):
    """Base of the optimisers that search along one direction of the flat parameter vector a step.

    A subclass proposes directions (`_directions`), each with the memory that the optimiser has if it is taken. What it
    remembers beyond `Memory` are the fields of a subclass of that, which its property `_memory` names.

    * The closure is torch's: zero the gradients, forward, backward, return the loss. If it takes a keyword
      ``backward``, searches by values call ``closure(backward=False)``. It runs with gradients enabled either way,
      since a loss may need them (physics-informed networks); asked for the value alone, it is free to disable them.
    * Within a step the closure must be one function: no dropout, no change of batch. Where it is one function over all
      steps (``reuse=True``), a gradient evaluated at the accepted step opens the next step, so that nothing is paid for
      twice. The weights must still be those, bit for bit: they are compared with a copy, so that no way of changing
      them goes unseen and the gradient survives `state_dict`. Weights that were changed drop the memory as well.
    * A failed search, or an exception from the closure, leaves the weights bit for bit as they were.
    * One host synchronisation an evaluation, and two a step.

    Args:
        params: parameters, or one group of them: dense, real, floating, of one dtype on one device. One without a
            gradient counts as having gradient zero.
        line_search: a name from `line_search_names`, or a `LineSearch` with settings of its own.
        max_evaluations: limit on the closure calls of a step's searches (one more opens a step that has no gradient to
            reuse); None for no limit. ``param_groups[0]["max_evaluations"]`` may be changed between steps.
        reuse: whether the closure is the same function at every step.

    Raises:
        MisuseError: parameters or settings other than these.
    """

    report: StepReport | None
    """What the last step did; None before the first."""

    def __init__(
        self,
        params: Any,
        *,
        line_search: str | LineSearch,
        max_evaluations: int | None = None,
        reuse: bool = True,
    ) -> None:
        self.line_search = build_line_search(line_search)
        self.reuse = reuse
        self.report = None
        super().__init__(params, {"max_evaluations": max_evaluations})
        self._limit()

    def __getstate__(self) -> dict[str, Any]:
        # torch's own keeps only state and groups; a copy needs the settings too.
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the one group of parameters.

        Raises:
            MisuseError: there is one already, or its parameters do not make one flat vector.
        """
        name = type(self).__name__
        if self.param_groups:
            raise MisuseError(
                f"{name} searches along one direction for all parameters: expected one parameter group, got a second. "
                "Pass all parameters in one group."
            )
        super().add_param_group(param_group)
        _check_parameters(self._parameters, name)

    @property
    def known(self) -> tuple[float, float] | None:
        """(loss, gradient norm) where the last step ended, if it evaluated both there; None otherwise."""
        kept = self._memory.kept
        return None if kept is None else (kept.loss, math.sqrt(kept.squared_norm))

    def restart(self) -> None:
        """Forget everything learnt from earlier steps, such as after a change of the loss."""
        self.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes: plain dictionaries of tensors, not copied, numbers, and text."""
        return {**super().state_dict(), "state": {0: self._memory.as_state()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a stored state, which later steps leave as it is.

        Raises:
            MisuseError: another kind of optimiser stored it.
        """
        memory = self._restored(next(iter(state_dict["state"].values()), {}))
        super().load_state_dict({**state_dict, "state": {}})
        self._remember(memory)

    @torch.no_grad()
    def step(self, closure: Closure) -> Tensor:  # type: ignore[override]
        """Search along one direction and move there; `report` says how it went.

        Returns:
            The loss where the step began, 0-dimensional.

        Raises:
            MisuseError: no closure, a closure that does not return one real number, or ``max_evaluations`` below 1.
        """
        call = CountedClosure(closure, self._parameters)
        limit = self._limit()
        weights = flatten(self._parameters)
        try:
            start = self._start(call, weights)
            self.report = self._descend(call, weights, start, limit)
        except BaseException:
            self._write(weights)
            raise
        return torch.tensor(start.loss, dtype=accumulation_dtype(weights.device), device=weights.device)

    @abstractmethod
    def _directions(self, start: Evaluation) -> Iterator[Direction]:
        """Yield a direction of descent, then others to fall back on if the search along it fails."""

    def _propose(
        self, call: CountedClosure, weights: Tensor, start: Evaluation, limit: int | None
    ) -> Iterator[Direction]:
        """Yield the directions; what evaluates elsewhere to find them overrides this, and may leave the weights there.

        Its evaluations count towards the limit, of which it has to leave the search something.
        """
        return self._directions(start)

    @property
    def _parameters(self) -> list[Tensor]:
        return self.param_groups[0]["params"]  # type: ignore[no-any-return]

    @property
    def _memory(self) -> Memory:
        """What was learnt from earlier steps; a subclass that learns more returns its own kind."""
        return self._remembered(Memory)

    def _remembered(self, kind: type[_M]) -> _M:
        """Return the memory, an empty one if there is none. As in torch's L-BFGS, it lies under the first parameter."""
        state = self.state[self._parameters[0]]
        if "memory" not in state:
            state["memory"] = kind()
        return state["memory"]  # type: ignore[no-any-return]

    def _remember(self, memory: Memory) -> None:
        self.state[self._parameters[0]]["memory"] = memory

    def _restored(self, stored: Mapping[str, Any]) -> Memory:
        kind = type(self._memory)
        if unknown := sorted(set(stored) - {each.name for each in fields(kind)}):
            raise MisuseError(
                f"expected a state that {type(self).__name__} stored, got one with {', '.join(map(repr, unknown))}. "
                "Load it into an optimiser of the kind that stored it."
            )
        return kind.from_state(stored, self._parameters[0])

    def _limit(self) -> int | None:
        limit = self.param_groups[0]["max_evaluations"]
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise MisuseError(f"max_evaluations must be None or an integer of at least 1, got {limit!r}.")
        return limit

    def _write(self, flat: Tensor) -> None:
        parameters = self._parameters
        torch._foreach_copy_(parameters, unflatten(flat, parameters))

    def _start(self, call: CountedClosure, weights: Tensor) -> Evaluation:
        memory = self._memory
        if memory.weights is not None and not torch.equal(memory.weights, weights):
            self.restart()
            self._memory.restarted = "the weights were changed between steps"
        elif self.reuse and memory.kept is not None:
            return memory.kept
        return call.evaluate()[0]

    def _descend(self, call: CountedClosure, weights: Tensor, start: Evaluation, limit: int | None) -> StepReport:
        slope, restarted, failures = 0.0, None, []
        spent = call.evaluations
        if reason := _hopeless(start):
            return self._give_up(call, weights, start, slope, restarted, reason)
        for direction in self._propose(call, weights, start, limit):
            left = None if limit is None else limit - (call.evaluations - spent)
            if left == 0:
                break
            slope, restarted = direction.slope, direction.restarted
            ray = Ray(self._write, call, weights, direction.vector)
            result = self._search(ray, weights, start, direction, left)
            if result.failed is None:
                self._accept(ray, direction, result)
                return _report(start, call, slope, result.step_size, restarted=restarted)
            failures.append(result.failed)
        report = self._give_up(call, weights, start, slope, restarted, "; then ".join(failures))
        if limit is not None and call.evaluations - spent >= limit:
            # The limit, not the loss, ended the search. Starting afresh with the same trials would end it again.
            self._memory.first_step = RETREAT * ray.last[0]
        return report

    def _search(
        self, ray: Ray, weights: Tensor, start: Evaluation, direction: Direction, limit: int | None
    ) -> SearchResult:
        resolution = self._memory.resolution
        if resolution is None:
            resolution = torch.finfo(weights.dtype).eps
        line = Line(ray.evaluate, start.loss, direction.slope, max_evaluations=limit, resolution=resolution)
        if direction.initial_step is not None:
            initial = direction.initial_step
        elif direction.previous is not None:
            initial = self.line_search.next_step(line, *direction.previous)
        else:
            initial = self._memory.first_step or _first_step(weights, start, direction)
        result = self.line_search(line, initial)
        if line.resolution > resolution:  # Found out once, for the steps to come too.
            self._memory.resolution = line.resolution
        return result

    def _accept(self, ray: Ray, direction: Direction, result: SearchResult) -> None:
        weights = ray.at(result.step_size)
        self._write(weights)
        step, evaluation = ray.last
        memory = direction.memory or self._memory
        memory = memory.ending(weights, evaluation if step == result.step_size else None)
        # The resolution may have been found out by this search.
        resolution = self._memory.resolution
        self._remember(replace(memory, step_size=result.step_size, slope=direction.slope, resolution=resolution))

    def _give_up(
        self,
        call: CountedClosure,
        weights: Tensor,
        start: Evaluation,
        slope: float,
        restarted: str | None,
        reason: str,
    ) -> StepReport:
        self._write(weights)
        resolution = self._memory.resolution  # It is the loss's, not of what was learnt about directions.
        self.restart()
        memory = replace(self._memory, resolution=resolution)
        self._remember(memory.ending(weights, start if start.finite else None))
        return _report(start, call, slope, restarted=restarted, failed=reason)


def _check_parameters(parameters: list[Tensor], name: str) -> None:
    for parameter in parameters:
        if parameter.layout != torch.strided or not parameter.is_floating_point():
            raise MisuseError(
                f"{name} takes dense, real, floating-point parameters, got {parameter.dtype}, {parameter.layout}."
            )
    for what in ("dtype", "device"):
        kinds = sorted({str(getattr(parameter, what)) for parameter in parameters})
        if len(kinds) > 1:
            raise MisuseError(f"{name} takes parameters of one {what}, got {', '.join(kinds)}. Convert them first.")


def _hopeless(start: Evaluation) -> str | None:
    if not start.finite:
        return f"the loss or its gradient is not finite where the step begins (loss {start.loss})"
    if start.squared_norm == 0.0:
        return "the gradient is zero: no direction descends"
    return None


def _first_step(weights: Tensor, start: Evaluation, direction: Direction) -> float:
    """Return ψ₀‖x‖∞/‖d‖∞, or ψ₀|f|/|gᵀd| if x = 0 (rule I0 of Hager and Zhang 2005, there for d = -g).

    With neither, the first trial moves by a unit length; I0 has the step 1 there, which the loss's scale changes.
    """
    largest = torch.stack([torch.linalg.vector_norm(vector, math.inf) for vector in (weights, direction.vector)])
    size, length = largest.tolist()
    if size > 0.0:
        step = _PSI_0 * size / length
    elif start.loss != 0.0:
        step = _PSI_0 * abs(start.loss) / -direction.slope
    else:
        step = 1.0 / length
    return float(min(step, sys.float_info.max))


def _report(
    start: Evaluation,
    call: CountedClosure,
    slope: float,
    step_size: float = 0.0,
    *,
    restarted: str | None = None,
    failed: str | None = None,
) -> StepReport:
    norm = math.sqrt(start.squared_norm) if start.squared_norm >= 0.0 else math.nan
    return StepReport(start.loss, norm, step_size, slope, call.values, call.gradients, restarted, failed)

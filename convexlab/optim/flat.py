"""What all full-batch optimisers share: one flat vector, one ray at a time, and weights that are never lost."""

from __future__ import annotations

import math
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.vectors import accumulation_dtype, dot, flatten, norm, unflatten
from convexlab.machine.ranks import ALONE, Ranks
from convexlab.optim.checks import (
    check_group,
    check_groups,
    check_parameters,
    check_processes,
    check_surroundings,
    process_count,
)
from convexlab.optim.evaluation import Closure, CountedClosure, Evaluation, Ray
from convexlab.optim.line_search import Line, LineSearch, SearchResult, build_line_search
from convexlab.optim.line_search.interface import RETREAT
from convexlab.optim.memory import Memory
from convexlab.optim.preconditioners import DiagonalPreconditioner, Preconditioner, check_preconditioner
from convexlab.optim.steps import Attempt, Direction, Start, StepReport, StepState, report_of

__all__ = ["FlatOptimizer"]

_M = TypeVar("_M", bound=Memory)

_PSI_0 = 0.01  # First step as a share of the weights' largest entry: ψ₀ of Hager and Zhang (2005), rule I0.

# Multiples of the rounding of a loss, or of the weights. No decrease is expected of a direction that promises less than
# the former, or moves the weights by less than the latter. Two losses at the same weights that differ by more are of
# two functions, because a sum in another order differs by less.
_FLOOR, _SAME = 8.0, 100.0
_TURNED = 0.01  # Two gradients that differ by more than this share are of two functions, too.

# From this count of changed closures on (`Memory.renewals`), no step expects the function of the last one. Three
# changes within some ten steps reach it; points drawn anew every ten steps never do.
_RENEWALS, _FORGOTTEN = 2.0, 0.9


class FlatOptimizer(torch.optim.Optimizer):
    """Base of the optimisers that search along one direction of the flat parameter vector a step.

    A subclass proposes directions (`_directions`), each with the memory that the optimiser has if it is taken. What it
    remembers beyond `Memory` are the fields of a subclass of that, which its property `_memory` names.

    * The closure is torch's: zero the gradients, forward, backward, return the loss. If it takes a keyword
      ``backward``, searches by values call ``closure(backward=False)``. It runs with gradients enabled either way,
      because a loss may need them (physics-informed networks). For the value alone, the closure may disable them.
    * Within a step the closure must be one function: no dropout, no change of batch. If it is not, there is a warning.
      Where it is one function over all steps (``reuse=True``), the gradient at the accepted step opens the next step,
      and is not evaluated twice. If a search from such a gradient fails, the start is evaluated once more. That reveals
      a closure that has changed (points drawn anew). The step then goes on from there, and keeps its memory of
      directions. A closure that keeps changing is evaluated at every start from then on, as with ``reuse=False``.
    * Weights that other code has changed between steps (clamped, averaged) cost an evaluation. They are compared with a
      copy, bit for bit, so that every change is noticed and the gradient survives `state_dict`.
    * The model may change its dtype or device between steps.
    * A failed search, or an exception from the closure, leaves the weights bit for bit as they were. After a step for
      which no direction descends, the next ones cost one evaluation each, as long as weights and closure are the same.
    * One host synchronisation an evaluation, and two a step.
    * ``lr`` in the group is a factor on the first trial of every search, 1 by default, for schedulers. It is no step
      size.

    Args:
        params: parameters, or groups of them with equal settings: dense, real, floating, of one dtype on one device.
            One without a gradient counts as having gradient zero.
        line_search: a name from `line_search_names`, or a `LineSearch` with settings of its own.
        preconditioner: P ≈ H⁻¹ as in `NonlinearCG`. One that knows its parameters is put in their order.
        max_evaluations: limit on the closure calls of a step's searches (one more opens a step that has no gradient to
            reuse); None for no limit. ``param_groups[0]["max_evaluations"]`` may be changed between steps.
        reuse: whether the closure is the same function at every step.

    Raises:
        MisuseError: parameters or settings other than these.
    """

    report: StepReport | None
    """The report of the last step; None before the first."""
    processes: str | None
    """How several processes of torch.distributed work together. ``"averaged"``: loss and gradient are averaged over all
    of them. They have to step together, each on an equal share of the data (DDP). ``"together"``: the closure gives all
    of them the same bits already, as that of an `Objective` with a group does. They step together, and each holds a
    part of the optimiser's memory. So all have to call `state_dict` together, which is complete in rank 0 alone.
    ``"alone"``: this one decides by itself. None, as at first, refuses to step where there are several. It is set
    before the first step."""

    def __init__(
        self,
        params: Any,
        *,
        line_search: str | LineSearch,
        preconditioner: Preconditioner | None = None,
        max_evaluations: int | None = None,
        reuse: bool = True,
    ) -> None:
        name, params = type(self).__name__, list(params)
        if not params:
            raise MisuseError(f"{name} got no parameters. A generator of them is empty once it has been used.")
        check_preconditioner(preconditioner)
        self.line_search = build_line_search(line_search)
        self.reuse = reuse
        super().__init__(params, {"lr": 1.0, "max_evaluations": max_evaluations})
        check_parameters(self._parameters, name)
        check_groups(self.param_groups)
        if isinstance(preconditioner, DiagonalPreconditioner):
            preconditioner = preconditioner.of(self._parameters)
        self.preconditioner = preconditioner
        self.report = self.processes = None

    def __getstate__(self) -> dict[str, Any]:
        # torch's own keeps only state and groups; a copy needs the settings too.
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, while the optimiser is built.

        Raises:
            MisuseError: it is built already, the group is empty, or it has settings that no flat optimiser knows.
        """
        name = type(self).__name__
        if hasattr(self, "report"):
            raise MisuseError(f"{name} knows its parameters from the start. Build another one with all of them.")
        check_group(param_group, name)
        super().add_param_group(param_group)
        if not self.param_groups[-1]["params"]:
            raise MisuseError(f"{name} got an empty parameter group. Leave it out.")

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
        memory = self._memory.joined(self.ranks, self._size)
        return {**super().state_dict(), "state": {0: {**memory.as_state(), "method": self._method()}}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a stored state, which later steps leave as it is.

        Raises:
            MisuseError: another kind of optimiser stored it, one with other settings, or one of other parameters.
        """
        if not isinstance(state_dict, Mapping) or not isinstance(state_dict.get("state"), Mapping):
            raise MisuseError(f"expected what state_dict() returns, got {type(state_dict).__name__} without a state.")
        memory = self._restored(dict(next(iter(state_dict["state"].values()), {})))
        try:
            super().load_state_dict({**state_dict, "state": {}})
        except ValueError as error:
            raise MisuseError(f"the state is of other parameter groups: {error}.") from error
        self._remember(memory)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Search along one direction and move there; `report` says how it went.

        Returns:
            The loss where the step began, 0-dimensional.

        Raises:
            MisuseError: there are several processes and `processes` is None, or settings of the groups are out of
                range. There is no closure, or it does not return one real number, or leaves no gradient. Inference mode
                or autocast is on.
        """
        check_processes(self.processes, type(self).__name__)
        call = self._counted(closure)
        limit = self._limit()
        weights = self._take_up_weights()
        try:
            self.report = self._descend(call, weights, self._start(call, weights), limit)
        except BaseException:
            self._write(weights)
            raise
        return torch.tensor(self.report.loss, dtype=accumulation_dtype(weights.device), device=weights.device)

    def _counted(self, closure: Closure | None) -> CountedClosure:
        """Return what the step evaluates; a method whose closure returns something else overrides this."""
        return CountedClosure(closure, self._parameters, averaged=self.processes == "averaged")

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

    def _learn(self, end: Evaluation | None) -> None:
        """Take in where the last step ended, before the next begins elsewhere or with another loss; None: not known."""

    def _settings(self) -> dict[str, Any]:
        """Return the settings with which alone a state can be gone on with."""
        return {"preconditioner": None if self.preconditioner is None else type(self.preconditioner).__name__}

    @property
    def ranks(self) -> Ranks:
        """Which hold a part each of what it remembers: this process alone unless `processes` is "together"."""
        several = self.processes == "together" and process_count() > 1
        return Ranks.of(torch.distributed.group.WORLD) if several else ALONE

    @property
    def _size(self) -> int:
        return sum(parameter.numel() for parameter in self._parameters)

    @property
    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @property
    def _memory(self) -> Memory:
        """What was learnt from earlier steps; a subclass that learns more returns its own kind."""
        return self._remembered(Memory)

    def _remembered(self, kind: type[_M]) -> _M:
        """Return the memory, an empty one if there is none. As in torch's L-BFGS, it lies under the first parameter."""
        state = self.state[self.param_groups[0]["params"][0]]
        if "memory" not in state:
            state["memory"] = kind()
        return state["memory"]  # type: ignore[no-any-return]

    def _remember(self, memory: Memory) -> None:
        self.state[self.param_groups[0]["params"][0]]["memory"] = memory

    def _method(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, **self._settings()}

    def _restored(self, stored: dict[str, Any]) -> Memory:
        kind, ours, theirs = type(self._memory), self._method(), stored.pop("method", None)
        if theirs is None:  # As older versions stored it.
            theirs = {**ours, "history": stored.get("history") or ours.get("history")}
        unknown = sorted(set(stored) - {each.name for each in fields(kind)})
        if theirs.get("kind") != ours["kind"] or unknown:
            origin = f"one with {', '.join(map(repr, unknown))}" if unknown else f"one of {theirs.get('kind')}"
            raise MisuseError(
                f"expected a state that {ours['kind']} stored, got {origin}. Load it into an optimiser of the kind "
                "that stored it, or go on without it."
            )
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise MisuseError(
                    f"the state was stored with {name}={theirs.get(name)!r}, but this {ours['kind']} has {value!r}. "
                    "Build it with the same, or go on without the state: it then starts afresh."
                )
        memory = kind.from_state(stored, self._parameters[0])
        size = self._size
        if memory.weights is not None and memory.weights.numel() != size:
            raise MisuseError(
                f"the state is of {memory.weights.numel():,} numbers, but the parameters have {size:,}. Load it into "
                "an optimiser of the model that it was stored with."
            )
        if misfit := memory.misfit(size):
            raise MisuseError(f"the state is damaged: {misfit}. Go on without it: the optimiser then starts afresh.")
        return memory.part(self.ranks, size)

    def _limit(self) -> int | None:
        check_groups(self.param_groups)
        return self.param_groups[0]["max_evaluations"]  # type: ignore[no-any-return]

    def _take_up_weights(self) -> Tensor:
        """Return the weights (n,), and bring the memory into their dtype and onto their device."""
        parameters, name = self._parameters, type(self).__name__
        check_surroundings(parameters[0].device, name)
        check_parameters(parameters, name)
        weights, memory = flatten(parameters), self._memory.like(parameters[0])
        if memory.weights is not None and memory.weights.shape != weights.shape:
            memory = type(memory)(restarted="the parameters have another size than before")
        if not memory.holds_part(self.ranks, weights.numel()):
            raise MisuseError(
                f"{name}.processes is {self.processes!r} now, but the optimiser's memory was made with another value. "
                "Set it before the first step, or call restart()."
            )
        self._remember(memory)
        return weights

    def _write(self, flat: Tensor) -> None:
        parameters = self._parameters
        torch._foreach_copy_(parameters, unflatten(flat, parameters))

    def _start(self, call: CountedClosure, weights: Tensor) -> Start:
        memory = self._memory
        kept, moved = memory.kept, memory.weights is not None and not torch.equal(memory.weights, weights)
        reuse = self.reuse and memory.renewals < _RENEWALS
        if kept is not None and reuse and memory.halted is None:
            if not moved:
                return Start(kept, fresh=False)
            if self._invisible(weights, kept):
                self._learn(kept)
                return Start(kept, fresh=False, weights_changed=True)
        evaluation = call.evaluate()[0]
        renewed = kept is not None and not moved and self._differs(kept, evaluation)
        if moved or renewed:
            self._learn(kept)
            memory.halted = None
        return Start(evaluation, True, moved, kept if renewed and reuse else None)

    def _invisible(self, weights: Tensor, kept: Evaluation) -> bool:
        """Whether weights were moved so little since the last step that the kept gradient still holds.

        The loss changes by less than its rounding to first order, and the move is a rounding beside the step before.
        """
        memory = self._memory
        if memory.weights is None or memory.direction is None:
            return False
        move = weights - memory.weights
        products = dot(kept.gradient, move), norm(move), norm(memory.direction)
        change, length, last = torch.stack(products).tolist()
        resolution = self._resolution(weights.dtype)
        short = bool(length <= math.sqrt(resolution) * memory.step_size * last)
        return short and bool(abs(change) <= resolution * abs(kept.loss))

    def _differs(self, before: Evaluation, now: Evaluation) -> bool:
        """Whether two evaluations at the same weights are of two functions."""
        if not now.finite:
            return False
        allowed = _SAME * self._resolution(before.gradient.dtype) * max(abs(before.loss), abs(now.loss))
        if not abs(before.loss - now.loss) <= allowed:
            return True
        # Where nothing is left to gain, a gradient may be all rounding, which sums in another order change.
        if self._memory.halted_as == "converged":
            return False
        change = norm(before.gradient - now.gradient).item()
        return change > _TURNED * math.sqrt(max(before.squared_norm, now.squared_norm))

    def _resolution(self, dtype: torch.dtype) -> float:
        """Return the relative rounding of a loss."""
        return self._memory.resolution or torch.finfo(dtype).eps

    def _descend(self, call: CountedClosure, weights: Tensor, start: Start, limit: int | None) -> StepReport:
        """Search from the start, or from where the closure turns out to be now."""
        memory, before = self._memory, call.evaluations

        def room() -> int | None:
            return None if limit is None else limit - (call.evaluations - before)

        if reason := _hopeless(start.evaluation):
            return self._give_up(call, weights, start, Attempt(failures=[reason[1]]), reason[0])
        if memory.halted is not None:
            return report_of(start, call, Attempt(failures=[memory.halted]), _as_state(memory.halted_as))
        attempt = self._attempt(call, weights, start, room)
        if attempt.again is not None and not start.fresh and self._is_one(attempt.again, call, room()):
            self._learn(start.evaluation)
            start = Start(attempt.again, True, closure_before=start.evaluation)
            attempt = self._attempt(call, weights, start, room)
        if attempt.step_size == 0.0:
            return self._give_up(call, weights, start, attempt, self._state_after(attempt, start, room()))
        self._memory.renewals = self._count_renewals(memory.renewals, start)
        return report_of(start, call, attempt, "moved")

    def _count_renewals(self, before: float, start: Start) -> float:
        """Return `Memory.renewals` after a step, and warn where it has become too much."""
        if before >= _RENEWALS:
            return before  # From there on functions are not compared any more.
        now = _FORGOTTEN * before + (start.closure_before is not None)
        if now >= _RENEWALS:
            warnings.warn(_RENEWED, stacklevel=5)
        return now

    def _attempt(self, call: CountedClosure, weights: Tensor, start: Start, room: Callable[[], int | None]) -> Attempt:
        """Search along one direction after the other, and move at the first success.

        A search that fails from what an earlier step has evaluated, or all of them from what this step has, evaluates
        the start once more.
        """
        attempt = Attempt()
        for direction in self._propose(call, weights, start.evaluation, room()):
            if room() == 0:
                break
            attempt.slope, attempt.restarted = direction.slope, direction.restarted
            ray = Ray(self._write, call, weights, direction.vector)
            result, promised = self._search(ray, weights, start.evaluation, direction, room())
            if result.failed is None:
                attempt.step_size = result.step_size
                self._accept(ray, direction, result)
                return attempt
            attempt.failures.append(result.failed)
            attempt.promised, attempt.last = max(attempt.promised, promised), ray.last[0]
            if (
                not start.fresh
                and len(attempt.failures) == 1
                and self._finds_another(attempt, call, weights, start, room)
            ):
                return attempt
        if start.fresh and attempt.failures and attempt.promised > self._floor(start.evaluation):
            self._finds_another(attempt, call, weights, start, room)
        return attempt

    def _finds_another(
        self, attempt: Attempt, call: CountedClosure, weights: Tensor, start: Start, room: Callable[[], int | None]
    ) -> bool:
        """Evaluate the start once more, and return whether that is another function's."""
        if room() == 0:
            return False
        self._write(weights)
        again = self._evaluated_again(call, start.evaluation)
        if self._differs(start.evaluation, again):
            attempt.again = again
        return attempt.again is not None

    def _evaluated_again(self, call: CountedClosure, before: Evaluation) -> Evaluation:
        """Return what the closure gives now where ``before`` was evaluated."""
        return call.evaluate()[0]

    def _is_one(self, now: Evaluation, call: CountedClosure, room: int | None) -> bool:
        """Whether a closure that has changed gives the same once more: it is another function, not none at all."""
        return room != 0 and not self._differs(now, call.evaluate()[0])

    def _search(
        self, ray: Ray, weights: Tensor, start: Evaluation, direction: Direction, limit: int | None
    ) -> tuple[SearchResult, float]:
        """Search along a direction; return the result, and the fall of the loss that the direction promised."""
        resolution = self._resolution(weights.dtype)
        line = Line(
            ray.evaluate,
            start.loss,
            direction.slope,
            max_evaluations=limit,
            resolution=resolution,
            grain=lambda: _grain(weights, direction.vector),
        )
        if direction.initial_step is not None:
            initial = direction.initial_step
        elif direction.previous is not None:
            initial = self.line_search.next_step(line, *direction.previous)
        else:
            length = getattr(self.preconditioner, "step_length", None)
            initial = self._memory.first_step or _first_step(weights, start, direction, length)
        initial *= float(self.param_groups[0]["lr"])
        result = self.line_search(line, initial)
        if line.resolution > resolution:  # Found out once, for the steps to come too.
            self._memory.resolution = line.resolution
        proposed = initial if line.flattest is None else line.flattest.step
        at_rounding = result.failed is not None and proposed <= _FLOOR * line.grain
        return result, 0.0 if at_rounding else -0.5 * direction.slope * proposed

    def _accept(self, ray: Ray, direction: Direction, result: SearchResult) -> None:
        weights = ray.at(result.step_size)
        self._write(weights)
        step, evaluation = ray.last
        memory = direction.memory or self._memory
        memory = memory.ending(weights, evaluation if step == result.step_size else None)
        # The resolution may have been found out by this search.
        resolution = self._memory.resolution
        self._remember(replace(memory, step_size=result.step_size, slope=direction.slope, resolution=resolution))

    def _state_after(self, attempt: Attempt, start: Start, room: int | None) -> StepState:
        """Return how a step without success ended."""
        if attempt.again is not None:
            before, now = start.evaluation.loss, attempt.again.loss
            attempt.failures.append(
                f"the closure is not one function: at the same weights it gave {before:.6g}, {now:.6g}"
            )
            warnings.warn(f"{attempt.failures[-1]}. {_NOT_ONE}", stacklevel=5)
            return "stuck"
        if room == 0:
            return "limit reached"
        return "converged" if attempt.promised <= self._floor(start.evaluation) else "stuck"

    def _floor(self, start: Evaluation) -> float:
        """Return the fall of the loss that its rounding hides."""
        return _FLOOR * self._resolution(start.gradient.dtype) * abs(start.loss)

    def _give_up(
        self, call: CountedClosure, weights: Tensor, start: Start, attempt: Attempt, state: StepState
    ) -> StepReport:
        self._write(weights)
        memory, report = self._memory, report_of(start, call, attempt, state)
        afresh = memory.step_size == 0.0
        self.restart()
        # The rounding is the loss's, not of what was learnt about directions.
        kept = replace(self._memory, resolution=memory.resolution, renewals=memory.renewals)
        kept = kept.ending(weights, start.evaluation if start.evaluation.finite else None)
        if state == "limit reached":
            # The limit, not the loss, ended the search. Starting afresh with the same trials would end it again.
            kept.first_step = RETREAT * attempt.last
        elif state == "converged" or (state == "stuck" and afresh and attempt.again is None):
            kept.halted, kept.halted_as = report.failed, state
        self._remember(kept)
        return report


_RENEWED = (
    "the closure keeps becoming another function. From now on every step evaluates its start, as with reuse=False. "
    "That is for data that are new at every step; for mini-batches use ProgressiveLBFGS."
)
_NOT_ONE = (
    "Within a step it must be: no dropout, one batch. Draw new data between steps only (reuse=False then), or use "
    "ProgressiveLBFGS for mini-batches."
)


def _as_state(state: str | None) -> StepState:
    return "converged" if state == "converged" else "stuck"


def _hopeless(start: Evaluation) -> tuple[StepState, str] | None:
    if not start.finite:
        return "not finite", f"the loss or its gradient is not finite where the step begins (loss {start.loss})"
    if start.squared_norm == 0.0:
        return "converged", "the gradient is zero: no direction descends"
    return None


def _grain(weights: Tensor, vector: Tensor) -> float:
    """Return the step along a direction that moves the weights by their rounding."""
    length, size = torch.stack([torch.linalg.vector_norm(each) for each in (vector, weights)]).tolist()
    return float(torch.finfo(weights.dtype).eps * size / length) if length > 0.0 else 0.0


def _first_step(weights: Tensor, start: Evaluation, direction: Direction, length: float | None) -> float:
    """Return the step of the given length, else ψ₀‖x‖∞/‖d‖∞, or ψ₀|f|/|gᵀd| if x = 0.

    The latter two are rule I0 of Hager and Zhang (2005), there for d = -g. With none of them the first trial moves by a
    unit length; I0 has the step 1 there, which the loss's scale changes.
    """
    if length is not None:
        return float(min(length / torch.linalg.vector_norm(direction.vector).item(), sys.float_info.max))
    largest = torch.stack([torch.linalg.vector_norm(vector, math.inf) for vector in (weights, direction.vector)])
    size, extent = largest.tolist()
    if size > 0.0:
        step = _PSI_0 * size / extent
    elif start.loss != 0.0:
        step = _PSI_0 * abs(start.loss) / -direction.slope
    else:
        step = 1.0 / extent
    return float(min(step, sys.float_info.max))

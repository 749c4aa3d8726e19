"""The mean loss over batches as a function of a model's parameters, evaluated anywhere.

Batches, micro-batches, devices and dtypes stop here. The loss is the mean over the whole data set however it is cut
into batches: weighted by the number of examples, summed in float64. Evaluation is in eval mode and from a fixed random
seed, so that it is a function. The model's parameters, buffers, modes and gradients are left as they were, and so is
the random state.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from convexlab.errors import CaptureWarning, FailureError, MisuseError, ShortageError, ShortageWarning
from convexlab.linalg.vectors import accumulation_dtype, flatten, norm, scale_of, select_parameters
from convexlab.machine.capture import Replayer
from convexlab.machine.memory import is_out_of_memory, release_freed_memory
from convexlab.machine.precision import Precision, calculating_in
from convexlab.machine.random_state import (
    fixed_random_state,
    generators_of,
    other_python_draws,
    restore_all,
    seed_all,
)
from convexlab.machine.ranks import ALONE, Ranks
from convexlab.objective.batches import batch_loss_of, common_rows, mapped, moved, pair_of, rows_of, split
from convexlab.objective.cost import Cost
from convexlab.objective.differentiation import differentiate, saved_bytes
from convexlab.objective.micro_batches import automatic_size, require_mean_over_rows
from convexlab.objective.noise import coarsest_eps
from convexlab.objective.one_function import as_one_function
from convexlab.objective.output_curvature import DifferentiatedCurvature, OutputCurvature, softmax_curvature
from convexlab.objective.soundness import CHECK_COST, CHECKED_ROWS

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["BatchLoss", "BatchResiduals", "BatchedLoss", "Parts", "Point", "divisible"]

Parts = Iterator[tuple[Any, float]]
"""(micro-batch, weight) pairs."""

Result = TypeVar("Result")

BatchLoss = Callable[[Any, Any], Tensor]
"""``fn(model, batch)``: the scalar mean loss of one batch."""

BatchResiduals = Callable[[Any, Any], Tensor | Sequence[Tensor]]
"""``fn(model, batch)``: a tensor, or several, whose squares sum to the loss of one batch."""


# By how many ε loss and gradient may differ between two calls, relative to their scales.
_SAME_VALUE = 100
_SAME_GRADIENT = 10_000
# Where memory is short, no fewer examples at a time: networks and losses that squeeze their output trip over one.
_LEAST_ROWS = 2


@dataclass
class _Limit:
    """Most examples at a time since memory ran short; None before. All copies of a loss share it."""

    rows: int | None = None
    said: int | None = None
    """The number of examples of which the last warning spoke."""


@dataclass
class _Captured:
    """What replays evaluations for as long as they are `BatchedLoss.captured`; all copies of a loss share it."""

    replayer: Replayer | None = None
    dtype: torch.dtype | None = None
    """Dtype of the loss whose evaluations are replayed."""


@dataclass(frozen=True)
class Point:
    """Where a loss is evaluated."""

    leaves: list[Tensor]
    """The selected parameters."""
    rest: dict[str, Tensor]
    """The other parameters, by name."""
    buffers: dict[str, Tensor]
    """The model's buffers, by name."""

    def tensors(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return all of them without the names."""
        return self.leaves, list(self.rest.values()), list(self.buffers.values())

    def with_tensors(self, tensors: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> Point:
        """Return the point that has others in their place."""
        leaves, rest, buffers = tensors
        return Point(leaves, dict(zip(self.rest, rest, strict=True)), dict(zip(self.buffers, buffers, strict=True)))


class _Bound(nn.Module):
    """Lets `functional_call` swap the tensors of ``model`` while ``fn`` uses it as an ordinary module."""

    def __init__(self, model: nn.Module, fn: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self.fn = fn

    def forward(self, batch: Any) -> Any:
        return self.fn(self.model, batch)


class BatchedLoss:
    """The mean loss of ``model`` over ``data``, batch by batch, at any values of the selected parameters.

    Args:
        model: evaluated in eval mode; of a ``DistributedDataParallel`` the module within.
        data: re-iterable of batches of any kind; tensors in them are moved to the device and dtype.
        fn: ``fn(model, batch)`` returns the scalar mean loss of a batch.
        criterion: if ``fn`` is a criterion of the model's output and ``batch[1]``, that criterion.
        residuals: ``residuals(model, batch)`` returns tensors whose squares sum to ``fn``; None where ``fn`` is no sum
            of squares.
        weight: ``weight(batch)`` returns the weight of the batch in the mean; None counts the rows of its first tensor.
        params: names, glob patterns or parameters; None selects all that require a gradient.
        micro_batch: examples evaluated at a time; None leaves batches whole, and ``"auto"`` chooses.
        memory_budget: bytes that the graphs of a product may take; None is half of what is free.
        device: where to evaluate; None is where the model is.
        dtype: in which to evaluate, whatever the model's own; None is the model's own.
        group: the processes that share the examples among them, see `parts`; None is this process alone.

    Raises:
        MisuseError: data that can be iterated only once, no parameter, a bad option.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        fn: BatchLoss,
        *,
        criterion: Callable[[Any, Any], Tensor] | None = None,
        residuals: BatchResiduals | None = None,
        weight: Callable[[Any], float] | None = None,
        params: Iterable[str | nn.Parameter] | str | nn.Parameter | None = None,
        micro_batch: int | Literal["auto"] | None = None,
        memory_budget: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        if isinstance(data, Iterator):
            raise MisuseError(
                "data can be iterated only once (it is an iterator or a generator): expected a list of batches or a "
                "DataLoader. Wrap it in list(...)."
            )
        if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
            raise MisuseError(
                f"expected data as batches that can be iterated over again and again, got {type(data).__name__}. "
                "Pass a list of (input, target) pairs or a DataLoader."
            )
        whole = isinstance(micro_batch, int) and micro_batch >= 1
        if not (whole or micro_batch is None or micro_batch == "auto"):
            raise MisuseError(f"expected micro_batch to be 'auto' or a whole number from 1, got {micro_batch!r}.")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module  # Its gradients are summed here; those of DDP are for a closure's own backward pass.
        self._model = model
        self._data = data
        self.ranks = Ranks.of(group)
        """Which evaluate it together."""
        self._weight = weight
        self._criterion = criterion
        self._parameters = select_parameters(model, params)
        first = next(iter(self._parameters.values()))
        self.device = torch.device(device) if device is not None else first.device
        self.dtype = dtype if dtype is not None else _common_dtype(self._parameters)
        self._bound = _Bound(model, fn)
        self._residuals = None if residuals is None else _Bound(model, residuals)
        self._outputs = _Bound(model, lambda module, batch: module(pair_of(batch)[0]))
        self._micro_batch = micro_batch
        self._cuttable = micro_batch is not None
        self._limit = _Limit()
        self._captured = _Captured()
        self.memory_budget = memory_budget
        self.cost = Cost()
        self.precision: Precision = "full"
        self._held: dict[str, tuple[Tensor, int]] = {}
        self._cut_before = False
        self._one_function = False
        self._total_weight: float | None = None
        self._most_parts: int | None = None
        self._whole: BatchedLoss | None = None
        self._share = 1.0

    @property
    def model(self) -> nn.Module:
        """The model whose parameters it is a function of."""
        return self._model

    @property
    def selected_parameters(self) -> list[nn.Parameter]:
        """The model's own, in the order of the flat vector."""
        return list(self._parameters.values())

    @property
    def size(self) -> int:
        """The number n of selected parameters."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    def point(self, *, requires_grad: bool = True) -> Point:
        """Return the model's present tensors, on this device and in this dtype; storage may be shared with them."""
        named = self._model.named_parameters()
        with torch.inference_mode(False):
            held = self._still_held()
            leaves = [
                held[name].detach() if name in held else self._cast(parameter)
                for name, parameter in self._parameters.items()
            ]
            return Point(
                leaves=[leaf.requires_grad_(requires_grad) for leaf in leaves],
                rest={name: self._cast(parameter) for name, parameter in named if name not in self._parameters},
                buffers={name: self._cast(buffer) for name, buffer in self._model.named_buffers()},
            )

    def value_at(self, point: Point) -> Tensor:
        """Return the loss at a point, as summed, in float64."""
        value: Tensor = self.mean(1, partial(self._add_values, point), Cost(values=1), self.marks("value", point))[0]
        return value

    def _add_values(self, point: Point, total: Tensor) -> float:
        with self._charge(values=1), self.evaluating():
            weights = 0.0
            for batch, weight in self.parts():
                total[0].add_(self.replayed("value", self._value_of_part, point, batch), alpha=weight)
                weights += weight
            return weights

    def value_and_gradient_at(self, point: Point) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient (n,) at a point that requires one, both as summed, in float64."""
        add, marks = partial(self._add_gradients, point), self.marks("gradient", point)
        mean = self.mean(self.size + 1, add, Cost(gradients=1), marks)
        return mean[-1], mean[:-1]

    def _add_gradients(self, point: Point, total: Tensor) -> float:
        with self._charge(gradients=1), self.evaluating():
            gradient, weights = total[:-1], 0.0
            for batch, weight in self.parts():
                loss, slope = self.replayed("gradient", self._value_and_gradient_of_part, point, batch)
                total[-1].add_(loss, alpha=weight)
                gradient.add_(slope, alpha=weight)
                weights += weight
            return weights

    def mean(
        self,
        size: int,
        add: Callable[[Tensor], float],
        unit: Cost,
        marks: Sequence[object],
        release: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Return a weighted mean (size,) over the examples of all ranks, as summed, in float64: one all-reduce.

        Args:
            size: of the mean.
            add: adds this rank's `parts`, each times its weight, to zeros (size,), and returns their weight in all.
            unit: see `in_memory`.
            marks: see `Ranks.total`.
            release: see `in_memory`.

        Raises:
            MisuseError: the data are empty, or their total weight is not positive.
        """

        def fill(total: Tensor) -> None:
            total[-1] = self.in_memory(lambda: add(total[:-1].zero_()), unit, release)

        begin, before = time.perf_counter(), self.cost.seconds
        with torch.inference_mode(False):
            zero = torch.zeros((), dtype=accumulation_dtype(self.device), device=self.device)
            total = self.ranks.total(size + 1, zero, fill, marks)
            if self.ranks.shared:
                waited = time.perf_counter() - begin - (self.cost.seconds - before)
                self.spend(Cost(seconds=max(0.0, waited)))
                self._total_weight = float(total[-1])
                _require_weight(self._total_weight)
            return total[:-1].div_(total[-1].clone())

    def marks(self, what: str, point: Point, *vectors: Tensor) -> Sequence[object]:
        """Return what must be equal in all ranks that evaluate together: the loss, the point and the vectors."""
        if not self.ranks.shared:
            return ()
        tensors = (*point.leaves, *point.rest.values(), *point.buffers.values(), *vectors)
        return (what, str(self.dtype), *_sums_of_bits(tensors))

    @contextlib.contextmanager
    def captured(self, *, wanted: bool = True) -> Iterator[Replayer | None]:
        """Within the block, record evaluations on CUDA as graphs, and replay them: for losses of many small kernels.

        Values, gradients and products are recorded once for each shape of batch, see `machine.capture`. What a graph
        cannot hold is evaluated without one, and the replayer's ``reasons`` say why. Within the block only parameters,
        buffers and batches may change. A weight of the criterion that is a Python number keeps its recorded value.
        Evaluations in another dtype are few and take twice the memory; they are not recorded.

        Args:
            wanted: False makes it a block without effect.
        """
        before = self._captured.replayer
        if before is not None or not wanted:
            yield before
            return
        replayer = Replayer(self.device)
        self._captured.replayer, self._captured.dtype = replayer, self.dtype
        try:
            yield replayer
        finally:
            self._captured.replayer = None
        if replayer.reasons and self.device.type == "cuda":
            reasons = "; ".join(f"{name or 'all'}: {reason}" for name, reason in replayer.reasons.items())
            warnings.warn(
                f"evaluated kernel by kernel: no graph could hold it. {reasons}.", CaptureWarning, stacklevel=3
            )

    @property
    def replayer(self) -> Replayer | None:
        """What replays evaluations; None outside of `captured`, and in another dtype."""
        return self._captured.replayer if self._captured.dtype == self.dtype else None

    def replayed(self, name: str, function: Callable[[Point, Any], Result], point: Point, batch: Any) -> Result:
        """Return a function's result for a micro-batch, by a recording where evaluations are `captured`.

        Args:
            name: of the function.
            function: returns tensors without graphs.
            point: where.
            batch: the micro-batch.
        """
        replayer = self.replayer
        if replayer is None:
            return function(point, batch)
        arguments = point.tensors()
        return replayer.call(
            name,
            self.parameter_key,
            lambda tensors, part: function(point.with_tensors(tensors), part),
            arguments,
            batch,
        )

    @property
    def parameter_key(self) -> tuple[str, ...]:
        """The names of the selected parameters."""
        return tuple(self._parameters)

    def in_memory(
        self, evaluate: Callable[[], Result], unit: Cost, release: Callable[[], bool] = lambda: False
    ) -> Result:
        """Return an evaluation's result; whenever memory is short, halve the number of examples at a time.

        The smaller number holds from then on, in every copy of this loss. A warning says so once.

        Args:
            evaluate: goes through all micro-batches.
            unit: the charge for a failed attempt, the same as for one that succeeds.
            release: frees memory that is not essential, and returns whether there was any. It is called first.

        Raises:
            ShortageError: memory does not suffice for `_LEAST_ROWS` examples, or for a batch that cannot be cut.
        """
        while True:
            try:
                result = evaluate()
                break
            except FailureError:
                raise
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Only now, with the error, is what it was raised in let go of.
            if not self.ranks.shared:  # Costs, by which all ranks decide, must be equal in all.
                self.spend(unit)
            recorded = self.replayer is not None and self.replayer.release()
            if not (recorded or release()):
                self._take_fewer_rows()
            release_freed_memory()
        if self._limit.rows != self._limit.said:
            self._limit.said = self._limit.rows
            warnings.warn(
                f"memory was short: from now on the loss is evaluated on {self._limit.rows} examples at a time, which "
                "changes its rounding and costs time. Free memory, or set micro_batch to that number at once.",
                ShortageWarning,
                stacklevel=2,
            )
        return result

    def _take_fewer_rows(self) -> None:
        """Halve the number of examples that are evaluated at a time."""
        most = max((common_rows(batch) or 0 for batch in self._data), default=0)
        present = min(most, self.rows_at_a_time or most)
        if not self._cuttable or not most:
            raise ShortageError(
                f"memory is too short for a batch of {most or 'such'} examples, which this loss does not cut. Make "
                "smaller batches, or, where the loss is a mean over rows, pass micro_batch=, the examples to take at a "
                "time; or free memory."
            )
        if present <= _LEAST_ROWS:
            raise ShortageError(
                f"memory is too short for {present} examples at a time. Free memory, take a smaller model or fewer of "
                "its parameters (params=), or another device (--device)."
            )
        self._limit.rows = max(_LEAST_ROWS, present // 2)

    @property
    def rows_at_a_time(self) -> int | None:
        """Examples that are evaluated at a time; None where batches stay whole, or nothing was evaluated yet."""
        sizes = [size for size in (self._micro_batch, self._limit.rows) if isinstance(size, int)]
        return min(sizes, default=None)

    def in_dtype(self, dtype: torch.dtype) -> Self:
        """Return the same loss evaluated in another dtype, with a cost of its own."""
        other = self._copy()
        other.dtype = dtype
        return other

    def in_precision(self, precision: Precision) -> Self:
        """Return the same loss with its matrices multiplied in fewer bits, with a cost of its own, charged to this too.

        A criterion that is known apart from the model is still evaluated in this dtype.
        """
        other = self._copy(whole=self)
        other.precision, other._share = precision, 1.0
        other._captured = _Captured()  # Recordings are of full precision.
        other._cut_before = True  # Whether a batch may be cut is asked in full precision.
        if self._criterion is not None:
            other._bound = _Bound(self._model, self._loss_of_narrow_output)
        return other

    def _loss_of_narrow_output(self, model: nn.Module, batch: Any) -> Tensor:
        output = model(pair_of(batch)[0])
        return self.criterion(output.to(self.dtype) if isinstance(output, Tensor) else output, batch)

    def precisely(self, make: Callable[[torch.dtype], Result]) -> Result:
        """Return what ``make`` gives in float64, or in this dtype where the loss does not allow that.

        The loss does not allow float64 where it holds tensors of its own dtype, or where memory does not suffice for
        twice the size.
        """
        with torch.inference_mode(False):
            try:
                return make(accumulation_dtype(self.device))
            except ShortageError:
                return make(self.dtype)
            except FailureError:
                raise
            except RuntimeError:
                return make(self.dtype)

    def of_first_part(self) -> Self:
        """Return the same loss over the first micro-batch alone, with a cost of its own."""
        other = self._copy()
        other._most_parts, other.ranks = 1, ALONE
        return other

    def alone(self) -> Self:
        """Return the same loss over all examples, evaluated by this rank, with a cost of its own."""
        other = self._copy()
        other.ranks = ALONE
        return other

    def of_few(self, rows: int) -> Self:
        """Return the same loss over at most so many rows of the first batch, or the whole of it where it is not cut.

        It has a cost of its own; what is spent on it is charged to this loss by its share of the data.
        """
        other = self._copy(whole=self)
        other._most_parts, other.ranks = 1, ALONE
        if self._micro_batch is not None:
            other._micro_batch = rows if self._micro_batch == "auto" else min(rows, self._micro_batch)
        with self.evaluating():
            _, weight = next(other.parts())
            whole = self.alone() if self.ranks.shared else self  # Which remembers the sum.
            other._share = min(1.0, weight / (self._total_weight or sum(weight for _, weight in whole.parts())))
        return other

    def require_one_function(self) -> None:
        """Raise a FailureError unless loss and gradient come out the same twice; costs 2 gradients, once.

        The second time Python's and NumPy's generators have other states, as they would in another call. Values may
        differ by `_SAME_VALUE` ε and gradients by `_SAME_GRADIENT` ε, relative to their scales: some kernels of
        accelerators add in any order.
        """
        if self._one_function:
            return
        point = self.point()
        value, gradient = self.value_and_gradient_at(point)
        with other_python_draws():
            again, gradient_again = self.value_and_gradient_at(point)
        eps, scale = torch.finfo(self.dtype).eps, float(torch.maximum(value.abs(), again.abs()))
        difference = float((again - value).abs())
        change, length = float(norm(gradient_again - gradient)), float(norm(gradient))
        allowed = _SAME_GRADIENT * eps * (length + scale / scale_of(point.leaves))
        if difference > _SAME_VALUE * eps * scale or change > allowed:
            raise FailureError(
                f"the loss is not one function of the parameters. At the same point it was {float(value):.8g} and "
                f"then {float(again):.8g}, and its gradients differ by {change:.2g} of {length:.2g}. Usual causes: "
                "data that are augmented or drawn anew; a loader that drops its last batch; a model with a state, or "
                "with draws by NumPy or Python. Evaluate fixed data: a list of batches, drawn once."
            )
        self._one_function = bool(value.isfinite())  # Where it is not, there is nothing to compare.

    def cost_of_proof(self) -> float:
        """Return what `ObjectiveOperator.prove` will cost at most, in gradients over this loss's data."""
        sizes = [(rows_of(batch), common_rows(batch)) for batch in self._data]
        first, cut = sizes[0]
        if self._micro_batch is not None and cut is not None:
            first = min(first, CHECKED_ROWS if self._micro_batch == "auto" else min(CHECKED_ROWS, self._micro_batch))
        once = 0.0 if self._one_function else 2.0
        return once + CHECK_COST * first / sum(size for size, _ in sizes)

    def coarsest_eps(self, point: Point) -> float:
        """Return the relative rounding inside the loss, by evaluating the first micro-batch at a point."""
        with self.evaluating():
            batch, _ = next(self.of_first_part().parts())
            leaves = [leaf.to(self.dtype) for leaf in point.leaves]
            return coarsest_eps(lambda: self.batch_loss(replace(point, leaves=leaves), batch))

    def first_part_again(self, point: Point, batch: Any) -> Tensor:
        """Return the loss of the first micro-batch, with the random draws that it has when it is evaluated."""
        seed_all(generators_of(self.device), 1)
        return self.batch_loss(point, batch)

    def training_loss(self, batch: Any) -> Tensor:
        """Return the scalar mean loss of one batch, with its graph, as a step of training differentiates it.

        It is taken at the model's live parameters, on their device and in their dtype; the batch is moved there. The
        model keeps its present mode. Its buffers and the random state may change. The evaluation is not counted in
        `cost`.

        Of several ranks each evaluates its share of the rows, and the gradient is summed by one all-reduce. Where the
        loss draws at random, as in dropout, every rank has draws of its own. A batch that cannot be cut is evaluated
        whole by every rank, which saves no time. That is so for a loss that is no mean over rows, and for a model with
        batch normalisation.
        """
        live = next(iter(self._parameters.values()))
        batch = mapped(partial(moved, device=live.device, dtype=live.dtype), batch)
        if self.ranks.shared and divisible(self._model) and self._has_rows_for_all(batch):
            return self._training_loss_of_ranks(batch)
        return _scalar(self._bound(batch))

    def _training_loss_of_ranks(self, batch: Any) -> Tensor:
        """Return a scalar with the value and the gradient of the mean loss over all ranks' shares of a batch."""
        with self.evaluating():
            (share,) = self.shares_of(batch, 0)
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        # Gradients weighted and flat, a mark for each that there is, the weighted loss, and the weight.
        layout = [*(parameter.numel() for parameter in parameters), len(parameters), 1, 1]
        seed = int(torch.randint(2**62, ())) + self.ranks.rank
        zero = torch.zeros((), dtype=accumulation_dtype(self.device), device=parameters[0].device)

        def fill(total: Tensor) -> None:
            weight = self.weight_of(share)
            if weight == 0:
                return
            with fixed_random_state(self.device, seed, everything=True):
                loss = _scalar(self._bound(share))
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            *sums, used, value, whole = total.split(layout)
            for place, (gradient, part) in enumerate(zip(gradients, sums, strict=True)):
                if gradient is not None:
                    part.add_(gradient.to_dense().reshape(-1), alpha=weight)
                    used[place] = 1
            value.copy_(loss.detach() * weight)
            whole.fill_(weight)

        marks = ("training", *_sums_of_bits(self._model.state_dict().values()))
        total = self.ranks.total(sum(layout), zero, fill, marks)
        *means, used, value, _ = (total / total[-1]).split(layout)
        known = [
            (parameter, gradient.view_as(parameter).to(parameter))
            for parameter, gradient, is_used in zip(parameters, means, (used > 0).tolist(), strict=True)
            if is_used
        ]
        gradients = [gradient for _, gradient in known]
        mean = value.squeeze(0).to(parameters[0].dtype)
        loss: Tensor = _WithGradient.apply(mean, gradients, *(parameter for parameter, _ in known))
        return loss

    def batch_loss(self, point: Point, batch: Any) -> Tensor:
        """Return the scalar mean loss of one micro-batch."""
        return _scalar(functional_call(self._bound, self._state(point), (batch,)))

    def batch_output(self, point: Point, batch: Any) -> Tensor:
        """Return the model's output for one micro-batch."""
        output = functional_call(self._outputs, self._state(point), (batch,))
        if not isinstance(output, Tensor):
            raise MisuseError(
                f"expected the model's output to be one tensor, in which the loss can be differentiated, got "
                f"{type(output).__name__}. Wrap the model in one that returns a tensor, or use hessian()."
            )
        return output

    def require_residuals(self) -> None:
        """Raise a MisuseError unless the loss is known as a sum of squares."""
        if self._residuals is None:
            raise MisuseError(
                "this needs the residuals one by one, whose squares sum to the loss: expected a loss that declares "
                "them. Pass residuals= to the Objective, or take torch.nn.MSELoss as its criterion."
            )

    def batch_residuals(self, point: Point, batch: Any) -> list[Tensor]:
        """Return the residuals of one micro-batch, in parts, whose squares sum to its mean loss."""
        assert self._residuals is not None
        return _parts_of(functional_call(self._residuals, self._state(point), (batch,)))

    def residuals_with(self, network: Callable[..., Tensor], batch: Any) -> list[Tensor]:
        """Return them with something else that is called in the model's place."""
        assert self._residuals is not None
        return _parts_of(self._residuals.fn(network, batch))

    def state_of(self, point: Point) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the selected parameters at a point by name, and copies of all else that the model holds."""
        prefix = len("model.")
        state = {name[prefix:]: tensor for name, tensor in self._state(point).items()}
        return {name: state.pop(name) for name in self._parameters}, state

    def require_criterion(self, what: str) -> None:
        """Raise a MisuseError, which names ``what`` needs it, unless the criterion is known apart from the model."""
        if self._criterion is None:
            raise MisuseError(
                f"{what} needs the model's output and the criterion apart: an objective made by from_batch_loss has "
                "only their combination. Build Objective(model, data, criterion)."
            )

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        """Return the scalar mean loss of one micro-batch, given the model's output."""
        assert self._criterion is not None
        return batch_loss_of(self._criterion, output, pair_of(batch)[1])

    def output_curvature(self, output: Tensor, batch: Any) -> OutputCurvature:
        """Return the second derivative of the criterion in the model's output, for one micro-batch."""
        known = softmax_curvature(self._criterion, output, pair_of(batch)[1])
        if known is not None:
            return known
        at = output.detach().requires_grad_()
        (slope,) = differentiate([self.criterion(at, batch)], [at], create_graph=True)
        return DifferentiatedCurvature(at, slope)

    def parts(self) -> Parts:
        """Yield (micro-batch, weight) of this rank, on this device and in this dtype.

        Every rank goes through all batches, and takes an equal share of the rows of each. A batch that cannot be cut,
        or has fewer than two rows a rank, goes whole to one rank, in turn.

        Random draws during the evaluation of a micro-batch depend on its number alone. They depend neither on the other
        micro-batches nor on the data loader's draws.

        Raises:
            MisuseError: the data are empty, or their total weight is not positive.
        """
        return itertools.islice(self._all_parts(), self._most_parts)

    def spend(self, cost: Cost) -> None:
        """Add to `cost`; if this is a part of another loss, add the part's share to that too."""
        self.cost += cost
        if self._whole is not None:
            self._whole.spend(replace(cost * self._share, seconds=cost.seconds))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """`as_one_function`, with gradients, in this `precision` whatever the caller's, from a fixed random seed.

        All is restored afterwards.
        """
        with (
            fixed_random_state(self.device, data=self._data),
            torch.inference_mode(False),
            torch.enable_grad(),
            calculating_in(self.precision, self.device),
            as_one_function(self._model),
        ):
            yield

    # Details.

    @contextlib.contextmanager
    def _charge(self, **counts: float) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spend(Cost(seconds=time.perf_counter() - start, **counts))

    def _copy(self, *, whole: BatchedLoss | None = None) -> Self:
        """Return the same loss with a cost of its own, which is charged to ``whole`` too."""
        other = copy.copy(self)
        other.cost = Cost()
        other._whole = whole
        return other

    def _set_data(self, data: Iterable[Any]) -> None:
        self._data, self._one_function, self._total_weight = data, False, None

    def _all_parts(self) -> Parts:
        total = 0.0
        generators = generators_of(self.device)
        pieces = itertools.chain.from_iterable(map(self._micro_batches, self._shares()))
        for number, part in enumerate(pieces):
            weight = self.weight_of(part)
            if weight == 0:
                continue  # Its mean may be 0 / 0.
            total += weight
            states = [generator.get_state() for generator in generators]
            seed_all(generators, number * self.ranks.size + self.ranks.rank + 1)
            yield mapped(self._move, part), weight
            # Not in a `finally`: after an exception a generator ends late, when `evaluating` has restored them already.
            restore_all(generators, states)
        if not self.ranks.shared:
            self._total_weight = total
            _require_weight(total)

    def _shares(self) -> Iterator[Any]:
        """Yield this rank's share of every batch that it has one of."""
        for number, batch in enumerate(self._data):
            yield from self.shares_of(batch, number)

    def shares_of(self, batch: Any, number: int) -> tuple[Any, ...]:
        """Return this rank's share of the batch of that number, see `parts`: one, or none. A batch may be None."""
        ranks = self.ranks
        place = (ranks.rank + number) % ranks.size  # In turn, so that no rank always has the larger share.
        if ranks.size == 1 or not self._has_rows_for_all(batch):
            return (batch,) if place == 0 else ()
        self._require_cuttable(batch)
        rows = common_rows(batch) or 0
        begin, end = rows * place // ranks.size, rows * (place + 1) // ranks.size
        return (mapped(lambda item: item[begin:end], batch),)

    def _has_rows_for_all(self, batch: Any) -> bool:
        """Whether a batch is to be cut, and has rows enough for every rank."""
        return self._micro_batch is not None and (common_rows(batch) or 0) >= _LEAST_ROWS * self.ranks.size

    def _state(self, point: Point) -> dict[str, Tensor]:
        # Buffers are copied, so that a layer that updates one changes the copy.
        state = {name: self._move(parameter) for name, parameter in point.rest.items()}
        state |= {name: self._move(buffer).clone() for name, buffer in point.buffers.items()}
        state |= dict(zip(self._parameters, point.leaves, strict=True))
        return {f"model.{name}": tensor for name, tensor in state.items()}

    def _still_held(self) -> dict[str, Tensor]:
        """Return those originals of `_rounded_off` whose parameters have not changed since."""
        return {
            name: part for name, (part, version) in self._held.items() if self._parameters[name]._version == version
        }

    def _rounded_off(self, parts: list[Tensor]) -> dict[str, tuple[Tensor, int]]:
        """Return the parts in this dtype where the model's parameters, just set to them, have another.

        Beside each stands the version of the parameter, which changes when anybody writes to it.
        """
        pairs = zip(self._parameters.items(), parts, strict=True)
        return {
            name: (part.detach().to(device=self.device, dtype=self.dtype, copy=True), parameter._version)
            for (name, parameter), part in pairs
            if parameter.dtype != self.dtype and not parameter.is_inference()
        }

    def _cast(self, tensor: Tensor) -> Tensor:
        moved: Tensor = self._move(tensor.detach())
        return moved

    def _move(self, item: Any) -> Any:
        return moved(item, self.device, self.dtype)

    def _micro_batches(self, batch: Any) -> Iterator[Any]:
        if self._micro_batch == "auto":
            self._micro_batch = automatic_size(batch, self.device, self.memory_budget, self._graph_bytes)
        rows, size = common_rows(batch), self.rows_at_a_time
        if size is not None and rows is not None and rows > size:
            self._require_cuttable(batch)
        return split(batch, size)

    def _require_cuttable(self, batch: Any) -> None:
        """Refuse to cut, once, where the loss of a few rows is no mean over them."""
        if self._cut_before:
            return
        point, size = self.point(requires_grad=False), self.rows_at_a_time
        few = batch if size is None else mapped(lambda item: item[: max(_LEAST_ROWS, size)], batch)
        require_mean_over_rows(few, partial(self._value_of, point), self.weight_of, torch.finfo(self.dtype).eps)
        self._cut_before = True

    def _value_of(self, point: Point, batch: Any) -> float:
        return float(self.batch_loss(point, mapped(self._move, batch)).detach())

    def weight_of(self, batch: Any) -> float:
        """Return the weight of a batch, or of a part of one, in the mean."""
        return float(self._weight(batch)) if self._weight is not None else float(rows_of(batch))

    def _value_of_part(self, point: Point, batch: Any) -> Tensor:
        return self.batch_loss(point, batch).detach()

    def _value_and_gradient_of_part(self, point: Point, batch: Any) -> tuple[Tensor, Tensor]:
        loss = self.batch_loss(point, batch)
        return loss.detach(), flatten(differentiate([loss], point.leaves))

    def _graph_bytes(self, batch: Any) -> int:
        """Return what the graph of the loss of a batch takes for one backward pass."""
        point, examples = self.point(), mapped(self._move, batch)
        with fixed_random_state(self.device):
            return saved_bytes(
                lambda: self.batch_loss(point, examples), examples, (*point.leaves, *point.rest.values())
            )


class _WithGradient(torch.autograd.Function):
    """A scalar whose gradient in some tensors is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * scale for gradient in ctx.gradients)


def divisible(model: nn.Module) -> bool:
    """Whether a mini-batch's gradient in training is the mean of its parts': not with batch normalisation."""
    return not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def _require_weight(total: float) -> None:
    if not total > 0:
        raise MisuseError(f"expected data of positive total weight, got {total:g}. Is the data set empty?")


def _sums_of_bits(tensors: Iterable[Tensor]) -> list[int]:
    """Return such a sum of each; the host waits for the device once."""
    sums = [_sum_of_bits(tensor) for tensor in tensors]
    result: list[int] = torch.stack([each.to(sums[0].device) for each in sums]).tolist()
    return result


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Return a sum that is the same for the same bits, in whatever order it is taken."""
    flat = tensor.detach().reshape(-1).contiguous()
    if flat.is_complex():
        flat = torch.view_as_real(flat)
    if flat.is_floating_point():
        flat = flat.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.itemsize])
    return flat.sum(dtype=torch.int64)


def _common_dtype(parameters: dict[str, nn.Parameter]) -> torch.dtype:
    """Return the dtype that all parameters have.

    Raises:
        MisuseError: they have several.
    """
    examples = {parameter.dtype: name for name, parameter in parameters.items()}
    if len(examples) > 1:
        found = ", ".join(f"{dtype} ({name})" for dtype, name in examples.items())
        raise MisuseError(
            f"expected parameters of one dtype, got {found}. Pass dtype=torch.float32 (or float64) to evaluate all of "
            "them in it, or params= to select those of one dtype."
        )
    return next(iter(examples))


def _parts_of(residuals: Any) -> list[Tensor]:
    """Return the parts of the residuals of a batch.

    Raises:
        MisuseError: they are no tensors of real numbers.
    """
    parts = list(residuals) if isinstance(residuals, list | tuple) else [residuals]
    if not parts or not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts) or "none"
        raise MisuseError(f"expected the residuals of a batch to be a tensor of real numbers or several, got {kinds}.")
    return parts


def _scalar(loss: Any) -> Tensor:
    """Return the loss of a batch, (), if it is one number.

    Raises:
        MisuseError: it is anything else.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise MisuseError(f"expected the loss of a batch to be a scalar tensor (the mean), got {got}.")
    return loss.reshape(())

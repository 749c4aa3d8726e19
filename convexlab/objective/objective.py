"""The loss of a model on a data set as one function of one flat vector.

Everything above sees ``value``, ``gradient`` and ``hvp`` of a flat vector; batches, micro-batches, devices and dtypes
stop here. The loss is the mean over the whole data set however it is cut into batches: weighted by the number of
examples, summed in float64. Evaluation is in eval mode and from a fixed random seed, so that it is a function; the
model's parameters, buffers, modes, gradients and the random state are left as they were.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from convexlab.errors import MisuseError
from convexlab.linalg.operators import SymmetricOperator
from convexlab.linalg.vectors import accumulation_dtype, flatten, select_parameters, unflatten
from convexlab.machine.memory import room_for_graphs
from convexlab.machine.precision import full_float32
from convexlab.machine.random_state import fixed_random_state, generators_of, restore_all, seed_all
from convexlab.objective.batched_loss import BatchLoss, Parts, Point
from convexlab.objective.batches import common_rows, criterion_weight, criticise, rows_of
from convexlab.objective.cost import Cost
from convexlab.objective.differentiation import differentiate, saved_bytes
from convexlab.objective.products import GaussNewtonOperator, HessianOperator, ResidualOperator

__all__ = ["Objective"]

# Larger micro-batches fall out of the processor's cache; see benchmarks/README.md for the measurement.
_CPU_MICRO_BATCH = 128
# A gradient graph that can be differentiated again holds about this many times what one backward pass needs.
_SECOND_ORDER_FACTOR = 3
# Examples in the trial from which the memory of a micro-batch is extrapolated.
_TRIAL_EXAMPLES = 8


class _Bound(nn.Module):
    """Lets `functional_call` swap the tensors of ``model`` while ``fn`` uses it as an ordinary module."""

    def __init__(self, model: nn.Module, fn: BatchLoss) -> None:
        super().__init__()
        self.model = model
        self._fn = fn

    def forward(self, batch: Any) -> Any:
        return self._fn(self.model, batch)


class Objective:
    """The mean loss of ``model`` over ``data`` as a function of the selected parameters θ, a flat vector (n,).

    Args:
        model: evaluated in eval mode.
        data: re-iterable of (input, target) batches of tensors.
        criterion: maps (output, target) to a scalar, the mean over the examples of the batch. For torch's
            ``CrossEntropyLoss`` and ``NLLLoss`` it is the mean that they define, weighted by class and without the
            ignored targets; every other criterion has to count examples equally.
        params: names, glob patterns or parameters; None selects all that require a gradient.
        micro_batch: examples evaluated at a time; ``"auto"`` keeps within the cache on a CPU, and within
            ``memory_budget`` on accelerators or, if given, everywhere.
        memory_budget: bytes that the graphs of a product may take; None is half of what is free.
        device: where to evaluate; None is where the model is.
        dtype: in which to evaluate, whatever the model's own; None is the model's own.

    Raises:
        MisuseError: data that can be iterated only once, a criterion that sums, no parameter, a bad option.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        criterion: Callable[[Any, Any], Tensor],
        *,
        params: Iterable[str | nn.Parameter] | str | nn.Parameter | None = None,
        micro_batch: int | Literal["auto"] | None = "auto",
        memory_budget: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """See the class."""
        reduction = getattr(criterion, "reduction", "mean")
        if reduction not in {"mean", "batchmean"}:
            raise MisuseError(
                f"expected a criterion that returns the mean over a batch, got reduction={reduction!r}. "
                "Use reduction='mean', or Objective.from_batch_loss with a weight."
            )
        self._criterion: Callable[[Any, Any], Tensor] | None = criterion
        self._prepare(
            model,
            data,
            lambda module, batch: criticise(criterion, module(batch[0]), batch[1]),
            weight=criterion_weight(criterion),
            params=params,
            micro_batch=micro_batch,
            memory_budget=memory_budget,
            device=device,
            dtype=dtype,
        )

    @classmethod
    def from_batch_loss(
        cls,
        model: nn.Module,
        data: Iterable[Any],
        fn: BatchLoss,
        weight: Callable[[Any], float] | None = None,
        *,
        params: Iterable[str | nn.Parameter] | str | nn.Parameter | None = None,
        micro_batch: int | Literal["auto"] | None = "auto",
        memory_budget: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Objective:
        """Return the objective of any loss, such as a physics-informed network's.

        Args:
            model: see the class.
            data: re-iterable of batches of any kind; tensors in them are moved to the device and dtype.
            fn: ``fn(model, batch)`` returns the scalar mean loss of a batch.
            weight: ``weight(batch)`` returns the weight of the batch in the mean; None counts the rows of its first
                tensor.
            params: see the class.
            micro_batch: see the class; ``"auto"`` leaves batches whole here, for a loss need not be a mean over
                rows. A number says that it is.
            memory_budget: see the class.
            device: see the class.
            dtype: see the class.
        """
        self = cls.__new__(cls)
        self._criterion = None
        self._prepare(
            model,
            data,
            fn,
            weight=weight,
            params=params,
            micro_batch=None if micro_batch == "auto" else micro_batch,
            memory_budget=memory_budget,
            device=device,
            dtype=dtype,
        )
        return self

    def _prepare(
        self,
        model: nn.Module,
        data: Iterable[Any],
        fn: BatchLoss,
        *,
        weight: Callable[[Any], float] | None,
        params: Iterable[str | nn.Parameter] | str | nn.Parameter | None,
        micro_batch: int | Literal["auto"] | None,
        memory_budget: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
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
        self._model = model
        self._data = data
        self._weight = weight
        self._parameters = select_parameters(model, params)
        first = next(iter(self._parameters.values()))
        self.device = torch.device(device) if device is not None else first.device
        self.dtype = dtype if dtype is not None else first.dtype
        self._bound = _Bound(model, fn)
        self._outputs = _Bound(model, lambda module, batch: module(batch[0]))
        self._micro_batch = micro_batch
        self.memory_budget = memory_budget
        self.cost = Cost()
        self._whole: Objective | None = None
        self._share = 1.0

    # What callers ask for.

    @property
    def model(self) -> nn.Module:
        """The model whose parameters it is a function of."""
        return self._model

    @property
    def size(self) -> int:
        """The number n of selected parameters."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The selected parameters, in the order of the flat vector."""
        return tuple(self._parameters)

    def value(self) -> float:
        """Return the loss, the mean over the whole data set."""
        return float(self.value_at(self.point(requires_grad=False)))

    def gradient(self) -> Tensor:
        """Return the gradient (n,)."""
        return self.value_and_gradient()[1]

    def value_and_gradient(self) -> tuple[float, Tensor]:
        """Return the loss and its gradient (n,)."""
        value, gradient = self.value_and_gradient_at(self.point())
        return float(value), gradient.to(self.dtype)

    def hvp(self, v: Tensor) -> Tensor:
        """Return H v for v of shape (n,) or (n, k), H the Hessian at the model's present parameters.

        For many products at one point, `hessian` is cheaper.
        """
        return HessianOperator(self, keep_graphs=False) @ v

    def hessian(self) -> SymmetricOperator:
        """Return the Hessian at the model's present parameters; it does not follow later changes of them."""
        return HessianOperator(self)

    def ggn(self) -> SymmetricOperator:
        """Return the generalised Gauss-Newton matrix JᵀH_LJ at the model's present parameters (Schraudolph 2002).

        Raises:
            MisuseError: the objective was made by `from_batch_loss`, which does not tell the output from the loss.
        """
        self.require_criterion("the Gauss-Newton matrix")
        return GaussNewtonOperator(self)

    def residual(self) -> SymmetricOperator:
        """Return the Hessian less the Gauss-Newton matrix at the model's present parameters: Σ_k (∂L/∂f_k) ∇²f_k.

        For a loss that is convex in the model's output f, the Hessian's negative curvature lives in this part alone.

        Raises:
            MisuseError: the objective was made by `from_batch_loss`, as for `ggn`.
        """
        self.require_criterion("the residual part of the Hessian")
        return ResidualOperator(self)

    def restricted_to(self, params: Iterable[str | nn.Parameter] | str | nn.Parameter) -> Objective:
        """Return the same objective as a function of some of its parameters; the others stay where the model has them.

        Its Hessian is a diagonal block of this one's. It has a `cost` of its own, which is charged to this one too.

        Args:
            params: names, glob patterns or parameters, of those that are selected here.

        Raises:
            MisuseError: one that matches no selected parameter.
        """
        requests = [params] if isinstance(params, str | nn.Parameter) else list(params)
        chosen = {name for request in requests for name in self._selected(request)}
        part = copy.copy(self)
        part._parameters = select_parameters(self._model, [self._parameters[name] for name in chosen])
        part.cost = Cost()
        part._whole, part._share = self, 1.0
        return part

    def sample(self, examples: int) -> Objective:
        """Return the same loss over so many of its examples, the same share of every batch and of every part of it.

        They are drawn once, from a fixed seed, and kept in memory. Batches whose tensors differ in length stay whole,
        and then there are more. Its `cost` counts evaluations over the sample; this objective is charged the `share`
        of them that the sample is, and their seconds.

        Args:
            examples: rows wanted; with as many as there are, or more, it is the whole.

        Raises:
            MisuseError: fewer than one, or batches without tensors.
        """
        if examples < 1:
            raise MisuseError(f"expected a sample of at least 1 example, got {examples!r}.")
        # The fixed state is that of evaluations: a loader that shuffles gives the same batches twice.
        with fixed_random_state(self.device):
            rows = sum(map(rows_of, self._data))
        share, seen, chosen = min(1.0, examples / max(rows, 1)), 0, []
        generator = torch.Generator().manual_seed(0)
        with fixed_random_state(self.device):
            for batch in self._data:
                size = rows_of(batch)
                wanted = round((seen + size) * share) - round(seen * share)
                seen += size
                if common_rows(batch) is None or wanted == size:
                    chosen.append(batch)
                elif wanted:
                    places = _places(size, wanted, generator)
                    chosen.append(tree_map(lambda item, places=places: item[places.to(item.device)], batch))
        part = copy.copy(self)
        part._data = chosen
        part.cost = Cost()
        part._whole, part._share = self, sum(map(rows_of, chosen)) / max(rows, 1)
        return part

    @property
    def data(self) -> Iterable[Any]:
        """The batches that the loss is the mean over."""
        return self._data

    def over(self, data: Iterable[Any]) -> Objective:
        """Return the same loss over other batches, with a cost of its own."""
        other = copy.copy(self)
        other._data = data
        other.cost = Cost()
        other._whole, other._share = None, 1.0
        return other

    @property
    def share(self) -> float:
        """What part of the examples of the objective that it was drawn from a `sample` has; 1 for any other."""
        return self._share

    def flat_parameters(self) -> Tensor:
        """Return a copy of the selected parameters as a vector (n,)."""
        return flatten(parameter.detach() for parameter in self._parameters.values()).to(
            device=self.device, dtype=self.dtype, copy=True
        )

    @contextlib.contextmanager
    def at(self, theta: Tensor) -> Iterator[Objective]:
        """Within the block, the model has the parameters ``theta`` (n,); afterwards its own again.

        Raises:
            MisuseError: ``theta`` has another shape.
        """
        parameters = list(self._parameters.values())
        saved = [parameter.detach().clone() for parameter in parameters]
        try:
            self.write(theta)
            yield self
        finally:
            _copy(saved, parameters)

    def write(self, theta: Tensor) -> None:
        """Set the model's selected parameters from a vector (n,).

        Raises:
            MisuseError: ``theta`` has another shape.
        """
        if theta.shape != (self.size,):
            raise MisuseError(f"expected parameters of shape ({self.size},), got {tuple(theta.shape)}.")
        parameters = list(self._parameters.values())
        _copy(unflatten(theta, parameters), parameters)

    def training_loss(self, batch: Any) -> Tensor:
        """Return the mean loss of a batch with its graph, at the model's own parameters and in its present mode.

        It is what a step of Adam differentiates.
        """
        loss: Tensor = self._bound(tree_map(self._move, batch))
        return loss

    def closure(self, *, backward: bool = True) -> Tensor:
        """Evaluate as a torch closure: set the parameters' ``grad`` if ``backward`` and return the loss (float64)."""
        dtype = accumulation_dtype(self.device)
        if not backward:
            return torch.tensor(self.value(), dtype=dtype)
        value, gradient = self.value_and_gradient()
        self.assign_gradient(gradient)
        return torch.tensor(value, dtype=dtype)

    def assign_gradient(self, gradient: Tensor) -> None:
        """Set the ``grad`` of the selected parameters from a flat gradient (n,)."""
        parameters = list(self._parameters.values())
        for parameter, part in zip(parameters, unflatten(gradient, parameters), strict=True):
            parameter.grad = part.to(device=parameter.device, dtype=parameter.dtype)

    # What the operators ask for.

    def point(self, *, requires_grad: bool = True) -> Point:
        """Return where the model stands, on this device and in this dtype; storage may be shared with it."""
        named = self._model.named_parameters()
        return Point(
            leaves=[self._cast(parameter).requires_grad_(requires_grad) for parameter in self._parameters.values()],
            rest={name: self._cast(parameter) for name, parameter in named if name not in self._parameters},
            buffers={name: self._cast(buffer) for name, buffer in self._model.named_buffers()},
        )

    def value_at(self, point: Point) -> Tensor:
        """Return the loss at a point, as summed, in float64."""
        with self._charge(values=1), self.evaluating():
            total, weights = self._zero(), 0.0
            for batch, weight in self.parts():
                total.add_(self.batch_loss(point, batch).detach(), alpha=weight)
                weights += weight
            return total / weights

    def value_and_gradient_at(self, point: Point) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient (n,) at a point that requires one, both as summed, in float64."""
        with self._charge(gradients=1), self.evaluating():
            total, gradient, weights = self._zero(), self._zero(self.size), 0.0
            for batch, weight in self.parts():
                loss = self.batch_loss(point, batch)
                total.add_(loss.detach(), alpha=weight)
                gradient.add_(flatten(differentiate([loss], point.leaves)), alpha=weight)
                weights += weight
            return total / weights, gradient / weights

    def in_dtype(self, dtype: torch.dtype) -> Objective:
        """Return the same objective evaluated in another dtype, with a cost of its own."""
        other = copy.copy(self)
        other.dtype = dtype
        other.cost = Cost()
        other._whole = None
        return other

    def batch_loss(self, point: Point, batch: Any) -> Tensor:
        """Return the scalar mean loss of one micro-batch."""
        loss = functional_call(self._bound, self._state(point), (batch,))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise MisuseError(f"expected the loss of a batch to be a scalar tensor (the mean), got {got}.")
        return loss.reshape(())

    def batch_output(self, point: Point, batch: Any) -> Tensor:
        """Return the model's output for one micro-batch."""
        output = functional_call(self._outputs, self._state(point), (batch,))
        if not isinstance(output, Tensor):
            raise MisuseError(
                f"expected the model's output to be one tensor, in which the loss can be differentiated, got "
                f"{type(output).__name__}. Wrap the model in one that returns a tensor, or use hessian()."
            )
        return output

    def require_criterion(self, what: str) -> None:
        """Raise a MisuseError unless the model's output and the criterion are known apart, as ``what`` needs them."""
        if self._criterion is None:
            raise MisuseError(
                f"{what} needs the model's output and the criterion apart, which from_batch_loss does not tell. "
                "Build Objective(model, data, criterion)."
            )

    def criterion(self, output: Tensor, batch: Any) -> Tensor:
        """Return the scalar mean loss of one micro-batch, given the model's output."""
        assert self._criterion is not None
        return criticise(self._criterion, output, batch[1])

    def parts(self) -> Parts:
        """Yield (micro-batch, weight), on this device and in this dtype.

        What is drawn at random while a micro-batch is evaluated depends on its number alone: neither on which others
        are evaluated, nor on what the data loader draws.

        Raises:
            MisuseError: the data are empty, or their total weight is not positive.
        """
        total = 0.0
        generators = generators_of(self.device)
        pieces = itertools.chain.from_iterable(map(self._split, self._data))
        for number, part in enumerate(pieces, start=1):
            weight = float(self._weight(part)) if self._weight is not None else float(rows_of(part))
            if weight == 0:
                continue  # Its mean may be 0 / 0.
            total += weight
            states = [generator.get_state() for generator in generators]
            seed_all(generators, number)
            yield tree_map(self._move, part), weight
            # Not in a `finally`: a generator that an exception left behind ends after `evaluating` has restored them.
            restore_all(generators, states)
        if not total > 0:
            raise MisuseError(f"expected data of positive total weight, got {total:g}. Is the data set empty?")

    def spend(self, cost: Cost) -> None:
        """Add to `cost`, and to that of the objective of which this is a part."""
        self.cost += cost
        if self._whole is not None:
            self._whole.spend(replace(cost * self._share, seconds=cost.seconds))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode, gradients enabled, no autocast, full float32, a fixed random seed; all restored afterwards."""
        modes = [(module, module.training) for module in self._model.modules()]
        precise = torch.autocast(self.device.type, enabled=False)
        with (
            fixed_random_state(self.device),
            torch.inference_mode(False),
            torch.enable_grad(),
            precise,
            full_float32(),
        ):
            try:
                self._model.eval()
                yield
            finally:
                for module, training in modes:
                    module.training = training

    # Details.

    @contextlib.contextmanager
    def _charge(self, **counts: float) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.spend(Cost(seconds=time.perf_counter() - start, **counts))

    def _selected(self, request: str | nn.Parameter) -> set[str]:
        """Return the names of the selected parameters that ``request`` matches."""
        if isinstance(request, str) and request in self._parameters:
            return {request}
        found = select_parameters(self._model, request).keys() & self._parameters.keys()
        if not found:
            what = repr(request) if isinstance(request, str) else "a parameter in `params`"
            raise MisuseError(
                f"{what} is of the model, but not selected in this objective, which has {', '.join(self._parameters)}. "
                "Select it when the objective is made."
            )
        return found

    def _zero(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=accumulation_dtype(self.device), device=self.device)

    def _state(self, point: Point) -> dict[str, Tensor]:
        # Buffers are copied, so that a layer that updates one changes the copy.
        state = {name: self._move(parameter) for name, parameter in point.rest.items()}
        state |= {name: self._move(buffer).clone() for name, buffer in point.buffers.items()}
        state |= dict(zip(self._parameters, point.leaves, strict=True))
        return {f"model.{name}": tensor for name, tensor in state.items()}

    def _cast(self, tensor: Tensor) -> Tensor:
        moved: Tensor = self._move(tensor.detach())
        return moved

    def _move(self, item: Any) -> Any:
        if not isinstance(item, Tensor):
            return item
        # Whole-number tensors (labels, indices) keep their dtype.
        dtype = self.dtype if item.is_floating_point() else item.dtype
        # A copy to the host that does not block may be read before it is there.
        return item.to(device=self.device, dtype=dtype, non_blocking=self.device.type != "cpu")

    def _split(self, batch: Any) -> Iterator[Any]:
        size = self._micro_batch_size(batch)
        rows = common_rows(batch)
        if size is None or rows is None or rows <= size:
            yield batch
            return
        for start in range(0, rows, size):
            yield tree_map(lambda item, start=start: item[start : start + size], batch)

    def _micro_batch_size(self, batch: Any) -> int | None:
        if self._micro_batch == "auto":
            self._micro_batch = self._automatic_micro_batch(batch)
        return self._micro_batch

    def _automatic_micro_batch(self, batch: Any) -> int | None:
        rows, on_host = common_rows(batch), self.device.type == "cpu"
        size: int | None = _CPU_MICRO_BATCH if on_host else rows
        # On an accelerator nothing but its memory sets a limit.
        budget = self.memory_budget if on_host else room_for_graphs(self.device, self.memory_budget)
        if budget is None or rows is None or size is None:
            return size
        trial_rows = min(rows, _TRIAL_EXAMPLES)
        trial = tree_map(lambda item: self._move(item[:trial_rows]), batch)
        point = self.point()
        with fixed_random_state(self.device):
            shared = (*point.leaves, *point.rest.values())
            needed = saved_bytes(lambda: self.batch_loss(point, trial), trial, shared)
        fits = int(budget * trial_rows / max(1, needed * _SECOND_ORDER_FACTOR))
        if fits >= size:
            return size
        # A power of two, so that results do not depend on every byte that happens to be free.
        return 1 << max(0, fits.bit_length() - 1)


def _places(size: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Return rows, one at random from each of equal stretches: a batch may be in the order of its labels, or repeat."""
    starts = torch.arange(wanted + 1) * size // wanted
    within = torch.rand(wanted, generator=generator, dtype=torch.float64) * starts.diff()
    return starts[:-1] + within.long()


def _copy(sources: Iterable[Tensor], parameters: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for source, parameter in zip(sources, parameters, strict=True):
            parameter.copy_(source)

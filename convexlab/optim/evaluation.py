"""Evaluating a closure: counted, with the gradient as one flat vector, along a ray of points."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.vectors import accumulation_dtype, dot, flatten, gradient_of
from convexlab.optim.checks import process_count

__all__ = ["Closure", "CountedClosure", "Evaluation", "Ray", "takes"]

Closure = Callable[..., Tensor | float]

_BACKWARD = "Zero the gradients, compute the loss, call loss.backward(), return the loss."
_FOREIGN = (
    "they are of another model, or were replaced since. Build the optimiser from the parameters of the model in the "
    "closure."
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The loss and its gradient at one point."""

    loss: float
    """f(x)."""
    gradient: Tensor
    """g, (n,)."""
    squared_norm: float
    """gᵀg, accumulated in float64."""

    @property
    def finite(self) -> bool:
        """Whether the loss and every entry of the gradient are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.squared_norm)


class CountedClosure:
    """A closure, whether it can be asked for the value alone, and how often it was called.

    Gradients are zeroed before every call: those of a closure that forgets it would add up. With ``averaged`` loss and
    gradient are the means over all processes of torch.distributed.
    """

    _needed = "step needs a closure that zeroes the gradients, calls backward and returns the loss"

    def __init__(self, closure: Closure | None, parameters: list[Tensor], *, averaged: bool = False) -> None:
        if closure is None:
            raise MisuseError(
                f"{self._needed}, got none. Pass it: optimizer.step(closure). A GradScaler does not: leave it out. A "
                "line search compares losses with gradients, and neither may be scaled or in half precision."
            )
        if not callable(closure):
            raise MisuseError(f"{self._needed}, got {closure!r}.")
        self._closure = closure
        self._parameters = parameters
        self._averaged = averaged and process_count() > 1
        self._takes_backward = takes(closure, "backward")
        self.values = 0
        self.gradients = 0
        self.seconds = 0.0
        """Seconds of the calls, until their numbers were there; the rest of a step is vector work of the optimiser."""

    @property
    def evaluations(self) -> int:
        """All calls so far."""
        return self.values + self.gradients

    def value(self) -> float | None:
        """Return the loss alone, or None if the closure knows only how to call backward."""
        if not self._takes_backward:
            return None
        self.values += 1
        begin = time.perf_counter()
        with torch.enable_grad():
            loss = _numbers(self._mean(self._closure(backward=False)))[0]
        self.seconds += time.perf_counter() - begin
        return loss

    def evaluate(self, direction: Tensor | None = None) -> tuple[Evaluation, float]:
        """Return loss and gradient, and the gradient's product with the direction (NaN without one).

        Raises:
            MisuseError: the closure has not called backward, or its loss does not depend on the parameters.
        """
        self.gradients += 1
        begin = time.perf_counter()
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        with torch.enable_grad():
            loss = self._called()
        gradient = flatten(gradient_of(parameter) for parameter in self._parameters)
        if self._averaged:
            # DDP has averaged it already: then this changes nothing.
            loss, gradient = self._mean(loss), _mean_over_processes(gradient)
        products = [dot(gradient, gradient)]
        if direction is not None:
            products.append(dot(gradient, direction))
        value, squared_norm, *slope = _numbers(loss, *products)
        self.seconds += time.perf_counter() - begin
        if squared_norm == 0.0:
            self._check_backward(loss)
        return Evaluation(value, gradient, squared_norm), slope[0] if slope else math.nan

    def _mean(self, loss: Tensor | float) -> Tensor | float:
        if not self._averaged:
            return loss
        return _mean_over_processes(torch.as_tensor(loss, device=self._parameters[0].device).detach().double())

    def _called(self) -> Tensor | float:
        try:
            return self._closure()
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            if any(parameter.requires_grad for parameter in self._parameters):
                what = "its loss does not depend on any parameter that requires a gradient: a constant, or detached"
            else:
                what = "every parameter is frozen: none requires a gradient"
            raise MisuseError(f"the closure's backward has nothing to differentiate: {what}.") from error

    def _check_backward(self, loss: Tensor | float) -> None:
        """Refuse a gradient of zero that no backward pass has left."""
        if not any(parameter.requires_grad for parameter in self._parameters):
            raise MisuseError("every parameter is frozen: expected at least one that requires a gradient.")
        if isinstance(loss, Tensor) and loss.grad_fn is not None:
            ours = {id(parameter) for parameter in self._parameters}
            if not any(id(leaf) in ours for leaf in _leaves(loss)):
                raise MisuseError(f"the closure's loss does not depend on the optimiser's parameters: {_FOREIGN}")
            if _can_still_be_differentiated(loss, self._parameters):
                raise MisuseError(f"the closure has left no gradient: it did not call backward. {_BACKWARD}")
        elif all(parameter.grad is None for parameter in self._parameters):
            raise MisuseError(
                f"the closure has left no gradient. Either it did not call backward. {_BACKWARD} "
                f"Or the parameters are others: {_FOREIGN}"
            )


class Ray:
    """The points x + αd: moves the weights there, evaluates, remembers the last gradient seen."""

    def __init__(
        self, write: Callable[[Tensor], None], call: CountedClosure, weights: Tensor, direction: Tensor
    ) -> None:
        self._write = write
        self._call = call
        self._weights = weights
        self._direction = direction
        self._farthest = torch.finfo(weights.dtype).max
        self.last: tuple[float, Evaluation | None] = (0.0, None)

    def at(self, step: float) -> Tensor:
        """Return x + αd, the same bits for the same step."""
        return torch.add(self._weights, self._direction, alpha=step)

    def evaluate(self, step: float, needs_slope: bool) -> tuple[float, float | None]:
        """Move the weights to x + αd; return the loss and its slope along d, None if the value alone was to be had.

        A step that the weights' dtype cannot express counts as a loss of infinity.
        """
        if step > self._farthest:
            return math.inf, math.nan
        self._write(self.at(step))
        if not needs_slope and (value := self._call.value()) is not None:
            self.last = (step, None)
            return value, None
        evaluation, slope = self._call.evaluate(self._direction)
        self.last = (step, evaluation)
        return evaluation.loss, slope


def _mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean, the same bits in every process."""
    mean = values.clone()
    torch.distributed.all_reduce(mean)
    mean /= torch.distributed.get_world_size()
    torch.distributed.broadcast(mean, src=0)
    return mean


def takes(closure: Closure, keyword: str) -> bool:
    """Return whether a closure accepts a keyword argument of that name."""
    try:
        parameter = inspect.signature(closure).parameters.get(keyword)
    except (TypeError, ValueError):  # Some callables written in C have no signature.
        return False
    return parameter is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that a loss was computed from and that gradients are left in."""
    nodes, visited = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        nodes.extend(follower for follower, _ in node.next_functions)


def _can_still_be_differentiated(loss: Tensor, parameters: list[Tensor]) -> bool:
    """Whether a loss has a gradient that is not zero, and a graph that no backward pass has freed."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    try:
        parts = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return False
    return any(part is not None and bool(part.count_nonzero()) for part in parts)


def _numbers(loss: Tensor | float, *products: Tensor) -> list[float]:
    """Fetch the loss and products from the device in one synchronisation."""
    if not isinstance(loss, Tensor):
        return [_real(loss), *(torch.stack(products).tolist() if products else [])]
    if loss.numel() != 1 or loss.is_complex():
        raise MisuseError(f"the closure must return one real number, got a {loss.dtype} tensor of {tuple(loss.shape)}.")
    dtype = accumulation_dtype(loss.device)
    scalars = [scalar.detach().reshape(()).to(loss.device, dtype) for scalar in (loss, *products)]
    return torch.stack(scalars).tolist()


def _real(loss: Any) -> float:
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise MisuseError(f"the closure must return the loss, got {loss!r}.") from None

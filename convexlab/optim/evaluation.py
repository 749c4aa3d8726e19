"""Evaluating a closure: counted, with the gradient as one flat vector, along a ray of points."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.vectors import accumulation_dtype, dot, flatten, gradient_of

__all__ = ["Closure", "CountedClosure", "Evaluation", "Ray"]

Closure = Callable[..., Tensor | float]


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
    """A closure, whether it can be asked for the value alone, and how often it was called."""

    def __init__(self, closure: Closure, parameters: list[Tensor]) -> None:
        if not callable(closure):
            raise MisuseError(
                f"step needs a closure that zeroes the gradients, calls backward and returns the loss, got {closure!r}."
            )
        self._closure = closure
        self._parameters = parameters
        self._takes_backward = _takes_backward(closure)
        self.values = 0
        self.gradients = 0

    @property
    def evaluations(self) -> int:
        """All calls so far."""
        return self.values + self.gradients

    def value(self) -> float | None:
        """Return the loss alone, or None if the closure knows only how to call backward."""
        if not self._takes_backward:
            return None
        self.values += 1
        with torch.enable_grad():
            return _numbers(self._closure(backward=False))[0]

    def evaluate(self, direction: Tensor | None = None) -> tuple[Evaluation, float]:
        """Return loss and gradient, and the gradient's product with the direction (NaN without one)."""
        self.gradients += 1
        with torch.enable_grad():
            loss = self._closure()
        gradient = flatten(gradient_of(parameter) for parameter in self._parameters)
        products = [dot(gradient, gradient)]
        if direction is not None:
            products.append(dot(gradient, direction))
        value, squared_norm, *slope = _numbers(loss, *products)
        return Evaluation(value, gradient, squared_norm), slope[0] if slope else math.nan


class Ray:
    """The points x + αd: moves the weights there, evaluates, remembers the last gradient seen."""

    def __init__(
        self, write: Callable[[Tensor], None], call: CountedClosure, weights: Tensor, direction: Tensor
    ) -> None:
        self._write = write
        self._call = call
        self._weights = weights
        self._direction = direction
        self.last: tuple[float, Evaluation | None] = (0.0, None)

    def at(self, step: float) -> Tensor:
        """Return x + αd, the same bits for the same step."""
        return torch.add(self._weights, self._direction, alpha=step)

    def evaluate(self, step: float, needs_slope: bool) -> tuple[float, float | None]:
        """Move the weights to x + αd; return the loss and its slope along d, None if the value alone was to be had."""
        self._write(self.at(step))
        if not needs_slope and (value := self._call.value()) is not None:
            self.last = (step, None)
            return value, None
        evaluation, slope = self._call.evaluate(self._direction)
        self.last = (step, evaluation)
        return evaluation.loss, slope


def _takes_backward(closure: Closure) -> bool:
    try:
        parameter = inspect.signature(closure).parameters.get("backward")
    except (TypeError, ValueError):  # Some callables written in C have no signature.
        return False
    return parameter is not None and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY


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

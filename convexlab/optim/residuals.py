"""Evaluating a closure that returns residuals: counted, with their Jacobian where a step begins."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.least_squares import dense_bytes, dense_words, jacobian_by_products
from convexlab.linalg.vectors import accumulation_dtype, dot
from convexlab.machine.memory import require_room
from convexlab.optim.checks import process_count
from convexlab.optim.evaluation import Closure, CountedClosure, Evaluation, takes

__all__ = ["CountedResiduals"]


class CountedResiduals(CountedClosure):
    """A closure that returns residuals r whose squares sum to the loss, and how often it was called.

    `value` is of the residuals alone, `evaluate` of their Jacobian too, from which the gradient 2Jᵀr follows.
    """

    _needed = "step needs a closure that returns the residuals, a tensor or several, whose squares sum to the loss"

    def __init__(self, closure: Closure | None, parameters: list[Tensor], *, averaged: bool = False) -> None:
        super().__init__(closure, parameters)
        if averaged and process_count() > 1:
            raise MisuseError(
                "residuals are those of one process: LevenbergMarquardt does not average over several. Set "
                "optimizer.processes = 'alone' where each sees all of them, or choose another method."
            )
        self._gives_jacobian = takes(self._closure, "jacobian")
        self.residuals = self.jacobian = torch.empty(0)
        """r (m,) and J (m, n) of the last `evaluate`, in the dtype of sums."""

    def value(self) -> float:
        """Return the sum of squares."""
        self.values += 1
        begin = time.perf_counter()
        with torch.enable_grad():
            residuals = self._vector(self._closure())
        loss = dot(residuals.detach(), residuals.detach()).item()
        self.seconds += time.perf_counter() - begin
        return loss

    def evaluate(self, direction: Tensor | None = None) -> tuple[Evaluation, float]:
        """Return the sum of squares and its gradient, and that one's product with the direction (NaN without one).

        Raises:
            MisuseError: no residuals, residuals that depend on no parameter, or a Jacobian that does not fit in memory.
        """
        self.gradients += 1
        begin = time.perf_counter()
        with torch.enable_grad():
            residuals, jacobian = self._linearised()
        gradient = torch.mv(jacobian.T, residuals).mul_(2.0)
        products = [dot(residuals, residuals), dot(gradient, gradient)]
        products.append(dot(gradient, gradient if direction is None else direction))
        loss, squared_norm, slope = torch.stack(products).tolist()
        self.residuals, self.jacobian = residuals, jacobian
        self.seconds += time.perf_counter() - begin
        evaluation = Evaluation(loss, gradient.to(self._parameters[0].dtype), squared_norm)
        return evaluation, float("nan") if direction is None else slope

    def _linearised(self) -> tuple[Tensor, Tensor]:
        """Return r (m,) and J (m, n) in the dtype of sums."""
        parameters, wide = self._parameters, accumulation_dtype(self._parameters[0].device)
        size = sum(parameter.numel() for parameter in parameters)
        if self._gives_jacobian:
            residuals, jacobian = self._pair(self._closure(jacobian=parameters), size)
            return residuals.detach().to(wide), jacobian.detach().to(wide)
        residuals = self._vector(self._closure())
        self._check_graph(residuals)
        require_room(dense_bytes(len(residuals), size), residuals.device, dense_words(len(residuals), size))
        jacobian = torch.empty(len(residuals), size, dtype=wide, device=residuals.device)
        jacobian_by_products(residuals, parameters, jacobian)
        return residuals.detach().to(wide), jacobian

    def _pair(self, returned: Any, size: int) -> tuple[Tensor, Tensor]:
        shapes = [tuple(part.shape) for part in returned if isinstance(part, Tensor)] if _is_pair(returned) else []
        if len(shapes) != 2 or len(shapes[0]) != 1 or shapes[1] != (*shapes[0], size):
            got = " and ".join(map(str, shapes)) or type(returned).__name__
            raise MisuseError(
                f"asked for jacobian=parameters the closure must return residuals (m,) and their Jacobian (m, {size}), "
                f"got {got}."
            )
        residuals, jacobian = returned
        return residuals, jacobian

    def _vector(self, returned: Tensor | float | Sequence[Tensor]) -> Tensor:
        parts: list[Any] = list(returned) if isinstance(returned, list | tuple) else [returned]
        if not parts or not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
            kind = type(parts[0]).__name__ if parts else "none"
            raise MisuseError(f"{self._needed}, got {kind}.")
        if isinstance(returned, Tensor) and returned.ndim == 0:
            raise MisuseError(
                f"{self._needed}, got one number, which looks like the loss itself. Return the residuals before they "
                "are squared and summed, scaled so that their squares sum to it."
            )
        return torch.cat([part.reshape(-1) for part in parts])

    def _check_graph(self, residuals: Tensor) -> None:
        if not any(parameter.requires_grad for parameter in self._parameters):
            raise MisuseError("every parameter is frozen: expected at least one that requires a gradient.")
        if not residuals.requires_grad:
            raise MisuseError(
                "the closure's residuals do not depend on any parameter that requires a gradient: they are constant, "
                "or detached. Return them with their graph."
            )


def _is_pair(returned: Any) -> bool:
    return isinstance(returned, tuple | list) and len(returned) == 2

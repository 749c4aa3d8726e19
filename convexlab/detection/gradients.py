"""Statistics of an epoch from the optimiser's own mini-batch gradients and steps, without any evaluation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexlab.linalg.vectors import accumulation_dtype, dot, flatten, gradient_of

__all__ = ["GradientStatistics", "StepStatistics"]


@dataclass(frozen=True)
class StepStatistics:
    """Statistics of an epoch's steps; NaN where the steps do not determine them."""

    steps: int
    batch_gradient_norm: float
    """Root mean square of the steps' ‖g‖, the noise of mini-batches included."""
    gradient_norm: float
    """‖g‖ of the training loss along the epoch, without the noise; known where a step's gradient came in parts."""
    gradient_noise: float
    """Standard error of ``gradient_norm``."""
    projected_rate: float
    """-Σpᵀp / Σpᵀg over the steps p; see `Signals`."""


class GradientStatistics:
    """Reads gradients and steps, from hooks, as an optimiser steps: an epoch's gradient norm costs no evaluation.

    A mini-batch's squared norm is too large by its noise. Where its gradient is accumulated from k ≥ 2 equal parts at
    the same weights, the products of different parts have no such bias. The mean over the steps of k/(k-1) (‖Σ gᵢ‖² - Σ
    ‖gᵢ‖²) is then an unbiased estimate of ‖g‖². (Products of successive steps are not: a step moves the weights against
    its own gradient, so that the next gradient is smaller along it. On the digits they came out negative.) Examples
    drawn without replacement, as in an epoch over N of them, leave a bias of -tr(Σ) / (N - 1). Σ is the covariance of
    their gradients.

    Gradients are read as the optimiser gets them. A loop that clips them has changed them by then, which ``clipped``
    says: they are then kept as each backward pass leaves them. Of a closure, the gradient of its first evaluation in a
    step is read.

    Memory: during a step, the weights and the gradient in float64; with parts, as much again before it. The host does
    not wait for the device before `epoch`.

    Args:
        optimizer: its parameters' gradients are read as it steps; a parameter without a gradient has gradient zero.
        clipped: whether the loop clips gradients between backward pass and step; takes the memory of one more gradient.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, clipped: bool = False) -> None:
        self._optimizer = optimizer
        self._handles: list[Any] = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]
        self._unclipped: dict[Tensor, Tensor] = {}
        if clipped:
            leaves = [parameter for parameter in self._parameters() if parameter.requires_grad]
            self._handles += [leaf.register_post_accumulate_grad_hook(self._keep) for leaf in leaves]
        self._parts: list[Tensor] = []
        self._accumulated: Tensor | None = None
        self._weights: Tensor | None = None
        self._gradient: Tensor | None = None
        self._squared: tuple[Tensor, Tensor] | None = None
        self._start()

    @torch.no_grad()
    def accumulated(self) -> None:
        """Take in a part of a step's gradient: to be called after each of its backward passes but the last."""
        if not self._handles:
            return
        gradient = self._read()
        part = gradient if self._accumulated is None else gradient - self._accumulated
        self._parts.append(dot(part, part))
        self._accumulated = gradient

    @property
    def steps(self) -> int:
        """How many there were since `epoch` was last called."""
        return len(self._squares)

    @torch.no_grad()
    def epoch(self) -> StepStatistics:
        """Return the statistics of the steps since the last call, and begin again."""
        steps = len(self._squares)
        if not steps:
            return StepStatistics(0, math.nan, math.nan, math.nan, math.nan)
        columns = (self._squares, self._unbiased, self._lengths, self._projections)
        squares, unbiased, lengths, projections = (torch.stack(column).tolist() for column in columns)
        self._start()
        known = [value for value in unbiased if math.isfinite(value)]
        norm, noise = _root(known)
        descent = -math.fsum(projections)
        rate = math.fsum(lengths) / descent if descent > 0 else math.nan
        return StepStatistics(steps, math.sqrt(math.fsum(squares) / steps), norm, noise, rate)

    def close(self) -> None:
        """Stop reading: remove the hooks."""
        while self._handles:
            self._handles.pop().remove()

    def _start(self) -> None:
        self._squares: list[Tensor] = []
        self._unbiased: list[Tensor] = []
        self._lengths: list[Tensor] = []
        self._projections: list[Tensor] = []

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def _keep(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._unclipped[parameter] = parameter.grad.clone()

    def _read(self) -> Tensor:
        kept = self._unclipped
        gradient = flatten(kept[each] if each in kept else gradient_of(each) for each in self._parameters())
        return gradient.to(accumulation_dtype(gradient.device))  # Here, because every product would do so again.

    @torch.no_grad()
    def _before(self, _: Any, args: tuple[Any, ...], options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Read the gradient as the step begins, or after a closure, which computes it, is called."""
        self._weights, self._gradient = flatten(self._parameters()), None
        closure = args[1] if len(args) > 1 else options.get("closure")
        if closure is None:
            self._take()
            return None
        watched = self._watched(closure)
        return ((args[0], watched, *args[2:]), options) if len(args) > 1 else (args, options | {"closure": watched})

    def _watched(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(closure)
        def watched(*args: Any, **options: Any) -> Any:
            loss = closure(*args, **options)
            if self._gradient is None:
                self._take()
            return loss

        return watched

    @torch.no_grad()
    def _take(self) -> None:
        if self._accumulated is not None:
            self.accumulated()
        self._gradient, parts = self._read(), self._parts
        square, count = dot(self._gradient, self._gradient), len(parts)
        without_noise = count / (count - 1) * (square - torch.stack(parts).sum()) if count else square * math.nan
        self._squared = square, without_noise

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        if self._weights is not None and self._gradient is not None and self._squared is not None:
            step = (flatten(self._parameters()) - self._weights).to(self._gradient.dtype)
            # Together, because a step that failed does not count.
            self._squares.append(self._squared[0])
            self._unbiased.append(self._squared[1])
            self._lengths.append(dot(step, step))
            self._projections.append(dot(step, self._gradient))
        # Free the memory, and drop the parts of a closure's later evaluations.
        self._weights = self._gradient = self._accumulated = None
        self._unclipped.clear()
        self._parts = []


def _root(squares: list[float]) -> tuple[float, float]:
    """Return the root of the mean of estimates of a square, zero if the mean is negative, and its standard error."""
    if len(squares) < 2:
        return math.nan, math.nan
    mean = math.fsum(squares) / len(squares)
    variance = math.fsum((value - mean) ** 2 for value in squares) / (len(squares) - 1)
    error, root = math.sqrt(variance / len(squares)), math.sqrt(max(mean, 0.0))
    # This is error / (2 root) where that is small, and never more than the root of the error, its value at zero.
    return root, error / (root + math.sqrt(root**2 + error)) if error else 0.0

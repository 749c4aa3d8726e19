"""What the tests of all flat optimisers share: a closure, steps until the end, and a count of host synchronisations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from torch import Tensor, nn

from convexlab.optim import StepReport
from convexlab.optim.flat import FlatOptimizer

Loss = Callable[[Tensor], Tensor]
Optimiser = TypeVar("Optimiser", bound=FlatOptimizer)


def closure_of(loss: Loss, x: nn.Parameter) -> Callable[..., Tensor]:
    def closure(backward: bool = True) -> Tensor:
        x.grad = None
        value = loss(x)
        if backward:
            value.backward()
        return value

    return closure


def run(
    build: Callable[..., Optimiser],
    loss: Loss,
    start: Tensor,
    steps: int = 1000,
    tolerance: float = 0.0,
    **options: object,
) -> Iterator[tuple[Tensor, StepReport, Optimiser]]:
    """Yield the point after each step, until the gradient at its start was within the tolerance or the step failed."""
    x = nn.Parameter(start.clone())
    optimiser = build([x], **options)
    for _ in range(steps):
        optimiser.step(closure_of(loss, x))
        yield x.detach().clone(), optimiser.report, optimiser
        if optimiser.report.gradient_norm <= tolerance or optimiser.report.failed:
            return


class Fetches:
    """Counts what the host fetches from the device: there each waits for the queue."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("tolist", "item", "__bool__", "__float__"):
            monkeypatch.setattr(Tensor, name, self._counted(getattr(Tensor, name)))

    def _counted(self, plain: Callable[..., object]) -> Callable[..., object]:
        def fetch(tensor: Tensor, *args: object) -> object:
            self.count += 1
            return plain(tensor, *args)

        return fetch

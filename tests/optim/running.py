"""What the tests of all flat optimisers share: a closure, steps until the end, states that go on, counted fetches."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch
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


Close = Callable[[Loss, nn.Parameter], Callable[..., Tensor]]


def residuals_of(loss: Loss, x: nn.Parameter) -> Callable[..., Tensor]:
    """Return the closure of a method that takes residuals, where the loss is a function that returns them."""
    return lambda: loss(x)


def run(
    build: Callable[..., Optimiser],
    loss: Loss,
    start: Tensor,
    steps: int = 1000,
    tolerance: float = 0.0,
    close: Close = closure_of,
    **options: object,
) -> Iterator[tuple[Tensor, StepReport, Optimiser]]:
    """Yield the point after each step, until the gradient at its start was within the tolerance or the step failed."""
    x = nn.Parameter(start.clone())
    optimiser = build([x], **options)
    for _ in range(steps):
        optimiser.step(close(loss, x))
        yield x.detach().clone(), optimiser.report, optimiser
        if optimiser.report.gradient_norm <= tolerance or optimiser.report.failed:
            return


def check_state_continues(
    build: Callable[[nn.Parameter], FlatOptimizer],
    loss: Loss,
    start: Tensor,
    split: int,
    steps: int,
    close: Close = closure_of,
) -> None:
    """Check that a state stored after ``split`` of the steps, on disk, goes on to the same bits and reports."""

    def walk(x: nn.Parameter, optimiser: FlatOptimizer, count: int) -> list[tuple[Tensor, StepReport | None]]:
        seen = []
        for _ in range(count):
            optimiser.step(close(loss, x))
            seen.append((x.detach().clone(), optimiser.report))
        return seen

    x = nn.Parameter(start.clone())
    expected = walk(x, build(x), steps)
    x = nn.Parameter(start.clone())
    optimiser = build(x)
    walk(x, optimiser, split)
    file = io.BytesIO()
    torch.save({"x": x.detach(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    x = nn.Parameter(stored["x"])
    optimiser = build(x)
    optimiser.load_state_dict(stored["optimiser"])
    for (point, report), (other, other_report) in zip(walk(x, optimiser, steps - split), expected[split:], strict=True):
        assert torch.equal(point, other)
        assert report == other_report


def check_exceptions_leave_no_trace(
    build: Callable[[nn.Parameter], FlatOptimizer], loss: Loss, start: Tensor, at: int, close: Close = closure_of
) -> None:
    """Check that a step that is interrupted, twice, leaves the weights, and that the run goes on as without it."""

    def interrupt() -> Tensor:
        raise KeyboardInterrupt

    expected = [x for x, *_ in run(lambda parameters: build(parameters[0]), loss, start, 12, close=close)]
    x = nn.Parameter(start.clone())
    optimiser = build(x)
    for step, point in enumerate(expected):
        if step == at:
            before = x.detach().clone()
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    optimiser.step(interrupt)
            assert torch.equal(x, before)
        optimiser.step(close(loss, x))
        assert torch.equal(x, point)


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

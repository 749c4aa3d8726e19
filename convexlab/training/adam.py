"""One epoch of Adam on a problem: the trainer's, the studies' and the benchmarks'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convexlab.detection import Watch
from convexlab.detection.gradients import GradientStatistics
from convexlab.machine.random_state import fixed_random_state
from convexlab.objective.batched_loss import divisible
from convexlab.objective.batches import common_rows, mapped
from convexlab.problems import Problem

__all__ = ["adam_epoch", "backward"]


def adam_epoch(
    problem: Problem,
    adam: torch.optim.Adam,
    order: torch.Generator,
    *,
    seed: int,
    epoch: int,
    learning_rate: Callable[[float], float] | None = None,
    watch: GradientStatistics | Watch | None = None,
    step: Callable[[Any], Tensor] | None = None,
) -> float:
    """Take one epoch of Adam's steps, and return the mean of their losses.

    It costs 1 gradient equivalent, on the whole batch too, where an epoch is a step.

    Args:
        problem: what is trained.
        adam: of the model's parameters.
        order: of the mini-batches; it is moved.
        seed: random draws of layers or data, such as dropout, depend on it and on ``epoch`` alone.
        epoch: epochs done.
        learning_rate: maps the epochs done, a fraction within an epoch, to the rate; None keeps it.
        watch: observes the steps; it gets each step's gradient in two halves.
        step: takes a step on a batch and returns its loss, detached; None is a plain one.
    """
    if watch is not None and not divisible(problem.model):
        watch = None

    def plain(batch: Any) -> Tensor:
        adam.zero_grad()
        loss = backward(problem.objective.training_loss, batch, watch)
        adam.step()
        return loss

    step, losses = step or plain, []
    problem.model.train()
    with fixed_random_state(problem.objective.device, (seed + epoch * 2**31) % 2**63, everything=True):
        for done, batch in problem.batches.epoch(order):
            if learning_rate is not None:
                _set_rate(adam, learning_rate(epoch + done))
            losses.append(step(batch))
    return float(torch.stack(losses).mean())


def backward(loss: Callable[[Any], Tensor], batch: Any, watch: GradientStatistics | Watch | None = None) -> Tensor:
    """Add the gradient of the mean loss of a batch to the parameters', and return that loss, detached.

    With a watch it does so in two halves, which is no more arithmetic, and reports the first half to the watch. The
    product of both halves' gradients is free of the mini-batch's noise. A batch whose tensors differ in length stays
    whole.
    """
    rows = None if watch is None else common_rows(batch)
    if watch is None or rows is None or rows < 2:
        whole = loss(batch)
        whole.backward()
        return whole.detach()
    middle, parts = -(-rows // 2), []  # The first half has the odd example, as in `Tensor.tensor_split`.
    for begin, end in ((0, middle), (middle, rows)):
        half = mapped(lambda item, begin=begin, end=end: item[begin:end], batch)
        part = loss(half) * ((end - begin) / rows)
        part.backward()
        parts.append(part.detach())
        if begin == 0:
            watch.accumulated()
    return parts[0] + parts[1]


def _set_rate(adam: torch.optim.Adam, rate: float) -> None:
    group = adam.param_groups[0]
    if isinstance(group["lr"], Tensor):  # On the device, where a captured step reads it.
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate

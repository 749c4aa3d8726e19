"""A step of Adam that is recorded once and replayed, so that its hundreds of small kernels start by one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from convexlab.linalg.vectors import flatten, gradient_of
from convexlab.machine import capture
from convexlab.machine.random_state import generators_of, restore_all
from convexlab.objective.batches import common_rows
from convexlab.problems import Problem
from convexlab.training.adam import backward

__all__ = ["CapturedStep"]

_WARM_UP = 2
"""Steps before the one that is compared, in which libraries choose their kernels and Adam makes its moments."""


class CapturedStep:
    """Takes steps on mini-batches for `adam_epoch`: a replay on batches as large as the first, plain ones otherwise.

    Its first replay is compared with a plain step from the same place: the loss, the gradient, and what Adam keeps of
    it. All that takes four steps more, which no cost counts, only seconds; they leave weights, moments and random
    numbers as they were. Where the device has no recordings, or the step cannot be recorded, all steps are plain. The
    optimiser's state may not be loaded anew meanwhile: a recording knows the tensors that it has.

    Args:
        problem: what is trained.
        adam: of its model's parameters; where steps are recorded, its step counts and its rate go to the device.
    """

    def __init__(self, problem: Problem, adam: torch.optim.Adam) -> None:
        self._problem, self._adam = problem, adam
        self._recorder = capture.recorder_for(problem.objective.device)
        self._recording: capture.Recording | None = None
        self._batch: Any = None
        self.reason = None if self._recorder else f"{problem.objective.device.type} has no graphs of kernels to record"
        """Why all steps are plain; None where they are not, or none was taken yet."""
        if problem.objective.ranks.shared:
            self.reason = "several ranks take a step together"
        if self.reason is None:
            _make_capturable(adam)

    def prepare(self, batch: Any) -> None:
        """Record a step on batches like this, if there is none yet and it can be; no step is taken."""
        if self._recording is None and self.reason is None:
            self._record(batch)

    def __call__(self, batch: Any) -> Tensor:
        """Take a step on this batch, and return its loss, detached."""
        self.prepare(batch)
        if self._recording is None or common_rows(batch) != common_rows(self._batch):
            return self._plain(batch)
        for ours, theirs in zip(tree_leaves(self._batch), tree_leaves(batch), strict=True):
            ours.copy_(theirs)
        self._recording.replay()
        loss: Tensor = self._recording.result.clone()
        return loss

    def _plain(self, batch: Any) -> Tensor:
        self._adam.zero_grad()
        loss = backward(self._problem.objective.training_loss, batch)
        self._adam.step()
        return loss

    def _record(self, batch: Any) -> None:
        """Record a step on a copy of the batch, and go back to where it began."""
        assert self._recorder is not None
        restore = self._restoring()
        try:
            self._batch = tree_map(lambda tensor: tensor.to(self._problem.objective.device).clone(), batch)
            for _ in range(_WARM_UP):
                self._recorder.warm_up(lambda: self._plain(self._batch))
            restore()
            plain = self._led_to(capture.warm(self._recorder, lambda: self._plain(self._batch)))
            restore()
            self._recording = self._recorder.record(lambda: self._plain(self._batch))
            restore()  # Some recorders take the step meanwhile, others do not.
            self._recording.replay()
            capture.require_same(self._led_to(self._recording.result), plain)
        except (RuntimeError, AttributeError) as error:  # The latter where a batch holds what is no tensor.
            self._recording, self.reason = None, (str(error) or type(error).__name__).splitlines()[0]
        restore()

    def _restoring(self) -> Callable[[], None]:
        """Return what puts weights, buffers, moments and random numbers back to what they are now."""
        model, generators = self._problem.model, generators_of(self._problem.objective.device)
        draws = [generator.get_state() for generator in generators]
        tensors = [*model.parameters(), *model.buffers()]
        before = [tensor.detach().clone() for tensor in tensors]
        moments = [
            {name: value.clone() for name, value in self._adam.state[part].items()} for part in model.parameters()
        ]

        @torch.no_grad()
        def restore() -> None:
            restore_all(generators, draws)
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
            for parameter, known in zip(model.parameters(), moments, strict=True):
                for name, value in self._adam.state[parameter].items():
                    value.copy_(known[name]) if known else value.zero_()

        return restore

    def _led_to(self, loss: Tensor) -> list[Tensor]:
        """Return what a step has led to: the loss, the gradient, and Adam's mean of gradients, as one vector each.

        Not the weights: where a gradient is zero but for rounding, Adam's first step is as long as elsewhere, one way
        or the other.
        """
        gradient = flatten(map(gradient_of, self._problem.model.parameters()))
        return [loss, gradient, flatten(state["exp_avg"] for state in self._adam.state.values() if state)]


def _make_capturable(adam: torch.optim.Adam) -> None:
    """Keep the step counts and the learning rate on the device, where a recording reads them."""
    for group in adam.param_groups:
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)
    for parameter, state in adam.state.items():
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)

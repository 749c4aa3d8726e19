"""A step of Adam as a CUDA graph: its hundreds of small kernels are started by one call.

Source: Nguyen et al., "Accelerating PyTorch with CUDA graphs", 2021; https://docs.pytorch.org/docs/main/notes/cuda.html.
"""

from __future__ import annotations

from typing import Any

import torch
from phase_two_problems import Task
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from convexlab.objective.batches import common_rows
from convexlab.training.adam import backward

__all__ = ["CapturedStep", "make_capturable"]

_WARM_UP = 3  # Steps before the capture, in which libraries choose their kernels and Adam makes its moments.


def make_capturable(adam: torch.optim.Adam) -> None:
    """Keep the step counts and the learning rate on the device, where a graph can read them."""
    for group in adam.param_groups:
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=group["params"][0].device)
    for parameter, state in adam.state.items():
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)


class CapturedStep:
    """A step on one full mini-batch; weights and moments are those before the capture."""

    def __init__(self, task: Task, adam: torch.optim.Adam) -> None:
        device, rows = task.objective.device, task.problem.random_rows()
        first = torch.arange(rows.size)
        self._batch = tree_map(lambda tensor: tensor.to(device).clone(), rows.of(first))
        self._graph = torch.cuda.CUDAGraph()
        parameters = list(task.model.parameters())
        weights = [parameter.detach().clone() for parameter in parameters]
        moments = [{name: value.clone() for name, value in adam.state[part].items()} for part in parameters]

        def step() -> Tensor:
            adam.zero_grad()
            loss = backward(task.objective.training_loss, self._batch)
            adam.step()
            return loss

        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                step()
        torch.cuda.current_stream(device).wait_stream(beside)
        with torch.cuda.graph(self._graph):
            self._loss = step()
        with torch.no_grad():
            for parameter, weight, before in zip(parameters, weights, moments, strict=True):
                parameter.copy_(weight)
                for name, value in adam.state[parameter].items():
                    value.copy_(before[name]) if before else value.zero_()

    def fits(self, batch: Any) -> bool:
        """Whether it has as many rows as were captured."""
        return common_rows(batch) == common_rows(self._batch)

    def replay(self, batch: Any) -> Tensor:
        """Take a step on this batch, and return its loss."""
        for ours, theirs in zip(tree_leaves(self._batch), tree_leaves(batch), strict=True):
            ours.copy_(theirs)
        self._graph.replay()
        return self._loss.clone()

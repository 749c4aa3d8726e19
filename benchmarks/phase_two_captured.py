"""A step of Adam as a CUDA graph: its hundreds of small kernels are started by one call.

Source: Nguyen et al., "Accelerating PyTorch with CUDA graphs", 2021; https://docs.pytorch.org/docs/main/notes/cuda.html.
"""

from __future__ import annotations

import torch
from phase_two_problems import Task
from torch import Tensor

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
        device = task.objective.device
        self._rows = torch.arange(task.batch_size, device=device)
        self._graph = torch.cuda.CUDAGraph()
        parameters = list(task.model.parameters())
        weights = [parameter.detach().clone() for parameter in parameters]
        moments = [{name: value.clone() for name, value in adam.state[one].items()} for one in parameters]

        def step() -> None:
            adam.zero_grad()
            task.loss(self._rows).backward()
            adam.step()

        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                step()
        torch.cuda.current_stream(device).wait_stream(beside)
        with torch.cuda.graph(self._graph):
            step()
        with torch.no_grad():
            for parameter, weight, before in zip(parameters, weights, moments, strict=True):
                parameter.copy_(weight)
                for name, value in adam.state[parameter].items():
                    value.copy_(before[name]) if before else value.zero_()

    def fits(self, rows: Tensor) -> bool:
        """Whether these are as many as were captured."""
        return len(rows) == len(self._rows)

    def replay(self, rows: Tensor) -> None:
        """Take a step on these rows."""
        self._rows.copy_(rows)
        self._graph.replay()

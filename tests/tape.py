"""Recordings on the CPU: the operations of a call, made again on tensors of fixed places, as a CUDA graph makes them.

Python runs once, when it is recorded. A replay makes the same operations on the same storage, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from convexlab.machine import capture


class _Listener(TorchDispatchMode):
    """Writes down every operation that computes something: itself, its arguments, and the new tensors it made."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Any]]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # With True, torch imports its compiler.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("it waits for the device")
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            given = {leaf.untyped_storage().data_ptr() for leaf in _tensors((args, kwargs))}
            made = [
                leaf.data if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given else None
                for leaf in tree_leaves(result)
            ]
            self.operations.append((func, *tree_map(_without_graph, (args, kwargs or {})), made))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _without_graph(leaf: Any) -> Any:
    """The same storage, without the version that autograd counts: a graph of kernels changes what is saved, too."""
    return leaf.data if isinstance(leaf, Tensor) else leaf


class Tape:
    """A call that can be made again."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.replays = 0
        with _Listener() as listener:
            self.result = function()
        self._operations = listener.operations
        for _, _, _, made in self._operations:
            for tensor in _tensors(made):  # What no replay fills is seen.
                tensor.fill_(torch.nan if tensor.is_floating_point() else 0)

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, made in self._operations:
            again = func(*args, **kwargs)
            for old, new in zip(made, tree_leaves(again), strict=True):
                if old is not None:
                    old.copy_(new)


class Recorder:
    """Records as a CUDA device would."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def warm_up(self, function: Callable[[], Any]) -> Any:
        with _Listener():
            return function()

    def record(self, function: Callable[[], Any], beside: Any = None) -> Tape:
        self.tapes.append(Tape(function))
        return self.tapes[-1]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Let the CPU record."""
    made = Recorder()
    monkeypatch.setattr(capture, "recorder_for", lambda device: made)
    return made

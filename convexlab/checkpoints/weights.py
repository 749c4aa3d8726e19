"""A checkpoint's weights in a model."""

from __future__ import annotations

from torch import nn

from convexlab.checkpoints.files import Checkpoint, CheckpointHeader
from convexlab.errors import MisuseError

__all__ = ["check_fit", "load_weights"]


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into the model.

    Raises:
        MisuseError: names or shapes differ; the model is left as it was.
    """
    check_fit(model, checkpoint.header)
    model.load_state_dict(checkpoint.tensors)


def check_fit(model: nn.Module, checkpoint: CheckpointHeader) -> None:
    """Raise a MisuseError unless a checkpoint has the model's tensors by name, shape and kind of number."""
    state = model.state_dict()
    missing = sorted(state.keys() - checkpoint.shapes.keys())
    extra = sorted(checkpoint.shapes.keys() - state.keys())
    shapes = [
        f"{name} is {checkpoint.shapes[name]}, expected {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in checkpoint.shapes and checkpoint.shapes[name] != tuple(tensor.shape)
    ]
    kinds = [
        f"{name} holds {'no ' * (name not in checkpoint.real)}floating-point numbers, expected {tensor.dtype}"
        for name, tensor in state.items()
        if name in checkpoint.shapes and tensor.is_floating_point() != (name in checkpoint.real)
    ]
    problems = (shapes or kinds)[:2]
    if extra:
        problems.insert(0, f"not in the model {_few(extra)}")
    if missing:
        problems.insert(0, f"missing {_few(missing)}")
    if problems:
        raise MisuseError(
            f"checkpoint {str(checkpoint.path)!r} is of another architecture: {'; '.join(problems)}. "
            "Name the model that it was made from by --model, and the data set that decides its input and output."
        )


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"

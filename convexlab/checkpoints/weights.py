"""A checkpoint's weights in a model."""

from __future__ import annotations

from torch import nn

from convexlab.checkpoints.files import Checkpoint
from convexlab.errors import MisuseError

__all__ = ["load_weights"]


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into the model.

    Raises:
        MisuseError: names or shapes differ; the model is left as it was.
    """
    state = model.state_dict()
    missing = sorted(state.keys() - checkpoint.tensors.keys())
    extra = sorted(checkpoint.tensors.keys() - state.keys())
    shapes = [
        f"{name} is {tuple(checkpoint.tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in checkpoint.tensors and checkpoint.tensors[name].shape != tensor.shape
    ]
    problems = shapes[:2]
    if extra:
        problems.insert(0, f"not in the model {_few(extra)}")
    if missing:
        problems.insert(0, f"missing {_few(missing)}")
    if problems:
        raise MisuseError(
            f"checkpoint {str(checkpoint.path)!r} is of another architecture: {'; '.join(problems)}. "
            "Name the model that it was made from by --model, and the data set that decides its input and output."
        )
    model.load_state_dict(checkpoint.tensors)


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"

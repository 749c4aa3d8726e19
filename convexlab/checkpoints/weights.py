"""A checkpoint's weights in a model."""

from __future__ import annotations

from torch import nn

from convexlab.checkpoints.files import Checkpoint, CheckpointHeader
from convexlab.checkpoints.layouts import is_adapter
from convexlab.checkpoints.names import Match, match_names
from convexlab.errors import MisuseError

__all__ = ["check_fit", "load_weights"]

_BY_MODEL = "Name the model that it was made from by --model, and the data set that decides its input and output."
_BY_OBJECTIVE = "Let the factory that --objective names build the model that it was made from."


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy a checkpoint's tensors into the model; those of an adapter into its places, the others stay.

    Raises:
        MisuseError: names or shapes differ; the model is left as it was.
    """
    match = check_fit(model, checkpoint.header)
    state = {name: checkpoint.tensors[source] for name, source in match.sources.items()}
    model.load_state_dict(state, strict=not is_adapter(checkpoint.path))


def check_fit(model: nn.Module, checkpoint: CheckpointHeader, *, by_objective: bool = False) -> Match:
    """Return how a checkpoint's names are the model's, see `match_names`.

    Args:
        model: whose tensors are looked for.
        checkpoint: all but its tensors.
        by_objective: whether the model comes from an objective's factory, for the advice in an error.

    Raises:
        MisuseError: the checkpoint has not the model's tensors by name, shape and kind of number.
    """
    match = match_names(model, checkpoint.shapes, adapter=is_adapter(checkpoint.path))
    state = model.state_dict()
    found = {name: (checkpoint.shapes[source], source in checkpoint.real) for name, source in match.sources.items()}
    shapes = [
        f"{name} is {shape}, expected {tuple(state[name].shape)}"
        for name, (shape, _) in found.items()
        if shape != tuple(state[name].shape)
    ]
    kinds = [
        f"{name} holds {'no ' * (not real)}floating-point numbers, expected {state[name].dtype}"
        for name, (_, real) in found.items()
        if state[name].is_floating_point() != real
    ]
    problems = (shapes or kinds)[:2]
    if match.extra:
        problems.insert(0, f"not in the model {_few(match.extra)}")
    if match.missing:
        problems.insert(0, f"missing {_few(match.missing)}")
    if near := match.nearest():
        problems.append(near)
    if problems:
        under = f", under {checkpoint.key!r}," if checkpoint.key else ""
        raise MisuseError(
            f"checkpoint {str(checkpoint.path)!r}{under} is of another architecture: {'; '.join(problems)}. "
            f"{_BY_OBJECTIVE if by_objective else _BY_MODEL}"
        )
    return match


def _few(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"

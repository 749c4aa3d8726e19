"""Adam's second moments beside a checkpoint, or within one of torch's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convexlab.checkpoints.files import read_checkpoint, torch_content, write_checkpoint
from convexlab.errors import MisuseError
from convexlab.machine.atomic import make_folder

__all__ = ["read_moments", "write_moments"]

# What a file of torch's own calls an optimiser's state: by hand, by Lightning and by others.
_WRAPPERS = ("optimizer", "optimizer_state_dict", "optimizer_states", "optim")
_SETTINGS = ("lr", "beta1", "beta2", "eps")


def write_moments(checkpoint: Path, model: nn.Module, adam: torch.optim.Adam) -> None:
    """Write the second moments of an Adam of one group into a folder beside a checkpoint, if it has made a step."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    group = adam.param_groups[0]
    tensors = {names[id(p)]: adam.state[p]["exp_avg_sq"] for p in group["params"] if p in adam.state}
    if not tensors:
        return
    step = float(next(iter(adam.state.values()))["step"])
    settings = dict(zip(_SETTINGS, (group["lr"], *group["betas"], group["eps"]), strict=True)) | {"step": step}
    path = _beside(checkpoint)
    make_folder(path.parent)
    write_checkpoint(path, tensors, {name: repr(float(value)) for name, value in settings.items()})


def read_moments(checkpoint: Path, model: nn.Module) -> Mapping[str, Any] | None:
    """Return the state of the Adam that reached a checkpoint, as for the model's parameters in their order.

    It is read from the file that `write_moments` has put beside the checkpoint. A PyTorch checkpoint that holds the
    optimiser's state too is read itself. None where there is no such file, or it does not fit.
    """
    if checkpoint.is_dir():
        return None
    parameters = dict(model.named_parameters())
    state = _from_file(_beside(checkpoint), list(parameters)) or _from_torch(checkpoint)
    if state is None:
        return None
    entries = state["state"].items() if isinstance(state["state"], Mapping) else ()
    shapes = dict(enumerate(parameter.shape for parameter in parameters.values()))
    fits = [_fits(entry, shapes.get(place)) for place, entry in entries]
    return state if fits and all(fits) else None


def _fits(entry: Any, shape: torch.Size | None) -> bool:
    """Return whether a state is that of an Adam for a parameter of this shape."""
    moment = entry.get("exp_avg_sq") if isinstance(entry, Mapping) and "step" in entry else None
    return isinstance(moment, torch.Tensor) and moment.shape == shape


def _beside(checkpoint: Path) -> Path:
    return checkpoint.parent / "adam" / checkpoint.with_suffix(".safetensors").name


def _from_file(path: Path, names: list[str]) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    stored = read_checkpoint(path)
    try:
        rate, *betas, eps, step = (float(stored.metadata[name]) for name in (*_SETTINGS, "step"))
    except (KeyError, ValueError) as error:
        raise MisuseError(
            f"cannot read the moments {str(path)!r}: expected {', '.join(_SETTINGS)} and step. "
            "Delete the file, or copy it again."
        ) from error
    state = {
        names.index(name): {"exp_avg_sq": moment, "step": step}
        for name, moment in stored.tensors.items()
        if name in names
    }
    return {"state": state, "param_groups": [{"lr": rate, "betas": betas, "eps": eps, "params": [*range(len(names))]}]}


def _from_torch(checkpoint: Path) -> Mapping[str, Any] | None:
    if checkpoint.suffix == ".safetensors":
        return None
    content = torch_content(checkpoint)
    for wrapper in _WRAPPERS:
        found = content.get(wrapper) if isinstance(content, Mapping) else None
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, Mapping) and {"state", "param_groups"} <= found.keys():
            return found
    return None

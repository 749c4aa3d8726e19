"""How others lay out weights: one file or several in a folder, bare or under a name among other things."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from convexlab.checkpoints.distributed import is_distributed
from convexlab.errors import MisuseError

__all__ = ["STATE_NAMES", "is_adapter", "is_weights_folder", "parts_of", "state_of"]

STATE_NAMES = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "params",
    "params_ema",
    "module",
    "weights",
    "model_ema",
    "ema",
)
"""Under which names a file may hold its weights; the first that it has is taken, unless another is asked for."""

# Files of a folder of weights, in the order in which one is taken; each with its index where there are several parts.
_WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# Beside weights that are an adapter's alone.
_ADAPTER = "adapter_config.json"
_INDEX = ".index.json"


def is_weights_folder(path: Path) -> bool:
    """Return whether a folder holds the weights of one model, as `save_pretrained` or torch's `dcp.save` make one."""
    return is_distributed(path) or any(
        (path / name).is_file() or (path / f"{name}{_INDEX}").is_file() for name in _WEIGHTS
    )


def is_adapter(path: Path) -> bool:
    """Return whether a folder, or a file in one, holds an adapter of a model, as PEFT stores a LoRA."""
    folder = path if path.is_dir() else path.parent
    return (folder / _ADAPTER).is_file() and not any((folder / name).is_file() for name in _WEIGHTS[:3])


def parts_of(path: Path) -> list[Path]:
    """Return the files that hold the weights at a path: itself, or those of a folder.

    Raises:
        MisuseError: there is no such path, a folder without weights, or an index that is damaged or leads elsewhere.
    """
    if not path.is_dir():
        if not path.is_file():
            raise MisuseError(
                f"no checkpoint {str(path)!r}: expected a file such as .safetensors, .pt or .ckpt, or a folder with "
                "model.safetensors."
            )
        return [path]
    for name in _WEIGHTS:
        if (path / name).is_file():
            return [path / name]
        if (path / f"{name}{_INDEX}").is_file():
            return _indexed(path / f"{name}{_INDEX}")
    raise MisuseError(
        f"{str(path)!r} holds no weights: expected {_WEIGHTS[0]}, {_WEIGHTS[1]}, or either in parts with an index. "
        "Name the file itself."
    )


def _indexed(index: Path) -> list[Path]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
        inside = all(
            isinstance(name, str) and name == Path(name).name and name not in {"", ".", ".."} for name in names
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MisuseError(
            f"cannot read {str(index)!r}: expected an index of weights ({type(error).__name__})."
        ) from error
    if not names or not inside:
        raise MisuseError(f"{str(index)!r} names files that are not beside it. Save the checkpoint again.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise MisuseError(
            f"{str(index.parent)!r} lacks {', '.join(missing[:3])}, which its index names. Copy it again."
        )
    return [index.parent / name for name in names]


def state_of(content: Any, path: Path, key: str | None) -> tuple[dict[str, torch.Tensor], str]:
    """Return the named tensors in what a file holds, and under which name they were; "" where they are bare.

    Args:
        content: what was read.
        path: of the file, for errors.
        key: the name to take, with dots for names within names; None takes the first of `STATE_NAMES` that is there.

    Raises:
        MisuseError: there are no weights, or none under ``key``.
    """
    if key is not None:
        state = content
        for part in key.split("."):
            if not isinstance(state, Mapping) or part not in state:
                raise MisuseError(f"checkpoint {str(path)!r} has nothing under {key!r}. It has {_names_in(content)}.")
            state = state[part]
        if not _is_state(state):
            raise MisuseError(f"checkpoint {str(path)!r} holds no weights under {key!r}, but {_names_in(state)}.")
        return _sound(dict(state), path), key
    if _is_state(content):
        return _sound(dict(content), path), ""
    for name in STATE_NAMES:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            state, inner = state_of(content[name], path, None)
            return state, f"{name}.{inner}" if inner else name
    raise MisuseError(
        f"checkpoint {str(path)!r} does not hold a state dict: expected names of tensors, bare or under one of "
        f"{', '.join(STATE_NAMES)}, got {_names_in(content)}. Name their place by --key."
    )


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items())
    )


def _sound(state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return the state if all of it are plain tensors."""
    for name, tensor in state.items():
        kind = (
            "a meta tensor, without values"
            if tensor.is_meta
            else "quantised"
            if tensor.is_quantized
            else "sparse"
            if tensor.layout is not torch.strided
            else ""
        )
        if kind:
            raise MisuseError(
                f"checkpoint {str(path)!r}: {name} is {kind}. Expected plain tensors: convert it (to_dense, "
                "dequantize) and save it again."
            )
    return state


def _names_in(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    names = [repr(name) for name in list(content)[:6]]
    return f"{', '.join(names)}{' and more' if len(content) > len(names) else ''}" if names else "nothing"

"""The states of a run under way, as files that may be damaged or edited."""

from __future__ import annotations

import io
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convexlab.errors import FailureError

__all__ = ["check_tensors", "naming_state", "read_state"]

_SCHEMA = 1
_Kinds = Mapping[str, type | tuple[type, ...]]
_FIELDS: _Kinds = {
    "epoch": int,
    "phase": str,
    "costs": dict,
    "seconds": dict,
    "notes": dict,
    "measured": list,
    "best": list,
    "weights": dict,
    "adam": dict,
    "second": (dict, type(None)),
    "order": Tensor,
}
_SWITCH: _Kinds = {
    "epoch": (int, type(None)),
    "detector": str,
    "train_loss": (int, float),
    "gradient_norm": (int, float),
    "reason": str,
}
_RESORT: _Kinds = {"epoch": int, "reason": str}


def read_state(path: Path) -> dict[str, Any]:
    """Read a state that was stored by this version or an earlier one.

    The archive has a checksum of each of its parts, which torch does not look at.

    Raises:
        FailureError: the file is damaged, or of a later version.
    """
    with naming_state(path):
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"its part {damaged!r} does not fit its checksum")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"expected fields by name, got {type(state).__name__}")
        if state.pop("schema", _SCHEMA) != _SCHEMA:
            raise ValueError("a later version of ConvexLab wrote it")
        return {"rows": {}, "checkpoints": []} | state


@contextmanager
def naming_state(path: Path) -> Iterator[None]:
    """Say of whatever a state is the cause of which file it is, and what can be done."""
    try:
        yield
    except FailureError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise FailureError(
            f"cannot resume from {str(path)!r}: the file is damaged. Delete the folder {str(path.parent)!r} to train "
            f"again from the start. ({reason})"
        ) from error


def check_tensors(state: Mapping[str, Any], model: nn.Module) -> None:
    """Look at every field of a state before any is gone on from.

    Raises:
        Exception: a field is missing, of another kind, of another shape than the model's, or not finite.
    """
    for name, kind in _FIELDS.items():
        if not isinstance(state[name], kind):
            raise TypeError(f"field {name!r}: expected {kind}, got {type(state[name]).__name__}")
    if state["epoch"] < 0:
        raise ValueError(f"field 'epoch': expected a number from 0, got {state['epoch']}")
    for purpose, spent in (*state["costs"].items(), *state["seconds"].items()):
        _check_number(f"what was spent on {purpose!r}", spent, 0.0)
    for value in state["measured"]:
        _check_number("what was measured", value)
    loss, epoch, _ = state["best"]
    _check_number("the best loss", loss)
    _check_number("the best epoch", epoch, 0.0)
    _check_notes(state["notes"])
    own = model.state_dict()
    for name, weights in (("weights", state["weights"]), ("best", state["best"][2])):
        shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
        if shapes != {key: tuple(tensor.shape) for key, tensor in own.items()}:
            raise ValueError(f"field {name!r}: expected the names and shapes of the model's tensors")
    for index, parameter in enumerate(model.parameters()):
        for name, tensor in state["adam"]["state"].get(index, {}).items():
            if name != "step" and tensor.shape != parameter.shape:
                raise ValueError(f"field 'adam', {name!r} of parameter {index}: expected {tuple(parameter.shape)}")
    for name in ("weights", "best", "adam", "second"):
        if not all(bool(tensor.isfinite().all()) for tensor in _tensors(state[name])):
            raise ValueError(f"field {name!r}: expected finite numbers")


def _check_notes(notes: Mapping[str, Any]) -> None:
    """Look at what the rules for the switch and for the way back to Adam have noted."""
    for name in ("failures", "risen"):
        _check_number(name, notes.get(name, 0), 0.0)
    for loss in notes.get("best_losses", []):
        _check_number("a best loss", loss)
    for value in notes.get("watch", {}).values():
        if not isinstance(value, int | float):
            raise TypeError(f"field 'watch': expected numbers, got {value!r}")
    for name, expected in (("switch", _SWITCH), ("safe_resort", _RESORT)):
        if not isinstance(notes.get(name), Mapping | None):
            raise TypeError(f"field {name!r}: expected fields by name, got {type(notes[name]).__name__}")
        for key, kind in expected.items() if notes.get(name) is not None else ():
            if not isinstance(notes[name][key], kind):
                raise TypeError(f"field {name!r}: {key!r} is {notes[name][key]!r}")


def _check_number(name: str, value: Any, least: float = -sys.float_info.max) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= sys.float_info.max:
        raise ValueError(f"{name}: expected a number from {least:g}, got {value!r}")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)

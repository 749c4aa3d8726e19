"""What the flat optimisers refuse: parameters and groups that make no flat vector, surroundings that blur losses."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.vectors import SHARDED, is_sharded

__all__ = ["check_group", "check_groups", "check_parameters", "check_processes", "check_surroundings", "process_count"]

_GROUP_KEYS = frozenset({"params", "param_names", "name", "lr", "initial_lr", "max_evaluations", "sample_size"})


def check_group(group: Mapping[str, Any], name: str) -> None:
    """Refuse settings of a parameter group that no flat optimiser knows, such as Adam's.

    Raises:
        MisuseError: there is one.
    """
    if unknown := sorted(set(group) - _GROUP_KEYS):
        raise MisuseError(
            f"{name} knows no {', '.join(map(repr, unknown))} of a parameter group. To take over from Adam use "
            "convexlab.second_phase(adam), or pass its parameters alone."
        )


def check_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse groups that ask for different steps, or for none.

    Raises:
        MisuseError: settings that differ or are out of range.
    """
    for name in ("max_evaluations", "lr"):
        values = [group.get(name) for group in groups]
        for value in values:
            if not (value is None or _is_number(value)):
                raise MisuseError(f"expected {name} of a parameter group to be a number, got {value!r}.")
        if any(value != values[0] for value in values):
            raise MisuseError(
                f"a step moves all parameters along one direction: expected one {name} for all groups, got "
                f"{', '.join(map(repr, values))}."
            )
    limit, rate = groups[0].get("max_evaluations"), groups[0].get("lr")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise MisuseError(f"max_evaluations must be None or an integer of at least 1, got {limit!r}.")
    if rate is None or not 0.0 < rate <= sys.float_info.max:
        raise MisuseError(
            f"lr must be positive, got {rate!r}: it is a factor on the first trial of a search. Let the schedule end "
            "above zero."
        )


def _is_number(value: Any) -> bool:
    """Return whether a value is a number, or a tensor of one, as schedulers of captured steps have it."""
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_parameters(parameters: Sequence[Tensor], name: str) -> None:
    """Refuse what makes no flat vector of real numbers.

    Raises:
        MisuseError: parameters that are not dense, real and floating, of one dtype on one device.
    """
    for parameter in parameters:
        if is_sharded(parameter):
            raise MisuseError(f"{name} takes parameters that are whole, got {SHARDED}")
        if parameter.layout != torch.strided or not parameter.is_floating_point():
            raise MisuseError(
                f"{name} takes dense, real, floating-point parameters, got {parameter.dtype}, {parameter.layout}."
            )
    for what in ("dtype", "device"):
        kinds = sorted({str(getattr(parameter, what)) for parameter in parameters})
        if len(kinds) > 1:
            raise MisuseError(f"{name} takes parameters of one {what}, got {', '.join(kinds)}. Convert them first.")


def check_processes(processes: str | None, name: str) -> None:
    """Refuse to search by losses of which other processes know nothing.

    Raises:
        MisuseError: there are several and ``processes`` is None, or it is an unknown word.
    """
    if processes not in (None, "averaged", "together", "alone"):
        raise MisuseError(f"expected processes to be None, 'averaged', 'together' or 'alone', got {processes!r}.")
    if processes is None and process_count() > 1:
        raise MisuseError(
            f"torch.distributed has {process_count()} processes. A line search with another loss in each would take "
            f"other steps in each, and hang. Set optimizer.processes = 'averaged' on all of them if each sees an equal "
            f"share of the data. Set 'together' if the closure returns the same in all, as that of an Objective with a "
            f"group. Set 'alone' if {name} runs in one of them, or sees all data in each."
        )


def process_count() -> int:
    """Return how many processes torch.distributed has; 1 without it."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if there else 1


def check_surroundings(device: torch.device, name: str) -> None:
    """Refuse to step where gradients are not recorded or losses are rounded.

    Raises:
        MisuseError: inference mode, or autocast.
    """
    if torch.is_inference_mode_enabled():
        raise MisuseError(f"{name} steps by gradients, which inference mode does not record. Step outside of it.")
    if torch.is_autocast_enabled(device.type):
        raise MisuseError(
            f"autocast is on around the step of {name}: a line search compares losses, which half precision blurs. "
            "Step outside of it."
        )

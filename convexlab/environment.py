"""Where the numbers were made: software, machine, device."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from convexlab._version import __version__
from convexlab.errors import MisuseError, unknown_name

__all__ = ["describe_environment", "resolve_device", "resolve_dtype"]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def resolve_device(name: str) -> torch.device:
    """Return the device of that name; ``"auto"`` is cuda, else mps, else the CPU.

    Raises:
        MisuseError: no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).tolist()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MisuseError(f"device {name!r} cannot be used here ({reason}). Use 'auto' or 'cpu'.") from error
    return device


def resolve_dtype(name: str) -> torch.dtype:
    """Return the dtype of that name.

    Raises:
        MisuseError: neither ``"float32"`` nor ``"float64"``.
    """
    if name not in _DTYPES:
        raise unknown_name("dtype", name, _DTYPES)
    return _DTYPES[name]


def describe_environment(device: torch.device, dtype: str) -> dict[str, Any]:
    """Return what a reader needs to judge the seconds and to repeat the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "convexlab": __version__,
        "platform": platform.platform(),
        "processor": _processor(device),
        "device": str(device),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} logical processors"

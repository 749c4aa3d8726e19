"""Where the numbers were made: software, machine, device."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convexlab._version import __version__
from convexlab.errors import MisuseError, unknown_name

__all__ = [
    "describe_environment",
    "describe_process",
    "describe_source",
    "dtype_name",
    "resolve_device",
    "resolve_dtype",
]

# Files that decide what is computed and how it is shown, anywhere in the checkout.
_CODE = (":(top)*.py", ":(top)*.j2", ":(top)pyproject.toml")
# Where torch takes its number of threads from.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
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


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that `resolve_dtype` takes."""
    return str(dtype).removeprefix("torch.")


def describe_source(folder: Path) -> str | None:
    """Return the commit of the git checkout that holds a package, or None where it is installed.

    Returns:
        Twelve digits, and "with changes" where a file of code differs from that commit or is not in it. Results, such
        as pages, do not count.
    """
    # In the .venv of an unrelated project, the folder lies within a checkout that does not hold it.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=all", "--", *_CODE)
    # Where git does not answer whether there are changes, there may be some.
    return f"{commit} with changes" if commit and changes != "" else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Return git's answer about a folder; None without git, outside a checkout, or where git refuses."""
    # Within a hook these variables name another checkout. A question shall leave no lock behind.
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def describe_environment(device: torch.device, dtype: str) -> dict[str, Any]:
    """Return the environment, with which the seconds can be judged and the numbers repeated.

    In a git checkout that includes the commit (`describe_source`).
    """
    commit = describe_source(Path(__file__).parent)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "convexlab": __version__,
        **({"commit": commit} if commit else {}),
        "platform": platform.platform(),
        "processor": _processor(device),
        "device": str(device),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }


def describe_process(device: torch.device, dtype: str) -> dict[str, Any]:
    """Return how the numbers are made, with command line and libraries, so that they can be made again.

    On a CPU the same seed, machine and number of threads give the same bytes. An accelerator's kernels may add in
    another order each time, unless torch is set to use deterministic ones.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    return describe_environment(device, dtype) | {
        "command": shlex.join(sys.argv),
        "numpy": np.__version__,
        "deterministic_algorithms": deterministic,
        "threads_set": any(os.environ.get(name) for name in _THREADS),
        "repeats_exactly": deterministic or device.type == "cpu",
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} logical processors"

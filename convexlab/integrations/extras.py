"""What an extra of the package brings, or which one to install."""

from __future__ import annotations

import importlib
from typing import Any

from convexlab.errors import MisuseError

__all__ = ["imported"]


def imported(module: str, extra: str) -> Any:
    """Import a module that an extra brings.

    Raises:
        MisuseError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MisuseError(
            f"expected {missing.partition('.')[0]!r} to be installed, which the extra {extra!r} brings "
            f"({error}). Install it: pip install 'convexlab[{extra}]'."
        ) from error

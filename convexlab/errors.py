"""The two ways in which a call can go wrong, and their exit statuses on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CaptureWarning",
    "ConvexLabError",
    "DamageWarning",
    "FailureError",
    "LostRankError",
    "MisuseError",
    "ShortageError",
    "ShortageWarning",
    "unknown_name",
]


class ConvexLabError(Exception):
    """Base of every error that ConvexLab raises on purpose; its text says what to do."""


class MisuseError(ConvexLabError, ValueError):
    """The request cannot be carried out as given: raised before any work (exit status 2)."""


class FailureError(ConvexLabError, RuntimeError):
    """The request was sound but could not be finished, such as a loss that became NaN (exit status 1)."""


class LostRankError(ConvexLabError, RuntimeError):
    """One of several processes ended or does not answer (exit status 1); this process cannot continue."""


class ShortageError(FailureError):
    """Memory does not suffice for the fewest examples that the loss can be evaluated on at a time."""


class ShortageWarning(UserWarning):
    """Memory was short, and the work goes on; the text says how."""


class CaptureWarning(UserWarning):
    """Evaluations could not be replayed as graphs, and run without; the text says why."""


class DamageWarning(UserWarning):
    """A file was damaged, and is read in part; the text says what was left out."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> MisuseError:
    """Return the error for a name that is not in a registry, with the nearest known name suggested."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if name.endswith(".py"):
        hint = f" Of a file name what is in it, too: {f'{name}:NAME'!r}."
    return MisuseError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")

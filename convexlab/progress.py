"""How long work tells a listener where it stands; the listener decides whether and how to show it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Listener", "Log", "Progress", "silent"]


@dataclass(frozen=True)
class Progress:
    """One report of a task under way."""

    task: str
    """Name of the work, such as ``"two-phase"``."""
    done: float
    total: float
    """The whole work, in the unit of ``done``."""
    note: str = ""
    """A few words on the present state, such as the loss."""
    within: bool = False
    """Whether it is within a step that is finished and stored before a requested stop."""
    landmark: bool = False
    """Whether it is worth a line at once, where progress is lines of a log."""
    unit: str = ""
    """Unit of ``done``: ``"cost"``, in gradient equivalents, or ``"checkpoints"``; "" leaves the numbers out."""
    planned: bool = False
    """Whether the task has not begun: it is named so that one sees what is to come."""

    @property
    def so_far(self) -> str:
        """How much of the task is done, in its unit: ``"cost 45 of 100"``; "" without one."""
        return f"{self.unit} {math.floor(self.done)} of {math.floor(self.total)}" if self.unit else ""


Listener = Callable[[Progress], None]

Log = Callable[[Mapping[str, float], int], None]
"""Called with finite numbers by name, and the epoch that they are of."""


def silent(progress: Progress) -> None:
    """Show nothing."""

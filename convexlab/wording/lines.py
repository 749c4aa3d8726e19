"""Progress as lines of a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from convexlab.progress import Progress
from convexlab.wording.numbers import duration, percent

__all__ = ["Lines"]

# Less of a task than this says nothing of its speed; within a step, less than a whole one.
_LEAST_SHARE = 0.05


class Lines:
    """A listener that keeps the latest message, and prints it on request, or at once at a landmark."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """``say`` prints a line."""
        self._say = say
        self._last: Progress | None = None
        self._begins: dict[str, tuple[float, float]] = {}

    def __call__(self, step: Progress) -> None:
        """Take down where the work stands."""
        if step.planned:
            return
        self._begins.setdefault(step.task, (time.monotonic(), step.done))
        self._last = step
        if step.landmark:
            self.tell()

    def tell(self) -> None:
        """Say where the work stands, and how long the task will still take if it goes on like this."""
        step = self._last
        if step is None:
            return
        begin, before = self._begins[step.task]
        gone = time.monotonic() - begin
        done = f"{percent(step.done / step.total, 0)} done" if step.total else "under way"
        parts = [f"{step.task}: {done}", *filter(None, [step.so_far]), f"{duration(gone)} gone"]
        made, left = step.done - before, step.total - step.done
        if made > (1.0 if step.within else _LEAST_SHARE * step.total) and left > 0:
            parts.append(f"about {duration(gone * left / made)} left")
        self._say(f"{', '.join(parts)}{f'; {step.note}' if step.note else ''}")

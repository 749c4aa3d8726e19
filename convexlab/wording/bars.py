"""Progress as bars on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from convexlab.progress import Listener, Progress
from convexlab.wording.numbers import duration
from convexlab.wording.terminal import printable

__all__ = ["bars"]


@contextmanager
def bars(console: Console | None = None) -> Iterator[Listener]:
    """Yield a listener that draws a bar a task: how far it is, what that cost, the time left, and how things stand.

    Args:
        console: where they are drawn; None is the terminal of standard error.
    """
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        _Bar(bar_width=8),
        TextColumn("{task.fields[cost]}", markup=False, table_column=Column(no_wrap=True)),
        _Time(table_column=Column(no_wrap=True)),
        # It has what the others leave, and is cut off there: a line that breaks would make all others jump.
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
        ),
    )
    with Bars(*columns, console=console or Console(stderr=True), expand=True) as drawn:
        yield _Listener(drawn)


class _Listener:
    """Moves the bars; one task is under way at a time."""

    def __init__(self, drawn: Bars) -> None:
        self._drawn = drawn
        self._tasks: dict[str, TaskID] = {}
        self._current: TaskID | None = None

    def __call__(self, step: Progress) -> None:
        if step.task not in self._tasks:
            name = printable(step.task)
            self._tasks[step.task] = self._drawn.add_task(name, start=False, total=step.total, cost="", note="to come")
        if step.planned:
            return
        task = self._tasks[step.task]
        if self._current is not None and self._current != task:
            self._drawn.stop_task(self._current)  # It may end below its total.
        self._current = task
        self._drawn.start_task(task)
        cost, note = printable(step.so_far), printable(step.note)
        self._drawn.update(task, completed=step.done, total=step.total, cost=cost, note=note)


class _Bar(BarColumn):
    """A bar that lies still until its task begins."""

    def render(self, task: Task) -> ProgressBar:
        bar = super().render(task)
        bar.pulse = False
        return bar


class _Time(ProgressColumn):
    """The time that is left, and once the task has ended what it took."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished or task.stop_time is not None:
            return Text(duration(task.elapsed or 0.0), style="progress.elapsed")
        left = task.time_remaining
        return Text("" if left is None else f"{duration(left)} left", style="progress.remaining")

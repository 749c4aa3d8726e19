"""Ctrl-C, SIGTERM and SIGHUP on the command line: quiet while it starts, after the step in hand while it works."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["INTERRUPTED", "Interrupts", "handled_by", "interrupts", "quiet_while_starting"]

INTERRUPTED = 130
"""The exit status."""

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers

_STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that ask a process to stop."""
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


def quiet_while_starting() -> None:
    """End at once and without a traceback if that is asked while the command line imports what it needs.

    Nothing is under way then. It does nothing in a process that is not the command line.
    """
    if sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "convexlab":
        _handle(lambda number, frame: os._exit(INTERRUPTED))


class Interrupts:
    """Whether a stop was requested."""

    def __init__(self, say: Callable[[], None]) -> None:
        """``say`` is called where a stop was requested and a step is finished first."""
        self._say = say
        self._gentle = False
        self._asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: note the first while work is gentle, end at once otherwise."""
        if self._gentle and not self._asked:
            self._asked = True
            self._say()
            return
        raise KeyboardInterrupt

    @contextmanager
    def gentle(self, agreed: Callable[[bool], bool] = bool) -> Iterator[Callable[[], None]]:
        """Within this block, the first signal waits until the function that it gives is called, which raises then.

        Of several processes all have to stop where one is asked to: ``agreed`` tells the others.
        """

        def check() -> None:
            if agreed(self._asked):
                raise KeyboardInterrupt

        self._gentle = True
        try:
            yield check
        finally:
            self._gentle = self._asked = False


@contextmanager
def interrupts(say: Callable[[], None]) -> Iterator[Interrupts]:
    """Treat SIGTERM and SIGHUP as Ctrl-C within this block; what is ignored, as under ``nohup``, stays ignored."""
    handler = Interrupts(say)
    with handled_by(handler):
        yield handler


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Have a function handle the signals that stop a process within this block; what is ignored stays ignored."""
    before = _handle(handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _handle(handler: Handler) -> dict[int, Any]:
    """Have a function handle the signals that stop a process; return what did so before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    stopping = {number: signal.getsignal(number) for number in _STOPPING}
    ours = {n: earlier for n, earlier in stopping.items() if earlier in _DEFAULTS or callable(earlier)}
    for number in ours:
        signal.signal(number, handler)
    return ours

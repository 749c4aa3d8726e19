"""Independent runs of a study, side by side in processes of one thread each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from rich.progress import track

__all__ = ["side_by_side"]

_Case = TypeVar("_Case")
_Result = TypeVar("_Result")


def side_by_side(
    work: Callable[[_Case], _Result], cases: Sequence[_Case], *, jobs: int, label: str = "runs"
) -> list[_Result]:
    """Return the work's result for every case, in their order; begun in that order, with progress on the terminal.

    Args:
        work: what a process can be sent: a function of a module, or a partial of one.
        cases: its arguments.
        jobs: processes; with one the work is done in this process.
        label: what is counted.

    Raises:
        Exception: what the work raised; cases that have not begun are dropped.
    """
    if jobs == 1:
        return [work(case) for case in track(cases, label)]
    # Forked processes would share the threads' locks of torch, as they were.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(work, case) for case in cases]
        try:
            for done in track(as_completed(pending), label, total=len(pending)):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [one.result() for one in pending]

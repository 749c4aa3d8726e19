"""Work in forked processes that are the ranks of a gloo group."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import distributed

import convexlab as cl
from convexlab.machine.ranks import Ranks

__all__ = ["FORKED", "as_torchrun_does", "in_ranks", "start_ranks", "torchrun_environment", "trained", "wait_for"]

Work = Callable[[Ranks], object]

FORKED = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")

PATIENCE = 60.0
"""Seconds that a rank waits for another, and the tests for both."""


def trained(out: Path, options: dict[str, Any]) -> Work:
    """Return the work of training a run together."""
    return lambda ranks: str(cl.train_two_phase(out=out, group=ranks.group, **options).path)


def in_ranks(size: int, work: Work, folder: Path, *, patience: float = PATIENCE) -> list[Any]:
    """Call ``work`` in the ranks of a group, and return what each of them returned.

    Raises:
        AssertionError: a rank failed, or did not end in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    children = start_ranks(size, work, folder, patience=patience)
    assert wait_for(children, patience) == [0] * size, "a rank failed; its traceback is above"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def start_ranks(size: int, work: Work, folder: Path, *, patience: float = PATIENCE) -> list[int]:
    """Start such ranks, and return the numbers of their processes."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            _be_rank(rank, size, work, folder, patience)
        children.append(child)
    return children


def as_torchrun_does(size: int, work: Callable[[], object]) -> list[int]:
    """Call ``work`` in processes whose environment is that of torchrun's, and return their exit statuses."""
    environment, children = torchrun_environment(size), []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            _end_after(work)
        children.append(child)
    return wait_for(children, PATIENCE)


def torchrun_environment(size: int) -> dict[str, str]:
    """Return what torchrun tells rank 0 of so many, which meet at a free port of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    numbers = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "localhost"}


def wait_for(children: list[int], patience: float) -> list[int]:
    """Return the exit statuses, minus the signal of what was killed; kill what has not ended by then."""
    end, statuses = time.monotonic() + patience, dict[int, int]()
    while len(statuses) < len(children):
        for child in children:
            if child in statuses:
                continue
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, 0 if time.monotonic() > end else os.WNOHANG)
            if ended:
                statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return [statuses[child] for child in children]


def _be_rank(rank: int, size: int, work: Work, folder: Path, patience: float) -> NoReturn:
    def meet_and_work() -> None:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=patience),
        )
        torch.save(work(Ranks.of(distributed.group.WORLD)), folder / f"{rank}.pt")
        distributed.destroy_process_group()

    _end_after(meet_and_work)


def _end_after(work: Callable[[], object]) -> NoReturn:
    """End this process with the status that a program of such work would have."""
    status = 1
    try:
        torch.set_num_threads(1)
        work()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - whatever it is, this process is not to go on as the test runner
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

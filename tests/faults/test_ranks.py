"""A rank that is killed, or hangs: the others say so in time, and the run is gone on with to the same files."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convexlab.errors import LostRankError
from convexlab.machine.ranks import Ranks
from tests.faults.killing import contents, differences, leftovers
from tests.ranks import FORKED, PATIENCE, in_ranks, start_ranks, trained, wait_for

pytestmark = FORKED

OPTIONS = {"objective": "friedman", "train_size": 20, "lr": 1e-2, "epochs": 5, "switch_epoch": 2, "no_baseline": True}


def stopping(work: Callable[[Ranks], object], rank: int, call: int, number: int) -> Callable[[Ranks], object]:
    """Send a signal to one rank before its collective of some number."""

    def stopped(ranks: Ranks) -> object:
        reduce, calls = Ranks._reduce, 0

        def counted(self: Ranks, *args: Any, **options: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == call and self.rank == rank:
                os.kill(os.getpid(), number)
            reduce(self, *args, **options)

        Ranks._reduce = counted  # type: ignore[method-assign]
        result = work(ranks)
        return result, calls

    return stopped


def lost(work: Callable[[Ranks], object]) -> Callable[[Ranks], object]:
    """Expect that a rank is lost, and return after how many seconds that was known."""

    def expecting(ranks: Ranks) -> float:
        begin = time.monotonic()
        with pytest.raises(LostRankError, match=r"a rank of 2 was lost.*go on with --resume"):
            work(ranks)
        return time.monotonic() - begin

    return expecting


@pytest.mark.faults
def test_a_rank_that_is_killed_leaves_a_run_that_is_gone_on_with(tmp_path: Path, asked: bool) -> None:
    options = OPTIONS if asked else OPTIONS | {"probe_every": 0}  # Which takes most of the time.
    ((_, calls), _) = in_ranks(2, stopping(trained(tmp_path / "whole", options), 0, 0, 0), tmp_path / "ranks")
    expected, moments = contents(tmp_path / "whole"), 10 if asked else 2
    for moment in range(moments):
        cut, rank = tmp_path / "cut", moment % 2
        call = 1 + (moment * 2 + 1) * calls // (2 * moments)
        work = lost(stopping(trained(cut, options), rank, call, signal.SIGKILL))
        store = tmp_path / f"killed-{moment}"
        store.mkdir()
        statuses = wait_for(start_ranks(2, work, store), PATIENCE)
        assert statuses[rank] == -signal.SIGKILL, call
        assert statuses[1 - rank] == 0, call
        in_ranks(2, trained(cut, options | {"resume": True}), tmp_path / f"resumed-{moment}")
        assert list(differences(contents(cut), expected)) == [], call
        assert leftovers(cut) == [], call
        shutil.rmtree(cut)


def test_a_rank_that_hangs_ends_the_run_in_time(tmp_path: Path) -> None:
    patience = 4.0
    work = lost(stopping(trained(tmp_path / "run", OPTIONS), 1, 20, signal.SIGSTOP))
    children = start_ranks(2, work, tmp_path, patience=patience)
    try:
        assert wait_for(children[:1], PATIENCE) == [0]
    finally:
        os.kill(children[1], signal.SIGKILL)
        os.waitpid(children[1], 0)
    assert patience - 1 < torch.load(tmp_path / "0.pt") < patience + 20

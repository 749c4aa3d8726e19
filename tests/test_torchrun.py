"""The command line under torchrun: one voice, one run, one error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

import convexlab as cl
from convexlab.cli import main
from convexlab.machine.ranks import Ranks, of_torchrun
from tests.ranks import FORKED, as_torchrun_does

OPTIONS = "--objective friedman --train-size 20 --epochs 4 --switch-epoch 2 --lr 1e-2 --dtype float64 --no-baseline"


def saying(arguments: list[str], folder: Path) -> Callable[[], None]:
    """Return a call of the command line, which says what it does to files of its rank, and leaves no group behind."""

    def work() -> None:
        rank = os.environ["RANK"]
        sys.stdout = (folder / f"{rank}.out").open("w", encoding="utf-8")
        sys.stderr = (folder / f"{rank}.err").open("w", encoding="utf-8")
        groups, destroy = [], distributed.destroy_process_group

        def destroyed() -> None:
            groups.append(weakref.ref(distributed.group.WORLD))
            destroy()

        distributed.destroy_process_group = destroyed
        try:
            main(arguments)
        except SystemExit as ended:
            status = ended.code
        # Threads of a group that is still there may end the interpreter by an abort.
        assert [group() for group in groups] == [None]
        raise SystemExit(status)

    return work


def said(folder: Path, name: str) -> list[str]:
    return [(folder / f"{rank}.{name}").read_text(encoding="utf-8") for rank in range(2)]


@pytest.mark.slow
def test_torchrun_starts_ranks_that_train_as_one_process(tmp_path: Path) -> None:
    train = ["train", "two-phase", *OPTIONS.split(), "--probe-every", "0", "--json", "--out", str(tmp_path / "run")]
    options = ["--standalone", "--nproc-per-node", "2", "-m", "convexlab"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *train],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # One object.
    assert done.stderr.count("report: ") == 1
    settings = {"epochs": 4, "switch_epoch": 2, "lr": 1e-2, "dtype": "float64", "no_baseline": True, "probe_every": 0}
    one = cl.train_two_phase(out=tmp_path / "one", objective="friedman", train_size=20, **settings).summary
    assert one is not None
    loss = one["two_phase"]["train_loss"]
    assert abs(summary["two_phase"]["train_loss"] - loss) <= 1e-12 * loss


@FORKED
def test_ranks_speak_with_one_voice(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    train = ["train", "two-phase", *OPTIONS.split(), "--probe-every", "0", "--out", run]
    probe = ["probe", run, "--max-steps", "3", "--timeout", "60", "--json"]
    assert as_torchrun_does(2, saying(train, tmp_path)) == [0, 0]
    assert said(tmp_path, "out")[0]
    assert said(tmp_path, "out")[1] == said(tmp_path, "err")[1] == ""
    assert as_torchrun_does(2, saying(probe, tmp_path)) == [0, 0]
    assert len(json.loads(said(tmp_path, "out")[0])["rows"]) == len(cl.Run.open(run).checkpoints)
    assert said(tmp_path, "out")[1] == said(tmp_path, "err")[1] == ""


@FORKED
def test_a_group_ends_with_its_block_whoever_keeps_its_ranks() -> None:
    def work() -> None:
        model = nn.Linear(2, 1)
        with of_torchrun("cpu") as ranks:
            group = weakref.ref(distributed.group.WORLD)
            assert Ranks.of(group()) is ranks
            objective = cl.Objective(model, [(torch.ones(4, 2), torch.zeros(4, 1))], nn.MSELoss(), group=group())
            objective.value()
        assert group() is None
        with pytest.raises(cl.FailureError, match="was destroyed"):
            objective.value()
        with pytest.raises(cl.FailureError, match="was destroyed"):
            ranks.most(1.0)

    assert as_torchrun_does(2, work) == [0, 0]


@FORKED
def test_ranks_tell_an_error_once(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}", encoding="utf-8")
    train = ["train", "two-phase", *OPTIONS.split(), "--out", str(tmp_path / "taken")]
    assert as_torchrun_does(2, saying(train, tmp_path)) == [2, 2]
    assert "".join(said(tmp_path, "err")).count("exists already") == 1

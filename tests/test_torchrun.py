"""The command line under torchrun: one voice, one run, one error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import convexlab as cl

OPTIONS = "--objective friedman --train-size 30 --epochs 5 --switch-epoch 2 --lr 1e-2 --dtype float64 --no-baseline"


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    options = ["--standalone", "--nproc-per-node", "2", "-m", "convexlab"]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_ranks_train_and_probe_as_one_process_and_speak_with_one_voice(tmp_path: Path) -> None:
    train = ["train", "two-phase", *OPTIONS.split(), "--timeout", "60", "--json", "--out", str(tmp_path / "run")]
    done = torchrun(*train)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)  # One object.
    assert done.stderr.count("report: ") == 1
    options = {"epochs": 5, "switch_epoch": 2, "lr": 1e-2, "dtype": "float64", "no_baseline": True, "probe_every": 0}
    one = cl.train_two_phase(out=tmp_path / "one", objective="friedman", train_size=30, **options).summary
    assert one is not None
    loss = one["two_phase"]["train_loss"]
    assert abs(summary["two_phase"]["train_loss"] - loss) <= 1e-12 * loss
    assert len(cl.Run.open(tmp_path / "run").probe) == 3

    again = torchrun(*train)
    assert again.returncode == 1  # Torchrun's own, whatever a rank's was.
    assert again.stderr.count("exists already") == 1

"""Checkpoints under torchrun: dealt or shared out by arithmetic alone, and the rows of one process either way."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import convexlab as cl
from convexlab.machine.ranks import Ranks
from convexlab.probing.dealing import checkpoints_to_deal, words_of
from convexlab.progress import Progress
from convexlab.runs import Run
from tests.probing.numbered import QUICK, write_numbered
from tests.ranks import FORKED, in_ranks
from tests.tiny import without_seconds

FACTORY = """
import torch
from torch import nn
import convexlab as cl

def loss():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    return cl.Objective(model, [(x, x.prod(dim=1, keepdim=True))], nn.MSELoss())

def failing():
    loss_ = loss()
    def fn(model, batch):
        if float(model[2].bias.detach()) == 3:
            raise cl.FailureError("no luck today")
        return model(batch).square().mean()
    return cl.Objective.from_batch_loss(loss_.model, [torch.ones(4, 3, dtype=torch.float64)], fn)
"""


def dealt(checkpoints: int, ranks: int, **changes: Any) -> int:
    usual = {"parameters": 1000, "examples": 1000, "products": 200, "fits": True}
    return checkpoints_to_deal(checkpoints, ranks, **(usual | changes))


def test_whole_rounds_are_dealt_and_what_is_left_over_where_products_are_small() -> None:
    assert dealt(8, 4) == 8
    # 1.2 ms of work in a product and 16 ms for 8 micro-batches: shared out it takes 5.3 ms, and three in turn 16.
    assert dealt(9, 4) == 8
    assert dealt(11, 4) == 8
    # One micro-batch: 2.2 ms alone, and shared out 3.
    assert dealt(9, 4, examples=128) == 9
    assert dealt(2, 4, examples=100) == 2
    assert dealt(3, 4, examples=20_000, products=20) == 0


def test_every_checkpoint_is_shared_out_where_one_rank_would_be_too_slow_or_too_small() -> None:
    assert dealt(8, 4, parameters=10**6) == 0
    assert dealt(8, 4, parameters=10**6, products=5) == 8
    assert dealt(8, 4, parameters=10, examples=10**6) == 0
    assert dealt(8, 4, fits=False) == 0
    assert dealt(8, 4, examples=None) == 0
    assert dealt(8, 1) == 0


def test_what_was_decided_is_a_line() -> None:
    assert words_of(8, 8, 4) == "of 8 checkpoints 8 dealt to 4 ranks, one each at a time"
    assert words_of(0, 3, 2) == "of 3 checkpoints 3 shared out to all 2 ranks"
    assert words_of(8, 9, 4) == "of 9 checkpoints 8 dealt to 4 ranks, one each at a time, 1 shared out to all 4 ranks"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_numbered(tmp_path, FACTORY, torch.float64)


def probed(files: list[Path], out: Path, name: str = "loss", ranks: Ranks | None = None) -> tuple[Any, list[str]]:
    notes: list[str] = []

    def listener(step: Progress) -> None:
        if step.landmark:
            notes.append(step.note)

    objective = f"{files[0].parent / 'factory.py'}:{name}"
    group = None if ranks is None else ranks.group
    return cl.probe(files, objective=objective, out=out, group=group, progress=listener, **QUICK), notes


@FORKED
@pytest.mark.parametrize("most", [5, 2])
def test_rows_are_those_of_one_process(
    most: int, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dealt to the last bit; shared out to rounding."""
    decide = checkpoints_to_deal
    # The package has a function of this name too.
    module = importlib.import_module("convexlab.probing.probe")
    monkeypatch.setattr(module, "checkpoints_to_deal", lambda *sizes, **others: min(most, decide(*sizes, **others)))
    alone, _ = probed(files, tmp_path / "alone")

    def work(ranks: Ranks) -> Any:
        result, notes = probed(files, tmp_path / "two", ranks=ranks)
        return result.rows, notes

    results = in_ranks(2, work, tmp_path / "ranks")
    for rows, notes in results:
        assert notes == [words_of(most, 5, 2)]
        assert without_seconds(rows[:most]) == without_seconds(alone.rows[:most])
        for row, expected in zip(rows[most:], alone.rows[most:], strict=True):
            for name in ("train_loss", "smallest", "smallest_lower_bound", "largest", "trace"):
                assert row[name] == pytest.approx(expected[name], rel=1e-9, abs=1e-11)
    assert without_seconds(results[0][0]) == without_seconds(results[1][0])
    assert {path.name for path in (tmp_path / "two").rglob("*.safetensors")} == {
        path.name for path in alone.run.path.rglob("*.safetensors")
    }


@FORKED
def test_what_one_rank_fails_at_ends_all_of_them(files: list[Path], tmp_path: Path) -> None:
    def work(ranks: Ranks) -> str:
        with pytest.raises(cl.FailureError) as caught:
            probed(files, tmp_path / "out", "failing", ranks)
        return str(caught.value)

    assert in_ranks(2, work, tmp_path / "ranks") == ["rank 1 of 2 failed: no luck today", "no luck today"]
    # The round before is kept.
    assert [Path(str(row["checkpoint"])).name for row in Run(tmp_path / "out").probe] == [f.name for f in files[:2]]


@FORKED
def test_jobs_beside_ranks_are_refused(files: list[Path], tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        with pytest.raises(cl.MisuseError, match="there are 2 ranks already"):
            cl.probe(files, objective=f"{files[0].parent / 'factory.py'}:loss", jobs=2, group=ranks.group, out="x")

    in_ranks(2, work, tmp_path / "ranks")

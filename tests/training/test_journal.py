"""What a run under way leaves on disk: rows, states, and how often they are written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from convexlab.errors import FailureError
from convexlab.runs import Run
from convexlab.training.journal import Journal


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


def row(name: str, epoch: int) -> dict[str, Any]:
    return {"run": name, "epoch": epoch, "train_loss": 0.1 + epoch}


ROWS = [row("two-phase", 0), row("adam-constant", 0), row("two-phase", 1), row("adam-constant", 1)]


def test_rows_are_written_by_flush_and_read_by_the_next(run: Run) -> None:
    journal = Journal(run)
    assert journal.rows("two-phase") == []
    journal.append(*ROWS)
    assert not run.metrics_path.exists()
    journal.flush()
    assert run.metrics == ROWS
    assert Journal(run).rows("adam-constant") == [ROWS[1], ROWS[3]]


def test_flush_without_new_rows_writes_nothing(run: Run) -> None:
    journal = Journal(run)
    journal.flush()
    assert run.is_empty()
    journal.append(*ROWS)
    journal.flush()
    run.metrics_path.write_text("")
    journal.flush()
    assert run.metrics == []


def test_rows_are_forgotten_of_one_trajectory_beyond_an_epoch(run: Run) -> None:
    journal = Journal(run)
    journal.append(*ROWS)
    journal.forget_after("two-phase", 0)
    assert journal.rows("two-phase") == ROWS[:1]
    assert journal.rows("adam-constant") == [ROWS[1], ROWS[3]]
    journal.forget_after("adam-constant", -1)
    journal.append(row("two-phase", 1))
    journal.flush()
    assert run.metrics == [ROWS[0], ROWS[2]]


def test_a_state_comes_back_with_the_rows_before_it(run: Run) -> None:
    journal = Journal(run)
    journal.append(*ROWS)
    state = {"epoch": 1, "notes": {"reason": "none"}, "weights": {"w": torch.arange(3.0)}, "measured": [0.1, None]}
    assert (journal.holds("two-phase"), journal.load("two-phase")) == (False, None)
    journal.save("two-phase", state)
    assert run.metrics == ROWS
    assert journal.holds("two-phase")
    other = Journal(run).load("two-phase")
    assert other is not None
    assert torch.equal(other.pop("weights")["w"], state.pop("weights")["w"])
    assert other == state
    assert Journal(run).load("adam-constant") is None


def test_rows_are_on_disk_before_the_state(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written last says that the epoch is done."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    journal = Journal(run)
    journal.append(*ROWS)
    monkeypatch.setattr("convexlab.training.journal.write_atomically", interrupt)
    with pytest.raises(KeyboardInterrupt):
        journal.save("two-phase", {"epoch": 1})
    assert run.metrics == ROWS
    assert not journal.holds("two-phase")


@pytest.mark.parametrize("content", [b"", b"not a state", b"PK\x03\x04 cut short"])
def test_a_damaged_state_is_named(content: bytes, run: Run) -> None:
    journal = Journal(run)
    journal.save("two-phase", {"epoch": 1})
    (run.path / "state" / "two-phase.pt").write_bytes(content)
    with pytest.raises(FailureError, match=r"cannot resume from '.*two-phase.pt': the file is damaged. Delete the"):
        journal.load("two-phase")


def test_states_go_one_by_one_and_all_at_once(run: Run) -> None:
    journal = Journal(run)
    for name in ("switch", "two-phase", "adam-cosine"):
        journal.save(name, {"epoch": 1})
    journal.drop("switch")
    journal.drop("switch")
    assert [journal.holds(name) for name in ("switch", "two-phase")] == [False, True]
    journal.close()
    journal.close()
    assert not (run.path / "state").exists()


def test_saving_takes_a_tenth_of_the_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    original = torch.save

    def slow(*arguments: Any) -> None:
        nonlocal now
        now += 3.0
        original(*arguments)

    monkeypatch.setattr(torch, "save", slow)
    journal = Journal(run)
    assert journal.due
    journal.save("two-phase", {"epoch": 1})
    assert not journal.due
    now += 29.0
    assert not journal.due
    now += 1.0
    assert journal.due

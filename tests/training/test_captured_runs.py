"""Runs and probes whose evaluations are replayed, as the environment asks for: what plain ones lead to."""

from __future__ import annotations

from pathlib import Path

import pytest

import convexlab as cl
from tests.tape import Recorder, recorder
from tests.tiny import without_seconds, write_problem

__all__ = ["recorder"]

OPTIONS = {"epochs": 8, "switch_epoch": 3, "lr": 1e-2, "no_baseline": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> cl.Run:
    folder = tmp_path_factory.mktemp("plain")
    return cl.train_two_phase(out=folder / "run", **write_problem(folder), **OPTIONS)


def test_a_replayed_second_phase(
    run: cl.Run, tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not recorder.tapes
    monkeypatch.setenv("CONVEXLAB_CAPTURE", "1")
    replayed = cl.train_two_phase(out=tmp_path / "replayed", **write_problem(tmp_path), **OPTIONS)
    assert sum(tape.replays for tape in recorder.tapes) > 5
    theirs, ours = run.summary["two_phase"], replayed.summary["two_phase"]
    assert ours["gradient_equivalents"] == theirs["gradient_equivalents"]
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


def test_a_replayed_probe(run: cl.Run, tmp_path: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"max_steps": 12, "density_steps": 4, "plane_points": 0}
    plain = cl.probe(run.path, out=tmp_path / "one", **options).rows
    assert not recorder.tapes
    monkeypatch.setenv("CONVEXLAB_CAPTURE", "1")
    replayed = cl.probe(run.path, out=tmp_path / "other", **options).rows
    assert sum(tape.replays for tape in recorder.tapes) > 50
    for theirs, ours in zip(plain, replayed, strict=True):
        assert (ours["verdict"], ours["steps"]) == (theirs["verdict"], theirs["steps"])
        for name in ("train_loss", "smallest", "largest", "trace", "smallest_fresh"):
            # Float32, summed in the same order by the same operations.
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5 * theirs["largest"])


def test_where_nothing_records_it_changes_nothing(run: cl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEXLAB_CAPTURE", "1")
    again = cl.train_two_phase(out=tmp_path / "again", **write_problem(tmp_path), **OPTIONS)
    assert without_seconds(again.summary["two_phase"]) == without_seconds(run.summary["two_phase"])

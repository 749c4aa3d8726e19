"""Killed between any two steps that change files, and resumed: the same files, none missing, none left over."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import convexlab as cl
from tests.faults.killing import contents, differences, leftovers, run_in_child
from tests.slowly import mostly_slow

pytestmark = [
    pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="processes are not forked here"),
    pytest.mark.usefixtures("undrawn"),
]

SMALL = {"objective": "friedman", "train_size": 20, "lr": 1e-2}
SCENES: dict[str, dict[str, Any]] = {
    "baselines and probe": {"epochs": 5, "switch_epoch": 2},
    "diverging": {"epochs": 4, "switch_epoch": 2, "lr": 1e25, "probe_every": 0, "checkpoint_every": 1},
    "detector": {"epochs": 6, "detector": "algorithm-1", "probe_every": 0, "checkpoint_every": 1},
    "oracle": {"epochs": 6, "switch_epoch": 2, "oracle_every": 2, "probe_every": 0},
    "seeds": {"epochs": 4, "switch_epoch": 2, "seeds": 2, "no_baseline": True, "probe_every": 0},
}
QUICK = {"max_steps": 2, "density_probes": 1, "slice_points": 3, "plane_points": 3}


def check_every(
    points: int,
    folder: Path,
    begin: Callable[[Path], Any],
    resume: Callable[[Path], Any],
) -> None:
    """Kill at ``points`` steps evenly along the work and resume each time."""
    whole = folder / "whole"
    steps = run_in_child(lambda: begin(whole))
    assert steps is not None
    expected = contents(whole)
    assert leftovers(whole) == []
    stops = sorted({place * steps // points for place in range(points)})
    for stop in stops:
        cut = folder / "cut"
        assert run_in_child(lambda cut=cut: begin(cut), stop) is None
        assert run_in_child(lambda cut=cut: resume(cut)) is not None, f"killed before step {stop} of {steps}"
        assert list(differences(contents(cut), expected)) == [], f"killed before step {stop} of {steps}"
        assert leftovers(cut) == [], f"killed before step {stop} of {steps}"
        shutil.rmtree(cut)
    assert len(stops) == points


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is imported at its first use takes seconds: here once, and not in every child."""
    cl.train_two_phase(
        out=tmp_path_factory.mktemp("first") / "run", **SMALL, epochs=4, switch_epoch=2, no_baseline=True
    )


@pytest.fixture
def points(asked: bool) -> int:
    """Kill points a scene: a few where all tests are run, enough for a promise in the environment of their own."""
    return 18 if asked else 2


@pytest.mark.faults
@pytest.mark.parametrize("due", [True, False], ids=["every epoch stored", "nothing stored"])
@pytest.mark.parametrize("scene", mostly_slow(SCENES, quick=2))
def test_train(
    scene: str,
    due: bool,
    asked: bool,
    points: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not (due or asked):
        pytest.skip("the other half: only where the faults are asked for")
    monkeypatch.setattr("convexlab.training.journal.Journal.due", due)
    options = SMALL | SCENES[scene]

    def work(out: Path, *, resume: bool = False) -> None:
        if scene != "diverging":
            cl.train_two_phase(out=out, resume=resume, **options)
            return
        with pytest.raises(cl.FailureError, match="became infinite or NaN"):
            cl.train_two_phase(out=out, resume=resume, **options)

    check_every(points, tmp_path, work, lambda out: work(out, resume=True))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    options = SMALL | {"epochs": 4, "switch_epoch": 2, "no_baseline": True, "probe_every": 0}
    assert run_in_child(lambda: cl.train_two_phase(out=tmp_path / "trained", **options)) is not None
    return tmp_path / "trained"


@pytest.mark.faults
def test_probe_of_files(trained: Path, points: int, tmp_path: Path) -> None:
    files = cl.Run.open(trained).checkpoints
    check_every(
        points,
        tmp_path,
        lambda out: cl.probe(files, out=out, **QUICK),
        lambda out: cl.probe(files, out=out, resume=True, **QUICK),
    )


@pytest.mark.slow
@pytest.mark.faults
def test_a_second_probe_of_a_run(trained: Path, points: int, tmp_path: Path) -> None:
    """The first one's rows stay until each is replaced."""

    def begin(run: Path) -> None:
        shutil.copytree(trained, run)
        cl.probe(run, **QUICK | {"density_probes": 2})
        cl.probe(run, **QUICK)

    check_every(points, tmp_path, begin, lambda run: cl.probe(run, resume=True, **QUICK))

"""A full disk, a folder that is gone, a closed stream: what was done is kept, and one message says so."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
import convexlab.reporting  # Which the commands import when they need it: here once, and not in every child.
from convexlab.cli import main
from convexlab.errors import ShortageError, ShortageWarning
from convexlab.runs import Run
from tests.faults.killing import contents, differences, leftovers, status_in_child
from tests.ranks import FORKED

pytestmark = [
    pytest.mark.faults,
    pytest.mark.usefixtures("unrendered", "begun"),  # Whose imports the children find made.
    FORKED,
]

OPTIONS = ("--objective", "friedman", "--train-size", "20", "--epochs", "4", "--switch-epoch", "2", "--no-baseline")


def command(*arguments: object) -> Callable[[], object]:
    return lambda: main([str(argument) for argument in arguments], prog_name="convexlab")


def train(out: Path, *more: object) -> Callable[[], object]:
    return command("train", "two-phase", *OPTIONS, "--out", out, *more)


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on a page has no part in whether it can be written, and making it takes half the time of a tiny run."""
    monkeypatch.setattr("convexlab.reporting.page.render", lambda runs: "<!doctype html>")


@pytest.fixture
def places(asked: bool) -> int:
    return 10 if asked else 1


@pytest.fixture
def thorough(asked: bool) -> None:
    if not asked:
        pytest.skip("starts a process of its own, which takes seconds: only where the faults are asked for")


def leave_out(unusual: bool, asked: bool) -> None:
    if unusual and not asked:
        pytest.skip("one of many: only where the faults are asked for")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_takes_no_more(
    number: int, asked: bool, places: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 with a message that names the file; resumed with room again, the same files as without the fault."""
    leave_out(number != errno.ENOSPC, asked)
    if number != errno.ENOSPC:
        places = max(1, places // 3)  # To the code they are one.

    def refuse(step: str, path: Path) -> None:
        raise OSError(number, os.strerror(number))

    whole = tmp_path / "whole"
    status, steps = status_in_child(train(whole), None, refuse)
    assert status == 0
    for place in range(places):
        cut = tmp_path / f"cut-{place}"
        capfd.readouterr()
        status, _ = status_in_child(train(cut), place * (steps - 9) // places + 8, refuse)
        error = capfd.readouterr().err
        assert (status, error.count("Error:"), "Traceback" in error) == (1, 1, False), error
        assert str(cut) in error
        assert status_in_child(train(cut, "--resume"), None, refuse)[0] == 0
        assert list(differences(contents(cut), contents(whole))) == []
        assert leftovers(cut) == []


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of address space")
def test_memory_that_the_system_refuses(capfd: pytest.CaptureFixture[str]) -> None:
    """Fewer examples at a time, said; then the error that names what to set. Not simulated: the limit is real."""
    import resource

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 100_000), nn.Tanh(), nn.Linear(100_000, 1))
    x = torch.linspace(-1, 1, 512).reshape(128, 4)
    v = torch.ones(600_001)

    def measured(micro_batch: int | None = 128) -> tuple[float, Tensor]:
        objective = cl.Objective(model, [(x, x[:, :1])], nn.MSELoss(), micro_batch=micro_batch)
        return objective.value(), objective.hessian("exact") @ v

    def work() -> None:
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + 120_000_000, -1))  # An example takes 400,000 bytes a layer.
        with pytest.warns(ShortageWarning, match="examples at a time"):
            loss, product = measured()
        assert loss == pytest.approx(expected[0], rel=1e-5)
        assert float((product - expected[1]).norm() / expected[1].norm()) < 1e-4
        with pytest.raises(ShortageError, match="pass micro_batch="):
            measured(None)

    expected = measured()
    assert status_in_child(work, None, lambda *_: None)[0] == 0, capfd.readouterr().err


def test_a_folder_that_vanishes_is_not_trained_to_the_end(
    places: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    _, steps = status_in_child(train(tmp_path / "whole"), None, lambda *_: None)
    for place in range(places):
        status, until = status_in_child(train(out), place * (steps - 30) // places + 8, lambda *_: shutil.rmtree(out))
        error = capfd.readouterr().err
        assert status == 1, error
        assert until < steps
        assert "Traceback" not in error
        assert not out.exists()


def test_a_link_in_a_run_leads_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    assert status_in_child(train(run, "--probe-every", 0), None, lambda *_: None)[0] == 0
    outside.mkdir()
    for folder in ("witnesses", "state"):
        (run / folder).symlink_to(outside)
    (run / "summary.json").unlink()
    for line in (("probe", run, "--max-steps", 4), ("train", "two-phase", "--resume", "--out", run)):
        status, _ = status_in_child(command(*line), None, lambda *_: None)
        assert (status, list(outside.iterdir())) in [(1, []), (0, [])]
        assert "Traceback" not in capfd.readouterr().err


def test_names_in_any_script_and_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "Läufe 图 \U0001f642").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "Läufe 图 \U0001f642")
    assert status_in_child(train(tmp_path / "link" / "é"), None, lambda *_: None)[0] == 0
    assert Run.open(tmp_path / "link" / "é").summary is not None


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals act as at a terminal, also where the tests run in the background, which ignores SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_once_or_twice(
    number: signal.Signals, times: int, asked: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once: the step is finished and stored. Twice: at once. Exit 130, and it can be gone on with."""
    leave_out((number, times) not in ((signal.SIGINT, 1), (signal.SIGTERM, 2)), asked)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _, steps = status_in_child(train(whole), None, lambda *_: None)

    def ask(step: str, path: Path) -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    status, until = status_in_child(train(cut), steps // 3, ask)
    error = capfd.readouterr().err
    assert status == 130, error
    assert until < steps
    assert "Traceback" not in error
    assert error.count("once more stops at once") == 1
    assert f"Go on with: convexlab train two-phase --resume --out {cut}" in error
    assert status_in_child(train(cut, "--resume"), None, lambda *_: None)[0] == 0
    assert list(differences(contents(cut), contents(whole))) == []


# Where an import is, and not when: on a busy machine it takes ten times as long.
START = """
import os, signal, sys
sys.argv = ["convexlab", "--version"]
class Finder:
    def find_spec(name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Finder)
from convexlab.cli import main
main()
"""


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(
    ("name", "module"),
    [("SIGINT", "torch"), ("SIGINT", "torch.nn"), ("SIGTERM", "numpy"), ("SIGHUP", "convexlab.training")],
)
def test_interrupted_while_it_starts_it_is_quiet(name: str, module: str, thorough: None) -> None:
    code = START.format(signal=name, module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "no home": {"HOME": None, "XDG_CACHE_HOME": None},
    "a home that is not there": {"HOME": "/nonexistent"},
    "nowhere for temporary files": {"TMPDIR": "/nonexistent"},
    "the language C": {"LANG": "C", "LC_ALL": "C"},
    "no terminal": {"TERM": None, "COLUMNS": "0"},
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_poor_surroundings(name: str, tmp_path: Path, thorough: None) -> None:
    changed: dict[str, Any] = {**os.environ, **SURROUNDINGS[name]}
    surroundings = {key: value for key, value in changed.items() if value is not None}
    line = [sys.executable, "-m", "convexlab", "train", "two-phase", *OPTIONS, "--out", str(tmp_path / "é")]
    done = subprocess.run(line, env=surroundings, capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("report: ")


@pytest.mark.parametrize(("closed", "status"), [("1>&-", 0), ("2>&-", 0), ("<&-", 0), ("1>&- 2>&-", 0), ("| true", 0)])
def test_closed_streams_lose_nothing(closed: str, status: int, tmp_path: Path, thorough: None) -> None:
    out = tmp_path / "run"
    line = f"{sys.executable} -m convexlab train two-phase {' '.join(OPTIONS)} --out {out} {closed}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert (out / "report.html").exists()
    assert leftovers(out) == []
    assert Run.open(out).probe


def test_two_at_once_in_one_folder(tmp_path: Path, thorough: None) -> None:
    """One trains, the other is refused; by default each has a folder of its own."""
    line = [sys.executable, "-m", "convexlab", "train", "two-phase", *OPTIONS]
    for out, expected in (["--out", str(tmp_path / "same")], [0, 2]), ([], [0, 0]):
        both = [
            subprocess.Popen([*line, *out, "--seed", str(seed)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
            for seed in range(2)
        ]
        errors = [process.communicate()[1] for process in both]
        assert sorted(process.returncode for process in both) == expected, errors
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_two_hundred_checkpoints_in_one_process(thorough: None, tmp_path: Path) -> None:
    """What one leaves in memory would be there 200 times: after the first ten it grows by less than 50 MB."""
    options = {"objective": "friedman", "train_size": 20, "epochs": 3, "switch_epoch": 1, "probe_every": 0}
    run = cl.train_two_phase(out=tmp_path / "run", no_baseline=True, **options)
    first = run.checkpoints[-1]
    for epoch in range(10, 210):
        shutil.copy(first, run.checkpoint_path(epoch))
    used: list[int] = []
    process = psutil.Process()
    cl.probe(run, max_steps=4, progress=lambda step: used.append(process.memory_info().rss))
    assert len(used) > 200
    assert max(used) - used[10] < 50 * 2**20

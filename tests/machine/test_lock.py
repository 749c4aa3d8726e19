"""One process at a time in a folder; what a dead one left stops nobody."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from convexlab.errors import FailureError, MisuseError
from convexlab.machine import lock
from convexlab.machine.atomic import clean, make_folder, write_atomically
from convexlab.machine.lock import LOCK, create, held_alone

HOLD = """
import sys, time
from pathlib import Path
from convexlab.machine.lock import held_alone
with held_alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_by_the_firsts_number_until_it_is_killed(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    expected = rf"'.*run' is in use by process {other.pid} on \S+\. Wait for it, stop it, or choose another folder"
    with pytest.raises(MisuseError, match=expected), held_alone(folder):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (folder / LOCK).exists()  # Nobody was left to remove it.
    with held_alone(folder):
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not (folder / LOCK).exists()


def test_a_lock_left_on_another_host_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere", "began": 1.0}))
    with held_alone(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["host"] != "elsewhere"


@pytest.mark.parametrize("left", ["", "{", "[1]", '{"pid": "many"}', "\x00"])
def test_whatever_the_file_says_does_not_matter(left: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(left)
    with held_alone(tmp_path):
        pass


@pytest.mark.parametrize("alive", [True, False])
def test_where_the_system_knows_no_locks_the_process_is_looked_up(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with held_alone(tmp_path):
        owner = json.loads((tmp_path / LOCK).read_text())
    began = owner["began"] if alive else owner["began"] - 1.0
    (tmp_path / LOCK).write_text(json.dumps(owner | {"began": began}))
    if alive:
        with pytest.raises(MisuseError, match=f"in use by process {os.getpid()}"), held_alone(tmp_path):
            pass
    else:
        with held_alone(tmp_path):
            pass


def test_within_a_thread_it_can_be_held_again_and_in_another_it_cannot(tmp_path: Path) -> None:
    refused: list[MisuseError] = []

    def hold() -> None:
        try:
            with held_alone(tmp_path):
                pass
        except MisuseError as error:
            refused.append(error)

    with held_alone(tmp_path):
        with held_alone(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
        thread = threading.Thread(target=hold)
        thread.start()
        thread.join()
    assert len(refused) == 1


def test_a_folder_made_to_be_held_goes_again_if_it_stays_empty(tmp_path: Path) -> None:
    for kept in (False, True):
        folder = tmp_path / "a" / "b"
        with held_alone(folder):
            if kept:
                write_atomically(folder / "file", b"")
        assert folder.exists() == kept
        assert (tmp_path / "a").exists() == kept
    (tmp_path / "empty").mkdir()
    with held_alone(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").exists()  # Somebody else made it.


def test_only_one_makes_a_folder(tmp_path: Path) -> None:
    assert [create(tmp_path / "new" / "run") for _ in range(2)] == [True, False]
    (tmp_path / "file").touch()
    assert not create(tmp_path / "file")


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_gone_is_not_made_again_by_a_write(again: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held_alone(folder):
        write_atomically(folder / "first", b"1")
        shutil.rmtree(folder)
        if again:
            folder.mkdir()
        with pytest.raises(FailureError, match=r"was removed or replaced while it was worked in"):
            write_atomically(folder / "second", b"2")
    assert not (folder / "second").exists()


def test_leftovers_of_dead_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    ours, alive = f".a.json.{dead.pid}-x1.partial", f".a.json.{os.getppid()}-x1.partial"
    for name in (ours, alive, ".hidden", "a.json", ".epoch-00001.safetensors.x1"):
        (tmp_path / name).touch()
    clean(tmp_path)
    assert not (tmp_path / ours).exists()
    assert {path.name for path in tmp_path.iterdir()} == {alive, ".hidden", "a.json", ".epoch-00001.safetensors.x1"}


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "witnesses").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="not a link that leads elsewhere") as caught:
        make_folder(tmp_path / "witnesses")
    assert caught.value.filename == str(tmp_path / "witnesses")


def test_what_the_system_refuses_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(tmp_path / "metrics.jsonl", b"x")
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert list(tmp_path.iterdir()) == []

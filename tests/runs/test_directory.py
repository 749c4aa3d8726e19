"""The run directory: whole or not at all, and nothing believed that comes from outside."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convexlab.checkpoints import read_checkpoint, write_checkpoint
from convexlab.errors import MisuseError
from convexlab.machine.atomic import write_atomically
from convexlab.runs import Run, write_json, write_json_lines
from convexlab.runs.files import read_json, read_json_lines

# Writing.


@pytest.mark.parametrize("place", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "interrupt"])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_file_that_could_not_be_written_is_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException, before: bytes | None
) -> None:
    path = tmp_path / "summary.json"
    if before is not None:
        path.write_bytes(before)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os if place == "fsync" else Path, place, fail)
        with pytest.raises(type(error)):
            write_atomically(path, b"new")
    assert (path.read_bytes() if path.exists() else None) == before
    assert [item.name for item in tmp_path.iterdir()] == [path.name] * (before is not None)


WRITERS: dict[str, Callable[[Path], None]] = {
    "json": lambda path: write_json(path, {"fine": 1, "not": object()}),
    "json lines": lambda path: write_json_lines(path, [{"fine": 1}, {"not": object()}]),
    "rows that break off": lambda path: write_json_lines(path, (_broken(row) for row in range(3))),
    "checkpoint": lambda path: write_checkpoint(path, {"weight": torch.ones(2)}, {"epoch": 3}),
}


def _broken(row: int) -> dict[str, Any]:
    if row == 2:
        raise TypeError("no third row")
    return {"row": row}


@pytest.mark.parametrize("writer", WRITERS)
def test_content_that_cannot_be_stored_leaves_the_old(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises((TypeError, ValueError)):
        WRITERS[writer](path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_content_is_on_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    sync, replace = os.fsync, Path.replace

    def note_sync(handle: int) -> None:
        sync(handle)
        steps.append(("sync", os.fstat(handle).st_size))

    def note_replace(source: Path, target: Path) -> Path:
        steps.append(("rename", source.parent == target.parent))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_atomically(tmp_path / "new" / "folder" / "file", b"12345")
    assert steps == [("sync", 5), ("rename", True)]
    assert (tmp_path / "new" / "folder" / "file").read_bytes() == b"12345"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def _finite(value: Any) -> Any:
    """What JSON can say of a value, written out once more."""
    match value:
        case float():
            return None if math.isnan(value) or math.isinf(value) else value
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list():
            return [_finite(item) for item in value]
    return value


def _no_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_what_is_not_finite_is_null_and_all_else_comes_back(tmp_path_factory: Any, value: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_json(folder / "one.json", value)
    stored = json.loads((folder / "one.json").read_text(), parse_constant=_no_constants)
    assert {key: item for key, item in stored.items() if key != "checksum"} == _finite(value)
    path = folder / "rows.jsonl"
    write_json_lines(path, [value, {"second": (1, math.nan)}])
    json.loads(path.read_text().split("\n")[0], parse_constant=_no_constants)
    assert read_json(folder / "one.json") == _finite(value)
    assert read_json_lines(path) == ([_finite(value), {"second": [1, None]}], None)


# The directory.


def test_what_is_no_run_names_those_that_may_be_meant(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_json(tmp_path / "runs" / name / "config.json", {})
    (tmp_path / "runs" / "a" / "checkpoints").mkdir()
    (tmp_path / "runs" / "a" / "report.html").touch()
    first, second = (str(tmp_path / "runs" / name) for name in ("a", "b"))
    for path, meant in (("runs", f"{first!r} or {second!r}"), ("runs/a/checkpoints", repr(first))):
        with pytest.raises(MisuseError) as caught:
            Run.open(tmp_path / path)
        assert str(caught.value).endswith(f"Did you mean {meant}?")
    with pytest.raises(MisuseError, match=r"Did you mean '.*a'\?"):
        Run.open(tmp_path / "runs" / "a" / "report.html")
    with pytest.raises(MisuseError, match=r"Name the folder of a run\."):
        Run.open(tmp_path)


def test_a_run_knows_its_files(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    assert repr(run) == f"Run({str(tmp_path / 'run')!r})"
    assert run.summary is None
    assert (run.metrics, run.probe, run.checkpoints) == ([], [], [])
    with pytest.raises(MisuseError, match=r"cannot read.*config\.json"):
        _ = run.config
    with pytest.raises(MisuseError, match=r"not a run directory.*convexlab train two-phase.*nothing of that name"):
        Run.open(run.path)
    write_json(run.config_path, {"model": "vit-mlp"})
    write_json(run.summary_path, {"schema": 1})
    write_json_lines(run.metrics_path, [{"run": "a", "epoch": 0}, {"run": "a", "epoch": 1}])
    write_json_lines(run.probe_path, [{"checkpoint": "a"}])
    opened = Run.open(run.path)
    assert opened.config == {"model": "vit-mlp"}
    assert opened.summary == {"schema": 1}
    assert opened.metrics == [{"run": "a", "epoch": 0}, {"run": "a", "epoch": 1}]
    assert opened.probe == [{"checkpoint": "a"}]
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "probe.jsonl",
        "summary.json",
    ]
    assert run.report_path == run.path / "report.html"
    assert run.members == [run]


def test_checkpoints_and_members_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for epoch in (100_000, 7, 99_999, 0, 12):
        write_checkpoint(run.checkpoint_path(epoch), {"a": torch.tensor(epoch)}, {})
    (tmp_path / "checkpoints" / ".epoch-00001.safetensors.x1").touch()  # What a crash left.
    (tmp_path / "checkpoints" / "notes.txt").touch()
    assert [int(read_checkpoint(path).tensors["a"]) for path in run.checkpoints] == [0, 7, 12, 99_999, 100_000]
    for seed in (10, 2, 0):
        write_json(tmp_path / f"seed-{seed}" / "config.json", {"seed": seed})
    (tmp_path / "seed-3").mkdir()  # Not begun.
    assert [member.config["seed"] for member in run.members] == [0, 2, 10]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"null", b'"x"', b"\xff\xfe{}", b"[" * 100_000])
def test_settings_that_are_not_an_object_are_refused(tmp_path: Path, content: bytes) -> None:
    run = Run(tmp_path)
    run.config_path.write_bytes(content)
    with pytest.raises(MisuseError, match=r"cannot read.*config\.json"):
        _ = run.config


@pytest.mark.parametrize("line", [b"{", b"[1]", b"3", b"null", b"\xff\xfe", b'{"a": 1} {"a": 2}'])
def test_rows_that_are_not_objects_are_refused_with_their_line(tmp_path: Path, line: bytes) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_bytes(b'{"run": "a", "epoch": 0}\n' + line + b"\n")
    with pytest.raises(MisuseError, match=r"cannot read.*metrics\.jsonl") as caught:
        _ = run.metrics
    assert "line 2" in str(caught.value) or line == b"\xff\xfe"


def test_rows_that_others_wrote_may_have_blank_lines_and_any_letter(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_bytes('{"run": "a\u2028b\x85c", "epoch": 0}\r\n\n{"run": "a", "epoch": 1}'.encode())
    assert run.metrics == [{"run": "a\u2028b\x85c", "epoch": 0}, {"run": "a", "epoch": 1}]

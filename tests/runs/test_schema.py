"""What a file of a run may hold: what is wrong is named by file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convexlab.errors import DamageWarning, MisuseError
from convexlab.runs import Run, write_json, write_json_lines

EPOCH = {"run": "two-phase", "phase": "adam", "epoch": 1, "train_loss": 0.5, "gradient_norm": 2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": "one"}, r"metrics.jsonl': line 2, field 'epoch': expected a number from 0, got 'one'"),
        ({"epoch": -1}, "field 'epoch': expected a number from 0, got -1"),
        ({"epoch": True}, "field 'epoch': expected a number from 0, got True"),
        ({"train_loss": 10**400}, "field 'train_loss': expected a number, got 1000"),
        ({"phase": 3}, "field 'phase': expected a text, got 3"),
        ({"told": [1]}, r"field 'told': expected an object \(others a number\), got \[1\]"),
        ({"accuracy": "good"}, "field 'accuracy': expected a number, got 'good'"),
        ({"run": None}, "line 2 lacks field 'run': expected a text"),
        ({"schema": 99}, "has schema 99: expected at most 1, which is what this version reads. Install the version"),
    ],
)
def test_a_field_that_is_not_what_it_has_to_be(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_text(f"{json.dumps(EPOCH)}\n{json.dumps(EPOCH | change)}\n")
    with pytest.raises(MisuseError, match=message):
        _ = run.metrics


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(number: str, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_text(f'{{"run": "a", "epoch": 1, "train_loss": {number}}}\n')
    with pytest.raises(MisuseError, match=r"is no number of JSON's|field 'train_loss'"):
        _ = run.metrics


def test_a_last_line_that_broke_off_is_left_out_and_said(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_json_lines(run.metrics_path, [EPOCH, EPOCH | {"epoch": 2}])
    whole = run.metrics_path.read_text()
    run.metrics_path.write_text(whole[:-20])
    with pytest.warns(DamageWarning, match=r"line 2 of '.*metrics.jsonl' broke off, and is left out"):
        assert run.metrics == [EPOCH]
    # A line that is not the last did not break off.
    run.metrics_path.write_text("{\n" + whole)
    with pytest.raises(MisuseError, match="line 1 is not JSON"):
        _ = run.metrics


def test_every_bit_of_a_row_counts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_json_lines(run.metrics_path, [EPOCH, EPOCH | {"epoch": 2}, EPOCH | {"epoch": 3}])
    content = run.metrics_path.read_bytes()
    for place in range(len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 7
        run.metrics_path.write_bytes(changed)
        with pytest.raises(MisuseError, match="cannot read"):
            _ = run.metrics
    lines = content.decode().splitlines(keepends=True)
    for left_out in (lines[1:], [lines[0], lines[2]], [lines[1], lines[0]]):
        run.metrics_path.write_text("".join(left_out))
        with pytest.raises(MisuseError, match="does not fit its checksum"):
            _ = run.metrics


def test_an_edited_object_is_found_out_and_one_without_a_checksum_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_json(run.config_path, {"schema": 1, "epochs": 30, "model": "vit-mlp"})
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("30", "31"))
    with pytest.raises(MisuseError, match="does not fit its checksum"):
        _ = run.config
    stored = json.loads(text)
    del stored["checksum"]
    run.config_path.write_text(json.dumps(stored))
    assert run.config == {"epochs": 30, "model": "vit-mlp"}

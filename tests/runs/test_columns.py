"""Rows as CSV and as a frame: the same columns, nested fields by name, lists left out."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import convexlab as cl
from convexlab.errors import MisuseError
from convexlab.runs import Run


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("file", ["metrics", "probe", "oracle"])
def test_a_runs_files_of_rows(file: str, finished: Run, tmp_path: Path) -> None:
    rows = getattr(finished, file)
    table = read(finished.to_csv(tmp_path / "rows.csv", file))
    assert len(table) == len(rows)
    for line, row in zip(table, rows, strict=True):
        assert float(line["train_loss"]) == row["train_loss"]
    pytest.importorskip("pandas")
    frame = finished.to_frame(file)
    assert list(frame.columns) == list(table[0])
    assert frame["train_loss"].tolist() == [row["train_loss"] for row in rows]


def test_nested_fields_have_columns_and_lists_have_none(finished: Run, tmp_path: Path) -> None:
    assert "told.loss" in read(finished.to_csv(tmp_path / "metrics.csv"))[0] or not any(
        "told" in row for row in finished.metrics
    )
    columns = read(finished.to_csv(tmp_path / "probe.csv", "probe"))[0]
    assert "density.nodes" not in columns
    assert "smallest" in columns


def test_an_unknown_file_is_refused(finished: Run) -> None:
    with pytest.raises(MisuseError, match="Did you mean 'metrics'"):
        finished.to_frame("metric")


def test_without_pandas_there_is_csv(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MisuseError, match="to_csv"):
        finished.to_frame()
    assert finished.to_csv(tmp_path / "metrics.csv").is_file()


def test_a_watch_has_a_row_an_epoch(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    watch = cl.Watch(
        cl.Objective(model, [(torch.ones(2, 2), torch.zeros(2, 1))], nn.MSELoss()),
        torch.optim.Adam(model.parameters()),
        share=0.0,
    )
    for loss in (3.0, 2.0):
        watch.update(loss=loss)
    rows = read(watch.to_csv(tmp_path / "watch.csv"))
    assert [(row["epoch"], row["loss"]) for row in rows] == [("1", "3.0"), ("2", "2.0")]

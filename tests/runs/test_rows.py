"""Rows of a run's files: what is written is read again, and what is missing or damaged is known to be."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexlab.runs import Run, write_json_lines
from convexlab.runs.rows import (
    Curve,
    EpochRow,
    LossSlice,
    PointMeasurement,
    ProbedCheckpoint,
    Sampling,
    without_density,
)


def filled() -> ProbedCheckpoint:
    """Every field with a value of its own."""
    number = iter(range(1, 100))

    def values_of(cls: type) -> dict[str, Any]:
        kinds = {"str": str, "str | None": str, "float": float, "float | None": float, "int | None": int}
        return {f.name: kinds[str(f.type)](next(number)) for f in dataclasses.fields(cls) if str(f.type) in kinds}

    values = values_of(ProbedCheckpoint) | {"confidence": 0.5}
    row = ProbedCheckpoint(**values, nodes=np.array([-1.0, 2.0]), weights=np.array([0.25, 0.75]))
    steps, losses = np.array([-1.0, 0.0, 1.0]), np.array([3.0, 2.0, 4.0])
    slices = {end: LossSlice.along(end, row, steps, losses) for end in ("smallest", "largest")}
    return dataclasses.replace(row, slices={end: line for end, line in slices.items() if line is not None})


def test_every_field_of_a_probed_checkpoint_comes_back(tmp_path: Path) -> None:
    run, row = Run(tmp_path), filled()
    write_json_lines(run.probe_path, [row.as_row()])
    (stored,) = run.probe
    again = ProbedCheckpoint.from_row(stored)
    assert again.as_row() == row.as_row() == stored
    assert len(again.slices) == 2
    assert again.slices["largest"].curvature == row.largest
    assert list(stored)[:3] == ["checkpoint", "epoch", "phase"]
    pairs = {"nodes", "weights", "top_values", "top_residuals"}
    assert set(stored) == {f.name for f in dataclasses.fields(row)} - pairs | {"density", "top"}
    assert set(without_density(stored)) == set(stored) - {"density"}


def test_what_was_not_measured_is_null() -> None:
    assert {value for value in ProbedCheckpoint(steps=0).as_row().values() if value} == set()
    row = PointMeasurement(train_loss=math.nan, verdict="unresolved", steps=0).as_row()
    assert [name for name, value in row.items() if value is not None] == ["train_loss", "verdict", "steps"]


@pytest.mark.parametrize("row", [{}, {"verdict": None, "density": [1], "slices": 3, "steps": "many", "epoch": True}])
def test_an_old_or_damaged_row_is_read(row: dict[str, Any]) -> None:
    read = ProbedCheckpoint.from_row(row | {"marked": "by a later version"})
    assert read.as_row() == ProbedCheckpoint().as_row()


def test_a_row_is_all_of_its_parts() -> None:
    whole = ProbedCheckpoint(**vars(PointMeasurement(trace=2.0)), **vars(Sampling(population=5)), checkpoint="a")
    assert (whole.trace, whole.population, whole.checkpoint) == (2.0, 5, "a")


def test_an_epoch_comes_back_with_signals_and_measures() -> None:
    stored = {
        "run": "two-phase",
        "phase": "adam",
        "epoch": 3,
        "gradient_equivalents": 4.5,
        "seconds": 0.25,
        "train_loss": 0.5,
        "gradient_norm": None,
        "told": {"loss": 0.5, "gradient_norm": None},
        "relative_error": 0.125,
    }
    row = EpochRow.from_row(json.loads(json.dumps(stored)))
    assert row.as_row() == stored
    assert (row.signals, row.measures) == ({"loss": 0.5, "gradient_norm": None}, {"relative_error": 0.125})
    bare = EpochRow.from_row({"run": "adam-constant", "phase": "start"})
    assert (bare.epoch, bare.signals, bare.measures) == (None, {}, {})


def test_measures_are_columns_with_gaps() -> None:
    rows = [{"phase": "adam", "epoch": 1, "error": 0.5}, {"phase": "adam", "epoch": 2}]
    (column,) = Curve.from_rows(rows).measures.values()
    assert column[0] == 0.5
    assert math.isnan(column[1])

"""A row at the paper's scale, at toy size: stretches lead to what one go leads to, and its files stay small."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paper import full_scale
from paper.full_scale import STAGES, Clock, FullScale, points_of, train_row
from paper.protocols import ADAM, COSINE, FIXED, PAPERS
from paper.row_file import LARGEST_FILE, RowFile, read_row
from paper.table import TableCase

from convexlab.errors import FailureError, MisuseError
from convexlab.probing import ProbeOptions
from tests.tiny import without_seconds, write_problem

Record = dict[str, Any]

SCALE = FullScale(
    record_every=2, before=(0.0,), behind=(1.0,), probe=ProbeOptions(density_probes=1, density_steps=4, max_steps=6)
)


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TableCase:
    named = write_problem(tmp_path)
    monkeypatch.setattr(full_scale, "source", lambda dataset: named["dataset"])
    monkeypatch.setattr(TableCase, "key", "row")
    # It asks git at every stretch.
    monkeypatch.setattr(full_scale, "describe_process", lambda device, dtype: {"processor": "a test's"})
    return TableCase("tiny", named["model"], 0, 10, 3, 40, 0, 1e-2)


class Stretch(Clock):
    """Is over after so many looks at it."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def left(self) -> float:
        self.looks -= 1
        return 1e9 if self.looks >= 0 else 0.0

    def share(self, place: int, rows: int, jobs: int) -> Clock:
        return self


def _comparable(record: Record) -> Record:
    stages = {key: record[key] for key in ("case", "parameters", "examples", "protocols", "points", "under_way")}
    # Beyond equal cost our second phase goes as far as the time allows.
    ours = {FIXED: record["protocols"][FIXED]["at_equal_cost"]}
    return without_seconds(stages | {"protocols": record["protocols"] | ours})


def test_stretches_lead_to_what_one_go_leads_to(case: TableCase, tmp_path: Path) -> None:
    whole = train_row(case, tmp_path / "whole", SCALE, Clock())
    assert whole["under_way"] is None
    stages, losses = [], []
    for looks in itertools.chain([0, 3, 4, 5], itertools.repeat(9)):
        parts = train_row(case, tmp_path / "parts", SCALE, Stretch(looks))
        if parts["under_way"] is None:
            break
        stages.append(parts["under_way"]["stage"])
        losses.append(parts["under_way"]["train_loss"])
    assert [stage for stage, _ in itertools.groupby(stages)] == [stage for stage in STAGES if stage in stages]
    assert {ADAM, PAPERS, COSINE} <= set(stages)
    assert len(parts["stretches"]) > 5
    assert losses[1] < losses[0]
    assert _comparable(parts) == _comparable(whole)


def test_the_record_says_what_every_stage_led_to(case: TableCase, tmp_path: Path) -> None:
    record = train_row(case, tmp_path, SCALE, Clock())
    protocols = record["protocols"]
    assert list(protocols) == [ADAM, PAPERS, COSINE, FIXED]
    assert (record["examples"], record["validation_examples"], record["parameters"]) == (120, 30, 83)
    assert record["overdetermination"] == pytest.approx(120 * 3 / 83)
    for name in (ADAM, COSINE):
        assert (protocols[name]["cost"], protocols[name]["gradients"], protocols[name]["values"]) == (10, 10, 0)
        assert [point[0] for point in protocols[name]["curve"]] == [0, 2, 3, 4, 6, 8, 10]
    papers, ours = protocols[PAPERS], protocols[FIXED]
    assert papers["steps"] == 7
    # Adam's three epochs; every step of CG has a gradient, and a search of values at a third each.
    assert papers["gradients"] >= 3 + 7
    assert papers["cost"] == pytest.approx(papers["gradients"] + papers["values"] / 3)
    assert papers["at_equal_cost"]["cost"] <= 10 < papers["cost"]
    assert papers["train_loss"] <= papers["at_equal_cost"]["train_loss"]
    assert papers["train_loss"] == min(point[2] for point in papers["curve"])
    assert ours["at_equal_cost"]["cost"] <= 10
    if ours["reached"] is not None:
        assert 3 < ours["reached"]["cost"] <= ours["cost"]
    assert [(point["protocol"], point["epoch"]) for point in record["points"].values()] == [
        (ADAM, 0),
        (ADAM, 3),
        (PAPERS, 10),
        (ADAM, 10),
    ]
    assert all(point["verdict"] for point in record["points"].values())
    assert record["stretches"][0]["not_captured"] == {
        "": "cpu has no graphs of kernels to record",
        "step of Adam": "cpu has no graphs of kernels to record",
    }
    # Done is done: not even the data are read again.
    assert train_row(case, tmp_path, SCALE, Clock()) == record == read_row(case, tmp_path)


def test_our_second_phase_waits_for_a_stretch_that_suffices(case: TableCase, tmp_path: Path) -> None:
    class Short(Clock):
        left = 1e-9
        over = False

        def share(self, place: int, rows: int, jobs: int) -> Clock:
            return self

    record = train_row(case, tmp_path, SCALE, Short())
    assert record["under_way"]["stage"] == FIXED
    assert "seconds in one stretch" in record["under_way"]["note"]
    # One look whether the time suffices, one after its first step.
    interrupted = train_row(case, tmp_path, SCALE, Stretch(1))
    assert interrupted["under_way"]["note"] == "was interrupted, and begins again from the switch"
    assert FIXED not in interrupted["protocols"]
    done = train_row(case, tmp_path, SCALE, Clock())
    assert done["under_way"] is None
    assert _comparable(done) == _comparable(train_row(case, tmp_path / "whole", SCALE, Clock()))


def test_twelve_points_at_the_papers_scale() -> None:
    case = TableCase("mnist", "vit-nomlp", 0, 1000, 300, 512, 0, 1e-3)
    assert points_of(case, FullScale()) == [
        *((ADAM, epoch) for epoch in (0, 10, 50, 100, 200, 300)),
        *((PAPERS, epoch) for epoch in (307, 335, 440, 650, 1000)),
        (ADAM, 1000),
    ]


def test_the_largest_networks_file_fits(tmp_path: Path) -> None:
    """Twelve points, the switch with Adam's moments and its best weights, and a step of CG: in the largest network."""
    case = TableCase("cifar100", "vit-mlp", 0, 700, 210, 512, 0, 1e-3)
    file = RowFile.of(case, tmp_path)
    vectors = {f"point {place}": torch.randn(168_100) for place in range(len(points_of(case, FullScale())))}
    held = {"switch": [torch.randn(168_100) for _ in range(4)], "stage": [torch.randn(168_100) for _ in range(6)]}
    file.tensors = vectors | held
    file.save()
    assert file.path.stat().st_size < LARGEST_FILE
    file.tensors["more"] = torch.randn(10 * 168_100)
    with pytest.raises(FailureError, match=r"above 16\.8 MB"):
        file.save()


def test_a_file_of_others_is_refused(case: TableCase, tmp_path: Path) -> None:
    train_row(case, tmp_path, SCALE, Stretch(0))
    with pytest.raises(MisuseError, match="other settings"):
        train_row(replace(case, epochs=11), tmp_path, SCALE, Clock())
    # The device may be another from stretch to stretch.
    assert RowFile.of(replace(case, device="cuda"), tmp_path).record["under_way"]["stage"] == ADAM
    (tmp_path / "row.pt").write_bytes(b"nothing")
    with pytest.raises(MisuseError, match=r"cannot read .*Delete it"):
        read_row(case, tmp_path)


def test_rows_share_the_time_that_is_left() -> None:
    clock = Clock(1000)
    assert clock.share(0, 5, 5).left == pytest.approx(1000, abs=5)
    assert clock.share(0, 5, 1).left == pytest.approx(200, abs=5)
    assert clock.share(4, 5, 2).left == pytest.approx(1000, abs=5)
    assert Clock().share(0, 5, 1).left == float("inf")
    assert Clock(0).over

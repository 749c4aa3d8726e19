"""The page of a block at the paper's scale: every number beside the paper's, verdicts by hand, and unfinished rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from paper.pages.full_scale import FullRow, full_scale_study, outcome
from paper.protocols import ADAM, COSINE, FIXED, PAPERS
from paper.table import MODELS, TableCase

from convexlab.reporting import write_study

Record = dict[str, Any]


def _case(model: str, seed: int = 0) -> TableCase:
    epochs = 700 if model == "vit-mlp" else 1000
    return TableCase("mnist", model, 0, epochs, round(0.3 * epochs), 512, seed, 1e-3, "auto")


def _ended(loss: float, cost: float, **more: Any) -> Record:
    judged = {
        "train_loss": loss,
        "train_accuracy": 1 - loss,
        "validation_loss": 2 * loss,
        "validation_accuracy": 1 - 2 * loss,
    }
    equal = judged | {"train_loss": 2 * loss, "cost": 999.0, "seconds": 20.0}
    evaluations = {"values": 30, "gradients": 10, "seconds": 100.0, "steps": 700, "ended": None, "reached": None}
    return judged | evaluations | {"cost": cost, "at_equal_cost": equal} | more


def _point(protocol: str, epoch: int, verdict: str) -> Record:
    return {
        "protocol": protocol,
        "epoch": epoch,
        "train_loss": 0.01,
        "gradient_norm": 0.1,
        "gradient_curvature": 0.2,
        "smallest": -0.3,
        "largest": 4.0,
        "verdict": verdict,
    }


def _record(case: TableCase, losses: dict[str, float], under_way: Record | None = None) -> Record:
    costs = {ADAM: 1000.0, COSINE: 1000.0, PAPERS: 4321.0, FIXED: 900.0}
    protocols = {name: _ended(loss, costs[name]) for name, loss in losses.items()}
    if FIXED in protocols:
        protocols[FIXED]["reached"] = {"cost": 432.1, "seconds": 60.0}
    points = [_point(ADAM, 0, "non-convex"), _point(PAPERS, 1000, "no-negative-curvature")]
    return {
        "case": vars(case),
        "parameters": 54_794,
        "examples": 60_000,
        "validation_examples": 10_000,
        "overdetermination": 10.95,
        "protocols": protocols,
        "points": {str(place): point for place, point in enumerate(points)},
        "stretches": [
            {"seconds": 1800.0, "made_by": {"processor": "NVIDIA H200", "commit": "abc"}, "not_captured": {}},
            {"seconds": 60.0, "made_by": {"processor": "x86_64"}, "not_captured": {"": "cpu has no graphs"}},
        ],
        "under_way": under_way,
    }


LOSSES = {ADAM: 0.0004, COSINE: 0.0002, PAPERS: 0.0001, FIXED: 0.00005}


@pytest.fixture
def rows() -> list[FullRow]:
    nomlp, mlp, shared, minimal, vgg = (_case(MODELS[place]) for place in (1, 0, 2, 3, 4))
    half = {"stage": PAPERS, "done": 350, "of": 700, "note": "", "train_loss": 0.0003}
    note = "needs about 900 seconds in one stretch"
    late = {"stage": FIXED, "done": 0, "of": 1000, "note": note, "train_loss": None}
    return [
        FullRow(mlp, None),
        FullRow(nomlp, _record(nomlp, LOSSES)),
        FullRow(shared, _record(shared, {ADAM: 0.0004}, half)),
        FullRow(minimal, _record(minimal, {ADAM: 0.0001, PAPERS: 0.0002, COSINE: 0.0003}, late)),
        FullRow(vgg, _record(vgg, LOSSES | {PAPERS: 0.0004})),
    ]


def _text(rows: list[FullRow], folder: Path) -> str:
    page = write_study(full_scale_study(rows, "python analyses/table_1.py"), folder / "page.html").read_text("utf-8")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


@pytest.mark.parametrize(
    ("ratios", "level", "expected"),
    [
        ([0.5], False, "reproduced"),
        ([0.9], False, "undecided"),
        ([1.1], False, "undecided"),
        ([1.1], True, "reproduced"),
        ([1.3], True, "not reproduced"),
        ([1.3], False, "not reproduced"),
        ([0.5, 0.6], False, "reproduced"),
        ([0.5, 1.3], False, "undecided"),
        ([0.5, None], False, "undecided"),
        ([], False, "undecided"),
    ],
)
def test_outcomes(ratios: list[float | None], level: bool, expected: str) -> None:
    assert outcome(ratios, level=level) == expected


def test_ratios_by_hand(rows: list[FullRow]) -> None:
    _, finished, half, late, vgg = rows
    assert finished.per_epoch == pytest.approx(0.25)
    # Twice its loss at equal cost, against the cosine rate.
    assert finished.per_cost == pytest.approx(1.0)
    assert finished.ours == pytest.approx(0.5)
    assert half.per_epoch is half.per_cost is half.ours is None
    assert late.per_epoch == pytest.approx(2.0)
    assert late.per_cost == pytest.approx(4.0)
    assert vgg.level
    assert not finished.level


def test_the_answer_counts_outcomes(rows: list[FullRow]) -> None:
    answer = full_scale_study(rows, "command").answer
    # VGG5 is level in the paper, and level here.
    assert answer[0].endswith("reproduced in 2, not reproduced in 1, undecided in 2 of 5 rows.")
    assert answer[1].endswith("reproduced in 0, not reproduced in 2, undecided in 3 of 5 rows.")
    assert answer[2] == (
        "Our second phase from the same switch reached the loss of CG in 2 of 2 rows, for 0.100 of what CG cost in the "
        "geometric mean; at equal cost it is lower than the better Adam in 2 of 2, 0.500 times its loss."
    )
    assert answer[3].startswith("2 of 5 runs are finished")


def test_a_sentence_a_row_and_every_number(rows: list[FullRow], tmp_path: Path) -> None:
    text = _text(rows, tmp_path)
    for sentence in (
        "MNIST vit-mlp: undecided; not begun.",
        "MNIST vit-nomlp: by its accounting reproduced: 1.00×10⁻⁴ after CG, 4.00×10⁻⁴ after Adam (paper: 0.0003 and "
        "0.0002). At equal cost undecided: 2.00×10⁻⁴ after CG, 2.00×10⁻⁴ after the better Adam.",
        "MNIST vit-nomlp-wkewq: undecided; not finished (Adam, then CG: 350 of 700, at loss 3.00×10⁻⁴).",
        "MNIST vit-nomlp-wkewq-wvwo: by its accounting not reproduced",
        "needs about 900 seconds in one stretch",
        # All eight published figures of a row, and Q of both.
        *("0.0003", "0.998", "0.0064", "0.963", "0.0002", "0.999", "0.0053", "0.969", "11.0", "10.9"),
        "432.1, 60",
        "4,321",
        "one swap to convex in 4 of 4 rows",
        "NVIDIA H200, x86_64",
        "cpu has no graphs",
    ):
        assert sentence in text, sentence


def test_a_page_of_nothing_says_so(tmp_path: Path) -> None:
    text = _text([FullRow(_case(model), None) for model in MODELS], tmp_path)
    assert "reproduced in 0, not reproduced in 0, undecided in 5 of 5 rows" in text
    assert "has not ended in any row yet" in text
    assert "No row has been probed at two points yet." in text
    assert "0 of 5 runs are finished" in text


def test_seeds_decide_together() -> None:
    cases = [_case("vit-nomlp", seed) for seed in (0, 1)]
    runs = [
        FullRow(cases[0], _record(cases[0], LOSSES)),
        FullRow(cases[1], _record(cases[1], LOSSES | {PAPERS: 0.002})),
    ]
    study = full_scale_study(runs, "command")
    assert study.answer[0].endswith("reproduced in 0, not reproduced in 0, undecided in 1 of 1 rows.")
    assert any("Seeds: 2; the numbers are those of seed 0." in paragraph for paragraph in study.parts[0].paragraphs)

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from convexlab.errors import MisuseError
from convexlab.reporting.facts.run import read_facts
from convexlab.reporting.words.signs import signals
from convexlab.runs import Run
from convexlab.runs.rows import Curve, ProbedCheckpoint

MakeRun = Callable[..., Run]


def _rows(*phases: str) -> list[dict[str, object]]:
    return [{"phase": phase, "epoch": epoch, "train_loss": 1.0 / (1 + epoch)} for epoch, phase in enumerate(phases)]


def test_segments_follow_the_phases_and_leave_no_gap() -> None:
    curve = Curve.from_rows(_rows("start", "adam", "adam", "cg-golden", "adam"))
    assert list(curve.segments()) == [
        ("adam", slice(0, 3)),
        ("cg-golden", slice(2, 4)),
        ("adam", slice(3, 5)),
    ]


def test_missing_numbers_become_nan() -> None:
    curve = Curve.from_rows([{"phase": "adam", "epoch": 1, "train_loss": None, "gradient_norm": True}])
    assert curve.epoch[0] == 1
    assert all(math.isnan(column[0]) for column in (curve.loss, curve.norm, curve.cost, curve.seconds))


def test_density_keeps_pairs_only() -> None:
    row = {"density": {"nodes": [1.0, None, 3.0, 4.0, 5.0], "weights": [0.5, 0.25, None, 0.0, 0.25]}}
    checkpoint = ProbedCheckpoint.from_row(row)
    assert checkpoint.nodes.tolist() == [1.0, 5.0]
    assert checkpoint.weights.tolist() == [0.5, 0.25]
    assert ProbedCheckpoint.from_row({}).nodes.size == 0


def test_switch_of_an_unfinished_run_is_read_off_its_curve(make_run: MakeRun) -> None:
    facts = read_facts(make_run(finished=False), "run")
    assert facts.switch is not None
    assert facts.curve is not None
    assert facts.switch.epoch == 40
    assert facts.switch.train_loss == facts.curve.loss[40]
    assert facts.phase_two == "cg-golden"


def test_checkpoints_come_by_epoch(make_probe: MakeRun) -> None:
    run = make_probe(count=3)
    lines = run.probe_path.read_text().splitlines()
    run.probe_path.write_text("\n".join(reversed(lines)))
    assert [checkpoint.epoch for checkpoint in read_facts(run, "probe").probe] == [0, 50, 100]


def test_a_damaged_file_is_misuse(make_run: MakeRun) -> None:
    run = make_run()
    run.metrics_path.write_text("{")
    with pytest.raises(MisuseError, match=r"metrics\.jsonl.*line 1 is not JSON"):
        read_facts(run, "run")


def test_signs_inside_the_rounding_floor_do_not_count(make_probe: MakeRun) -> None:
    tiny = {"gradient_curvature": -1e-8, "smallest": -1e-8, "rounding_floor": 1e-7}
    seen = {signal.name: signal.observed for signal in signals(read_facts(make_probe(**tiny), "probe"))}
    assert seen["Smallest eigenvalue"] == "Negative at none of 3 checkpoints."
    assert "Negative at none of 3" in seen["Curvature along the gradient, gᵀHg / gᵀg"]
    assert "−1.0" not in "".join(seen.values())


def test_signals_are_stated_with_their_epochs(make_run: MakeRun) -> None:
    facts = read_facts(make_run(), "run")
    seen = {signal.name: signal.observed for signal in signals(facts)}
    assert seen["Peak of the gradient norm"].startswith("Largest at epoch 0 (2.")
    # The fixture's norm rises to its later peak around epoch 36 of 100.
    assert re.search(
        r" Peak after its first trough: epoch (2[5-9]|3\d|4[0-5]) \(0\.", seen["Peak of the gradient norm"]
    )
    assert "lowest −0.600 at epoch 0" in seen["Smallest eigenvalue"]
    assert seen["Negative spectral mass"].startswith("From 0.320 at epoch 0 to ")

"""The part on the loss surface: drawn and put in words what the files say, left out without them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convexlab.reporting.contents as contents_module
from convexlab.errors import MisuseError
from convexlab.reporting import write_report
from convexlab.reporting.charts.plane import contour_levels, plane_chart
from convexlab.reporting.charts.slices import holds_to, slice_chart
from convexlab.reporting.facts.run import RunFacts, read_facts
from convexlab.runs import Run, write_json, write_json_lines
from convexlab.runs.rows import LossSlice

MakeRun = Callable[..., Run]
Row = dict[str, Any]
HOSTILE = "</svg><script>alert('x')</script>\"'&$a$ 数据"


def slices_of(row: Row, points: int = 7) -> Row:
    """A loss that is its quadratic model plus s⁴, as a row of probe.jsonl holds it."""
    row_slices: Row = {"smallest_slope": 0.01, "largest_slope": -0.02, "slices": {}}
    for end in ("smallest", "largest"):
        reach = math.sqrt(row["train_loss"] / 2 / max(abs(row[end]), 1e-3 * row["largest"]))
        steps = np.linspace(-reach, reach, points)
        losses = row["train_loss"] + row_slices[f"{end}_slope"] * steps + 0.5 * row[end] * steps**2 + steps**4
        row_slices["slices"][end] = {"steps": steps.tolist(), "losses": losses.tolist()}
    return row_slices


def plane_of(rows: list[Row], **changes: Any) -> Row:
    """A bowl around the origin, and a path into it."""
    x, y = np.linspace(-5, 2, 13), np.linspace(-1, 3, 7)
    losses = 1e-3 + 0.01 * (x**2 + 3 * y[:, None] ** 2)
    path = [
        {"checkpoint": row["checkpoint"], "epoch": row["epoch"], "phase": row["phase"], "x": -4.0 + 4 * k, "y": 2.0}
        for k, row in zip(np.linspace(0, 1, len(rows)), rows, strict=True)
    ]
    row = {
        "schema": 1,
        "key": "0",
        "checkpoints": [point | {"off_plane": 0.3456} for point in path[:-1]]
        + [path[-1] | {"y": 0.0, "off_plane": 0.0}],
        "explained_variance": [0.8123, 0.0987],
        "x": x.tolist(),
        "y": y.tolist(),
        "losses": losses.tolist(),
        "examples": 411,
        "train_size": 1437,
        "gradient_equivalents": 8.64,
        "seconds": 3.0,
    }
    return row | changes


@pytest.fixture
def run(make_run: MakeRun) -> Run:
    run = make_run()
    add_surface(run)
    return run


def add_surface(run: Run, **changes: Any) -> None:
    rows = run.probe
    write_json_lines(run.probe_path, [row | slices_of(row) for row in rows])
    write_json(run.landscape_path, plane_of(rows, **changes))


@pytest.fixture
def facts(run: Run) -> RunFacts:
    return read_facts(run, "run")


def test_slices_are_drawn_at_start_switch_and_end_with_the_numbers_in_words(facts: RunFacts) -> None:
    made = slice_chart(facts, "slices")
    assert made is not None
    for text in ("first: epoch 0", "switch: epoch 40", "last: epoch 100", "loss", "quadratic model", "checkpoint"):
        assert f">{text}" in made.svg
    assert made.svg.count("λ = ") == 6
    assert ">λ = −0.600, s = 0.53<" in made.svg
    first = facts.probe[0].slices["smallest"]
    assert (
        f"first, epoch 0: along the eigenvector of the smallest eigenvalue, −0.600, the loss is {first.losses[0]:.3f}"
        in (made.description)
    )
    assert made.description in made.svg


def test_negative_curvature_is_hatched_and_only_where_it_is_more_than_rounding(facts: RunFacts) -> None:
    negative = slice_chart(facts, "slices")
    floored = [dataclasses.replace(c, rounding_floor=10.0) for c in facts.probe]
    within = slice_chart(dataclasses.replace(facts, probe=tuple(floored)), "slices")
    assert negative is not None
    assert within is not None
    # One pattern is shared by all; two of the three checkpoints and the legend are filled with it.
    assert negative.svg.count('fill="url(#slices-') == 3
    assert ">negative curvature<" in negative.svg
    assert "url(#" not in re.sub(r"clip-path[^>]*", "", within.svg)
    assert ">negative curvature<" not in within.svg
    assert ">λ = 0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}10, s = 0.53<" in within.svg


@pytest.mark.parametrize(("quartic", "expected"), [(0.0, 1.0), (0.124, 1.0), (0.126, 0.75), (0.6, 0.25), (9.0, 0.0)])
def test_the_quadratic_model_holds_to_a_quarter_of_the_bend(quartic: float, expected: float) -> None:
    # Beside ½ s² the error q s⁴ is less than a quarter as large while s² < 1 / (8 q).
    steps = np.linspace(-1, 1, 9)
    drawn = LossSlice(steps, 2 + 0.1 * steps - 0.5 * steps**2 + quartic * steps**4, loss=2.0, slope=0.1, curvature=-1.0)
    assert holds_to(drawn) == expected
    assert drawn.model(steps) == pytest.approx(2 + 0.1 * steps - 0.5 * steps**2)


def test_a_model_does_not_hold_where_the_loss_is_not_finite() -> None:
    steps = np.linspace(-1, 1, 5)
    assert holds_to(LossSlice(steps, np.array([np.nan, 2, 2, 2, 2.0]), loss=2.0, slope=0.0, curvature=1e-300)) == 0.5


@pytest.mark.parametrize(
    "slices",
    [
        None,
        {},
        {"smallest": None},
        {"smallest": {"steps": [-1, 0, 1], "losses": [1, 2]}},
        {"smallest": {"steps": [-1, None, 1], "losses": [1, 2, 1]}},
        {"smallest": {"steps": [-1, 0, 1], "losses": [None, None, 1]}},
        {"smallest": {"steps": [], "losses": []}},
    ],
)
def test_slices_without_numbers_are_left_out(slices: Any, make_probe: MakeRun) -> None:
    facts = read_facts(make_probe(slices=slices, smallest_slope=0.1, largest_slope=0.1), "run")
    assert slice_chart(facts, "slices") is None


def test_one_end_alone_and_holes_are_drawn(make_probe: MakeRun) -> None:
    slices = {"smallest": {"steps": [-0.1, 0, 0.1], "losses": [0.3, 0.34, None]}}
    made = slice_chart(read_facts(make_probe(slices=slices, smallest_slope=0.1, largest_slope=0.1), "run"), "slices")
    assert made is not None
    assert "the loss is 0.300, 0.340, – at" in made.description
    assert "largest" not in made.description


def test_the_path_is_drawn_by_phase_with_its_switch(facts: RunFacts) -> None:
    made = plane_chart(facts, "plane")
    assert made is not None
    for text in ("Adam", "cg-golden", "first", "switch, epoch 40", "training loss", "2nd (9.9\N{NO-BREAK SPACE}%)"):
        assert f">{text}<" in made.svg
    assert ">1st principal direction (81\N{NO-BREAK SPACE}% of the variance)<" in made.svg
    assert "13 × 7 points, loss of 411 of the 1,437 training examples" in made.caption
    assert "up to 0.35 off it. Cost: 8.6 gradient equivalents." in made.caption
    assert "81\N{NO-BREAK SPACE}% and 9.9\N{NO-BREAK SPACE}% of the variance of 11 checkpoints" in made.description
    assert "epoch 0 (start) at −4.0, 2.0" in made.description
    assert "Switch after epoch 40." in made.description


def test_a_path_without_phases_or_switch(make_probe: MakeRun) -> None:
    run = make_probe(phase="")
    write_json(run.landscape_path, plane_of(run.probe, examples=1437))
    made = plane_chart(read_facts(run, "run"), "plane")
    assert made is not None
    assert ">checkpoint<" in made.svg
    assert ">Adam<" not in made.svg
    assert "Switch" not in made.description
    assert "loss of all 1,437 training examples" in made.caption


@pytest.mark.parametrize("hole", [0, 3])
def test_a_plane_with_holes_is_drawn_and_one_without_values_is_not(hole: int, run: Run) -> None:
    plane = plane_of(run.probe)
    plane["losses"][hole] = [None] * 13
    write_json(run.landscape_path, plane)
    assert plane_chart(read_facts(run, "run"), "plane") is not None
    for losses in ([[None] * 13] * 7, [[1.0] * 13] * 7):
        write_json(run.landscape_path, plane | {"losses": losses})
        assert plane_chart(read_facts(run, "run"), "plane") is None


@pytest.mark.parametrize("high", [0.0101, 0.011, 0.02, 0.3, 100.0, 1e6, 1e40])
def test_levels_are_around_the_losses_and_few(high: float) -> None:
    low = 0.01
    levels, logarithmic = contour_levels(np.array([low, high]))
    assert levels[0] <= low
    assert levels[-1] >= high
    assert 4 <= levels.size <= 20
    assert (np.diff(levels) > 0).all()
    if logarithmic and high < 1e6:
        # Preferred numbers are rounded, at most 1, 3, 10.
        steps = np.diff(np.log(levels))
        assert steps.max() / steps.min() < 1.6
    # Fewer than three preferred numbers lie between the others.
    assert logarithmic == (high >= 0.02)


@pytest.mark.parametrize("losses", [[-1.0, 2.0], [0.0, 1.0], [-3e-9, -1e-9]])
def test_levels_of_losses_that_are_not_positive_are_even(losses: list[float]) -> None:
    levels, logarithmic = contour_levels(np.array(losses))
    assert not logarithmic
    assert levels[0] <= losses[0]
    assert levels[-1] >= losses[1]
    assert np.ptp(np.diff(levels)) < 1e-6 * np.ptp(levels)


# The page


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_both_and_says_what_may_be_concluded(run: Run) -> None:
    source = write_report([run]).read_text()
    text = source.replace("\N{NO-BREAK SPACE}", " ")
    parts = [">Curvature along training<", ">Loss surface<", ">The training path and the loss around it<"]
    parts += [">Slices along the extreme eigenvectors<", ">Verdicts<"]
    assert [text.index(part) for part in parts] == sorted(text.index(part) for part in parts)
    assert "One that bends up proves nothing: it is one of 154,058 directions, a plane is two" in text
    assert not re.findall(r"(?<!non-)\bconvex\b", text[text.index(">Loss surface<") : text.index(">Results<")])


@pytest.mark.slow
def test_six_long_runs_with_everything_fit_on_a_page(make_run: MakeRun) -> None:
    """The limit is 2 MB, and so many runs stand on a page in full."""
    run = make_run(epochs=1000, switch=300)
    add_surface(run)
    copies = [run.path.with_name(f"copy-{place}") for place in range(contents_module.MANY)]
    for copy in copies:
        shutil.copytree(run.path, copy)
    assert write_report([Run(copy) for copy in copies]).stat().st_size < 2e6


@pytest.mark.usefixtures("undrawn")
def test_the_part_is_left_out_without_data(make_run: MakeRun) -> None:
    assert "Loss surface" not in write_report([make_run()]).read_text()


@pytest.mark.usefixtures("undrawn")
def test_many_runs_leave_it_out(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "MANY", 1)
    runs = [make_run(name, epochs=20, switch=8) for name in "ab"]
    for run in runs:
        add_surface(run)
    assert "Loss surface" not in write_report(runs).read_text()


def test_names_are_escaped(make_run: MakeRun) -> None:
    run = make_run(summary={"phase_two": HOSTILE}, probe={"checkpoint": HOSTILE, "phase": HOSTILE, "epoch": None})
    rows = run.probe
    write_json_lines(run.probe_path, [row | slices_of(row) for row in rows])
    write_json(run.landscape_path, plane_of([row | {"epoch": k} for k, row in enumerate(rows)]))
    source = write_report([run]).read_text()
    assert "Loss surface" in source
    assert source.count("<script") == 1  # The page's own.
    assert "&lt;script&gt;" in source


@pytest.mark.usefixtures("undrawn")
def test_a_damaged_file_is_refused_and_the_old_page_stays(run: Run) -> None:
    before = write_report([run]).read_bytes()
    run.landscape_path.write_text(json.dumps(plane_of(run.probe) | {"x": [1, 2]}))
    with pytest.raises(MisuseError, match=r"landscape.json', expected a loss on a plane.*Delete the file"):
        write_report([run])
    assert run.report_path.read_bytes() == before


def test_the_same_files_give_the_same_bytes(run: Run, tmp_path: Path) -> None:
    assert (
        write_report([run], tmp_path / "a.html").read_bytes() == write_report([run], tmp_path / "b.html").read_bytes()
    )

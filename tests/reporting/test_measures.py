"""Any problem's report: named numbers in tables and charts under their names, and nothing that only images have."""

from __future__ import annotations

import html
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from convexlab.reporting import contents as contents_module
from convexlab.reporting import summary_lines, write_report
from convexlab.reporting.charts import curves
from convexlab.reporting.charts import measures as measures_module
from convexlab.reporting.charts.measures import drawable_measures, measure_charts
from convexlab.reporting.charts.style import MOST_POINTS, thinned
from convexlab.reporting.charts.training import cost_charts
from convexlab.reporting.facts.run import RunFacts, read_facts, value_at
from convexlab.reporting.parts.tables import measures_table, results_table
from convexlab.reporting.tables import Table
from convexlab.reporting.words.measures import measure_heading, measure_value
from convexlab.runs import Run

MakeRun = Callable[..., Run]
Row = dict[str, Any]
SWITCH, EPOCHS = 1000, 5000


def _trained(run: str, every: int, epochs: int, names: dict[str, float]) -> Iterator[Row]:
    """Rows of every k-th epoch of a noisy full-batch run, with measures in one of ten of them."""
    random = np.random.default_rng(len(run))
    for place, epoch in enumerate(range(0, epochs + 1, every)):
        phase = "start" if epoch == 0 else "adam" if epoch <= SWITCH or run != "two-phase" else "lbfgs"
        noise = math.exp(0.1 * random.standard_normal())
        row = {"run": run, "phase": phase, "epoch": epoch, "gradient_equivalents": 1.0 * epoch, "seconds": 0.01 * epoch}
        row |= {"train_loss": noise * math.exp(-epoch / 500), "gradient_norm": noise / (1 + epoch)}
        measured = {name: start * math.exp(-epoch / 1000) for name, start in names.items()}
        yield row | (measured if place % 10 == 0 else {})


def build_objective_run(
    path: Path, names: dict[str, float], *, every: int = 3, epochs: int = EPOCHS, finished: bool = True
) -> Run:
    """Write the files of a run of an objective as training writes them."""
    path.mkdir(parents=True)
    config = {"objective": "pinn-burgers", "model": None, "dataset": None, "loss": None, "epochs": epochs, "seed": 0}
    (path / "config.json").write_text(json.dumps(config))
    runs = ("two-phase", "adam-constant", "adam-cosine")
    rows = [row for run in runs for row in _trained(run, every, epochs, names)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = {"gradient_equivalents": epochs, "seconds": 50.0, "epoch": epochs, "cost_breakdown": {"adam": epochs}}
    summary = {
        "schema": 1,
        "model": {"name": "pinn-burgers", "parameters": 1321},
        "dataset": {"name": "pinn-burgers", "train_size": None},
        "loss": "the objective's own",
        "measures": list(names),
        "seed": 0,
        "budget": epochs,
        "switch": {"epoch": SWITCH, "detector": "budget", "train_loss": 0.1, "gradient_norm": 1e-3, "reason": "set"},
        "phase_two": "lbfgs",
        "two_phase": outcome | {"train_loss": 1e-6} | dict.fromkeys(names, 0.125),
        "baselines": {run: outcome | {"train_loss": 1e-5} | dict.fromkeys(names, 0.25) for run in runs[1:]},
    }
    if finished:
        (path / "summary.json").write_text(json.dumps(summary))
    return Run(path)


NAMES = {"validation_loss": 0.5, "validation_accuracy": 0.4, "relative_error": 1.0, "max_residual": 3.0}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> RunFacts:
    return read_facts(build_objective_run(tmp_path_factory.mktemp("objective") / "run", NAMES), "run")


def _cells(table: Table | None) -> dict[str, list[str]]:
    assert table is not None
    titles = [column.title for column in table.columns]
    return {title: [row[place].text for row in table.rows] for place, title in enumerate(titles)}


def _texts(svg: str) -> set[str]:
    return {element.text or "" for element in ElementTree.fromstring(svg).iter("text")}


def _visible(source: str) -> str:
    text = re.sub(r"<(style|title|desc)\b.*?</\1>", " ", source, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


# Words and tables


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("train_accuracy", "Training accuracy"),
        ("validation_loss", "Validation loss"),
        ("validation_accuracy", "Validation accuracy"),
        ("relative_error", "Relative error"),
        ("max_residual", "Max residual"),
        ("L2", "L2"),
        ("_", "Unnamed"),
    ],
)
def test_a_measure_is_called_by_its_name(name: str, heading: str) -> None:
    assert measure_heading(name) == heading


def test_an_accuracy_has_three_decimals_and_other_numbers_three_digits() -> None:
    assert measure_value("accuracy", 0.96444) == "0.964"
    assert measure_value("accuracy", 96.4) == "96.4"
    assert measure_value("relative_error", 0.00012345) == "1.23×10⁻⁴"
    assert measure_value("accuracy", None) == measure_value("x", None) == "–"


def test_results_have_a_column_a_measure_and_none_of_what_is_not_known(facts: RunFacts) -> None:
    table = results_table(facts)
    cells = _cells(table)
    assert list(cells) == [
        "Model variant",
        "Algorithm",
        "Train loss",
        "Validation loss",
        "Validation accuracy",
        "Relative error",
        "Max residual",
        "Gradient equivalents",
        "Best epoch",
        "Seconds",
    ]
    assert cells["Max residual"] == ["0.250", "0.250", "0.125"]
    assert table is not None
    # The objective is model and data in one.
    assert table.caption.startswith("Results of pinn-burgers, each run")


def test_runs_with_different_measures_are_compared(facts: RunFacts, make_bare: MakeRun) -> None:
    images = read_facts(make_bare("images"), "images")
    cells = _cells(measures_table([facts, images], ["a", "b"]))
    assert cells["Max residual, two-phase"] == ["0.125", "–"]
    assert cells["Max residual, better Adam"] == ["0.250", "–"]
    assert cells["Training accuracy, two-phase"] == ["–", "0.999"]
    assert cells["Validation accuracy, better Adam"] == ["0.250", "0.964"]


@pytest.mark.usefixtures("undrawn")
def test_without_measures_there_is_no_table_and_no_chart(tmp_path: Path) -> None:
    runs = [read_facts(build_objective_run(tmp_path / name, {}, every=500), name) for name in "ab"]
    assert measures_table(runs, ["a", "b"]) is None
    assert drawable_measures(runs[0]) == []
    source = write_report([Run(tmp_path / "a"), Run(tmp_path / "b")]).read_text("utf-8")
    assert "Other measures" not in source
    assert "Other measures, at" not in source


# Charts


def test_each_measure_is_drawn_over_cost_with_the_switch(facts: RunFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Axes] = []
    monkeypatch.setattr(measures_module, "legend", drawn.append)
    names = drawable_measures(facts)
    charts = measure_charts(facts, names, "key")
    assert [made.title for made in charts] == [measure_heading(name) for name in NAMES]
    assert [made.key for made in charts] == ["key-0", "key-1", "key-2", "key-3"]
    for made, axes in zip(charts, drawn, strict=True):
        assert {"switch", "cost in gradient equivalents"} <= _texts(made.svg)
        assert made.description.startswith("Adam + lbfgs: ")
        lines = {str(line.get_label()): line for line in axes.lines}
        cost = np.asarray(lines["Adam, constant rate"].get_xdata(), dtype=np.float64)
        # Every tenth of the rows, which are every third epoch.
        np.testing.assert_array_equal(cost, np.arange(0.0, EPOCHS + 1, 30))
        # The phases join: the second begins where the first ends.
        first, second = (np.asarray(lines[name].get_xdata()) for name in ("Adam (phase one)", "lbfgs"))
        assert first[-1] == second[0] == 990
        assert axes.get_xlim()[1] == pytest.approx(1.05 * EPOCHS, rel=0.01)


def test_the_axis_of_thinned_rows_is_that_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch stands at its own cost, recorded or not."""
    placed: list[float] = []
    monkeypatch.setattr(Axes, "axvline", lambda axes, x, **options: placed.append(float(x)))
    for every in (1, 3):
        made = read_facts(build_objective_run(tmp_path / str(every), {}, every=every), "run")
        assert made.switch_share == pytest.approx(SWITCH / EPOCHS)
        assert [chart.title for chart in cost_charts(made, "cost")] == ["Loss over cost", "Loss over time"]
    # In gradient equivalents and in seconds; 1,000 is no multiple of three.
    assert placed == pytest.approx([SWITCH, 0.01 * SWITCH] * 2)


def test_a_value_between_two_recorded_epochs_lies_between_theirs() -> None:
    epochs, values = np.array([0.0, 3.0, 6.0]), np.array([1.0, np.nan, 7.0])
    assert value_at(epochs, values, 3.0) == pytest.approx(4.0)
    assert value_at(epochs, values, 6.5) is None
    assert value_at(epochs, np.full(3, np.nan), 3.0) is None


def test_a_long_line_keeps_its_extremes() -> None:
    random = np.random.default_rng(0)
    x, y = np.arange(5000.0), random.standard_normal(5000)
    few_x, few_y = thinned(x, y)
    assert len(few_x) <= MOST_POINTS
    assert (few_x[0], few_x[-1], few_y.min(), few_y.max()) == (0, 4999, y.min(), y.max())
    np.testing.assert_array_equal(few_y, y[few_x.astype(int)])
    np.testing.assert_array_equal(thinned(x[:MOST_POINTS], y[:MOST_POINTS])[0], x[:MOST_POINTS])


# The page


def test_a_run_of_5000_epochs_has_a_small_page(facts: RunFacts, tmp_path: Path) -> None:
    run = build_objective_run(tmp_path / "run", NAMES)
    source = write_report([run]).read_text("utf-8")
    assert len(source.encode()) < 2e6
    text = _visible(source)
    assert text.index("Loss over cost") < text.index("Other measures along training") < text.index("Results of pinn")
    assert not {"None", "nan"} & set(text.split())
    assert summary_lines([run])[1].startswith("It switched from Adam to lbfgs after epoch 1,000")
    # Six of them fit on one page in full, data aside.
    data = sum(len(address) for address in re.findall(r'href="(data:[^"]*)"', source))
    assert 6 * (len(source.encode()) - data) < 2e6


def test_an_unfinished_run_shows_what_it_has_measured(tmp_path: Path) -> None:
    run = build_objective_run(tmp_path / "run", {"max_residual": 1.0}, every=50, finished=False)
    assert read_facts(run, "run").measures == ("max_residual",)
    assert "Max residual" in _visible(write_report([run]).read_text("utf-8"))


HOSTILE = "</title><script>alert('x')</script>\"'&$a$ 数据_" + 80 * "x"


def test_any_name_is_escaped(tmp_path: Path) -> None:
    run = build_objective_run(tmp_path / "run", {HOSTILE: 1.0}, every=100)
    source = write_report([run]).read_text("utf-8")
    assert source.count("<script") == 1  # The page's own.
    assert measure_heading(HOSTILE) in _visible(source)


def test_of_very_many_measures_the_first_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "MOST_MEASURES", 2)
    names = {f"m_{place}": 1.0 for place in range(5)}
    run = build_objective_run(tmp_path / "run", names, every=100)
    source = write_report([run]).read_text("utf-8")
    assert len(re.findall(r'<figure id="run-1-measure', source)) == 2
    assert "3 more measures were taken along training; the data have them." in _visible(source)
    assert "M 4" in _visible(source)


def test_older_runs_have_the_measures_that_they_have(make_bare: MakeRun) -> None:
    old = read_facts(make_bare(), "run")
    assert {"Training accuracy", "Validation loss", "Validation accuracy"} <= set(_cells(results_table(old)))
    assert "Relative error" not in _cells(results_table(old))
    assert drawable_measures(old) == []
    assert curves.both_known(np.array([1.0, np.nan]), np.array([1.0, 1.0])).tolist() == [0]

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from matplotlib.axes import Axes

from convexlab.reporting.charts import density as density_figure
from convexlab.reporting.charts.comparison import comparison_chart
from convexlab.reporting.charts.curvature import eigenvalue_chart, mass_chart
from convexlab.reporting.charts.density import density_chart, linear_width, shown_checkpoints
from convexlab.reporting.charts.several import negative_curvature_chart, track_of
from convexlab.reporting.charts.style import draw, label, scale_asinh, scale_linear, scale_log, spans_far
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.charts.training import cost_charts, norm_chart
from convexlab.reporting.facts.run import RunFacts, read_facts
from convexlab.runs import Run
from convexlab.runs.rows import ProbedCheckpoint, Switch

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def facts(full_run: Run) -> RunFacts:
    return read_facts(full_run, "run")


def _ticks(axes: Axes, which: str) -> list[str]:
    """The texts at an axis, within what it shows."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    low, high = axis.get_view_interval()
    write = axis.get_major_formatter()
    return [write(tick) for tick in axis.get_ticklocs() if low <= tick <= high]


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_every_chart_of_a_run_is_drawn(facts: RunFacts) -> None:
    titles = [made.title for made in cost_charts(facts, "cost")]
    assert titles == ["Loss over cost", "Loss over the paper's axis", "Loss over time"]
    for make in (norm_chart, eigenvalue_chart, mass_chart, density_chart):
        assert make(facts, "key") is not None


def test_charts_of_nothing_are_none(make_bare: MakeRun) -> None:
    facts = read_facts(make_bare(finished=False), "run")
    assert cost_charts(facts, "cost") == []
    for make in (norm_chart, eigenvalue_chart, mass_chart, density_chart):
        assert make(facts, "key") is None
    assert comparison_chart([facts], "key") is None


def test_figure_5_marks_start_and_switch_in_picture_and_words(facts: RunFacts) -> None:
    made = norm_chart(facts, "norm")
    assert made is not None
    texts = _texts(made.svg)
    for expected in ("Adam (phase one)", "cg-golden", "start", "switch, epoch 40", "gradient norm"):
        assert expected in texts
    assert "Switch to cg-golden after epoch 40: loss 0.0" in made.description
    assert made.description in made.svg


def test_figure_6_has_baselines_and_says_the_numbers(facts: RunFacts) -> None:
    made = cost_charts(facts, "cost")[0]
    assert {"Adam, constant rate", "Adam, cosine rate", "switch"} <= set(_texts(made.svg))
    assert "Adam + cg-golden: loss 0.3" in made.description
    assert "lowest 1.40×10⁻⁴, 1.40×10⁻⁴ at the end, after 120 gradient equivalents." in made.description


def test_the_papers_axis_needs_the_model_size(facts: RunFacts) -> None:
    facts = dataclasses.replace(facts, parameters=None)
    assert [made.title for made in cost_charts(facts, "cost")] == ["Loss over cost", "Loss over time"]


def test_drawing_changes_no_global_setting(facts: RunFacts) -> None:
    before = dict(mpl.rcParams)
    norm_chart(facts, "norm")
    assert dict(mpl.rcParams) == before


def test_the_same_data_give_the_same_bytes(facts: RunFacts) -> None:
    assert density_chart(facts, "key") == density_chart(facts, "key")


@pytest.mark.parametrize(
    ("values", "far"),
    [([1.0, 30.0], True), ([1.0, 10.0], False), ([0.0, 30.0], False), ([-1.0, 30.0], False), ([], False)],
)
def test_an_axis_is_logarithmic_only_for_far_and_positive_values(values: list[float], far: bool) -> None:
    assert spans_far(values) is far
    assert spans_far([*values, float("nan")]) is far


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1e-4, 0.2], ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹"]),
        ([0.03, 30.0], ["0.1", "1", "10"]),
        ([0.9, 7.0], ["1", "2", "5"]),
        # Two of 1, 2, 5 are too few: every digit, thinned to at most six.
        ([0.026, 0.13], ["0.03", "0.05", "0.07", "0.09"]),
        ([0.0611, 0.0612], ["0.0611", "0.06112", "0.06114", "0.06116", "0.06118", "0.0612"]),
    ],
)
def test_logarithmic_ticks(values: list[float], ticks: list[str]) -> None:
    with draw() as (_, (axes,)):
        axes.plot(values, values)
        scale_log(axes, "x")
        low, high = axes.get_xlim()
        assert low < min(values) < max(values) < high
        assert _ticks(axes, "x") == ticks


def test_ticks_on_both_sides_of_zero_keep_their_sign() -> None:
    with draw() as (_, (axes,)):
        axes.plot([0, 1], [-0.5, 8.0])
        scale_asinh(axes, "y", 0.008)
        low, high = axes.get_ylim()
        assert low < -0.5 < 8.0 < high
        assert _ticks(axes, "y") == ["−0.1", "−0.01", "0", "0.01", "0.1", "1", "10"]


def test_a_linear_axis_writes_plain_numbers() -> None:
    with draw() as (_, (axes,)):
        axes.plot([0, 25000], [-1, 1])
        scale_linear(axes, "x")
        assert _ticks(axes, "x") == ["0", "5,000", "10,000", "15,000", "20,000", "25,000"]


@pytest.mark.parametrize("name", ["a$b$c", "数据 ᚠ", "tab\there", "<b>&amp;", "\udcff", 80 * "x"])
def test_names_of_users_survive(name: str) -> None:
    """Dollar signs are no formula, glyphs missing from the measuring font no warning, marks no markup."""
    with draw() as (figure, (axes,)):
        axes.set_xlabel(label(name))
        made = chart(figure, key="key", title=label(name), caption="", description=label(name))
    assert label(name) in _texts(made.svg)
    assert len(label(name)) <= 36
    made.svg.encode()


def _checkpoint(nodes: list[float], weights: list[float], **changes: object) -> ProbedCheckpoint:
    return ProbedCheckpoint.from_row({"epoch": 1, "density": {"nodes": nodes, "weights": weights}} | changes)


def test_density_is_the_mixture_of_gaussians_on_the_drawn_axis() -> None:
    """Against SciPy's normal density, and of area one."""
    checkpoint = _checkpoint([-0.5, 0.0, 2.0, 40.0], [0.1, 0.6, 0.25, 0.05])
    width = linear_width([checkpoint])
    assert width == pytest.approx(0.04, rel=1e-12)
    grid, sigma = density_figure._grid([checkpoint], width)
    drawn = density_figure._density(checkpoint, grid, width, sigma)
    centres = np.arcsinh(np.array([-0.5, 0.0, 2.0, 40.0]) / width)
    expected = sum(
        w * scipy.stats.norm.pdf(grid, c, sigma) for w, c in zip([0.1, 0.6, 0.25, 0.05], centres, strict=True)
    )
    np.testing.assert_allclose(drawn, expected, rtol=1e-10, atol=1e-300)
    # What lies between the ends of the grid, 4 sigma beyond the outer lines of weights 0.1 and 0.05, by SciPy. The
    # trapezoid rule errs by h^2 / 12 times the slopes at the ends (Euler-Maclaurin), 4 / sigma^2 phi(4) a weight.
    area = 1 - 0.15 * scipy.stats.norm.sf(4)
    step = grid[1] - grid[0]
    error = step**2 / 12 * 0.15 * 4 / sigma**2 * scipy.stats.norm.pdf(4)
    assert error < 1e-5
    assert scipy.integrate.trapezoid(drawn, grid) == pytest.approx(area, abs=1.01 * error)


def test_the_linear_part_of_the_axis_covers_the_rounding_floor() -> None:
    assert linear_width([_checkpoint([1e-6], [1.0], rounding_floor=1e-3)]) == 1e-3


def _row_names(made: Chart | None) -> list[str]:
    """The texts at the rows of a ridge, upwards: they stand at the left, each on a line of its own."""
    assert made is not None
    texts = [t for t in ElementTree.fromstring(made.svg).iter("text") if t.get("text-anchor") == "end"]
    return [t.text or "" for t in sorted(texts, key=lambda t: -float(str(t.get("y"))))]


def test_densities_are_rows_with_the_epochs_upwards_and_the_switch_named(facts: RunFacts) -> None:
    made = density_chart(facts, "key")
    assert _row_names(made) == ["0", "12", "24", "36", "switch, 40", "48", "60", "72", "84", "96", "100"]
    assert made is not None
    assert {"start", "Adam (phase one)", "cg-golden", "below the grey part"} <= set(_texts(made.svg))
    assert made.description.count("of the weight below zero") == 11
    assert made.description.startswith("epoch 0: from −0.543 to 3.00, 0.315 of the weight below zero")


@pytest.mark.parametrize("count", [1, 2, 15])
def test_few_and_many_densities_are_drawn(make_probe: MakeRun, count: int) -> None:
    facts = read_facts(make_probe(count=count), "probe")
    assert _row_names(density_chart(facts, "key")) == [str(50 * index) for index in range(count)]
    for make in (eigenvalue_chart, mass_chart):
        assert make(facts, "key") is not None


def test_of_very_many_densities_the_ends_and_the_switch_are_among_those_drawn(make_probe: MakeRun) -> None:
    facts = read_facts(make_probe(count=40), "probe")
    evenly = [checkpoint.epoch for checkpoint in shown_checkpoints(facts)]
    assert 50 * 37 not in evenly
    at_37 = Switch(50.0 * 37, "", None, None, "")
    shown = [c.epoch for c in shown_checkpoints(dataclasses.replace(facts, switch=at_37))]
    assert len(evenly) == len(shown) == len(set(shown)) == 16
    assert shown == sorted(shown, key=float)
    assert {0.0, 50.0 * 37, 50.0 * 39} <= set(shown)
    made = density_chart(facts, "key")
    assert made is not None
    assert "(16 of 40 checkpoints)" in made.caption


def test_a_row_is_as_high_as_its_density_and_hatched_below_zero_only() -> None:
    """One line of the spectrum at -1 and one at 2, nothing between: the row has two humps and a hatch on the left."""
    checkpoint = _checkpoint([-1.0, 2.0], [0.5, 0.5])
    width = linear_width([checkpoint])
    grid, sigma = density_figure._grid([checkpoint], width)
    density = density_figure._density(checkpoint, grid, width, sigma)
    bottom, top = density_figure._decades([checkpoint], sigma)
    # Both lines reach half of a Gaussian's peak, which lies between the ends of the scale.
    assert 10.0**bottom < density.max() <= 0.5 / (sigma * np.sqrt(2 * np.pi)) * (1 + 1e-9) < 10.0**top
    height = np.log10(np.maximum(density, 10.0**bottom)) - bottom
    look = density_figure._look(checkpoint, "cg")
    with draw() as (_, (axes,)):
        density_figure._draw_row(axes, 3, width * np.sinh(grid), height, look, width)
        filled, hatched = (collection.get_paths()[0] for collection in axes.collections)
        humps = [path.vertices for path in axes.collections[0].get_paths()]
        assert len(humps) == 2
        assert len(axes.collections[1].get_paths()) == 1
        assert np.asarray(hatched.vertices)[:, 0].max() < 0
        np.testing.assert_allclose(np.asarray(filled.vertices)[:, 1].max(), 3 + height[grid < 0].max())


def test_checkpoints_of_unknown_epoch_are_drawn_in_order(make_probe: MakeRun) -> None:
    made = eigenvalue_chart(read_facts(make_probe(epoch=None), "probe"), "key")
    assert made is not None
    assert "checkpoint, in order" in _texts(made.svg)
    assert "epoch-00050.safetensors: smallest" in made.description


def test_a_chart_carries_its_numbers(full_run: Run, facts: RunFacts) -> None:
    drawn = cost_charts(facts, "run-1")[0]
    axes = ElementTree.fromstring(drawn.svg).find(".//*[@data-box]")
    assert axes is not None
    assert json.loads(axes.attrib["data-names"]) == ["gradient equivalents", "training loss"]
    scale, low, high = axes.attrib["data-y"].split()
    assert scale == "log"
    assert float(low) < 1.4e-4
    assert float(high) > 0.3
    lines = {line.get("data-name"): line.get("data-points", "") for line in axes.iterfind(".//*[@data-points]")}
    assert list(lines) == ["Adam, constant rate", "Adam, cosine rate", "Adam (phase one)", "cg-golden"]
    rows = [row for row in full_run.metrics if row["run"] == "adam-constant"]
    expected = [f"{row['gradient_equivalents']:.6g},{row['train_loss']:.6g}" for row in rows]
    assert lines["Adam, constant rate"].split() == expected
    # What another scale reads, and where: within the same ends.
    ticks = json.loads(axes.attrib["data-linear"])
    assert len(ticks) > 3
    assert all(float(low) <= value <= float(high) for value, _ in ticks)
    # The switch is a line across, at no point of a curve.
    others = [line for line in axes.iterfind(".//*[@data-drawn]") if "data-points" not in line.attrib]
    assert [line.get("data-name") for line in others] == [None]


def test_a_long_curve_carries_some_of_its_points_with_the_last(make_run: MakeRun) -> None:
    run = make_run(epochs=1000, switch=300)
    last = {(row["run"], row["phase"]): f"{row['train_loss']:.6g}" for row in run.metrics}
    drawn = cost_charts(read_facts(run, "run"), "run-1")[0]
    ends = []
    for line in ElementTree.fromstring(drawn.svg).iterfind(".//*[@data-points]"):
        points = line.attrib["data-points"].split()
        assert len(points) <= 202
        ends.append(points[-1].split(",")[1])
    assert ends == [last["adam-constant", "adam"], last["adam-cosine", "adam"], last["two-phase", "adam"], ends[3]]
    assert ends[3] == last["two-phase", "cg-golden"]


def test_negative_curvature_of_several_runs_over_their_loss(facts: RunFacts, make_bare: MakeRun) -> None:
    tracks = [track_of(facts, place) for place in range(2)]
    first = tracks[0]
    assert first is not None
    probe = [c for c in facts.probe if c.smallest is not None and c.largest and c.train_loss]
    assert first.ratios == tuple((c.smallest or 0.0) / (c.largest or 1.0) for c in probe)
    assert first.losses[0] == 1.0
    assert first.losses == tuple(sorted(first.losses, reverse=True))
    drawn = negative_curvature_chart(filter(None, tracks), "key")
    assert drawn is not None
    (axes,) = drawn.figure.axes if drawn.figure else ()
    lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == len(probe)]
    assert [line.get_label() for line in lines] == ["run", "_run"]
    # The last two are −10⁻⁷, as good as zero.
    assert np.asarray(lines[0].get_ydata())[-1] == pytest.approx(1e-5)
    assert axes.get_xlim()[0] > axes.get_xlim()[1]
    # Runs that were not probed, or hold no number, have none.
    assert track_of(read_facts(make_bare(), "bare"), 0) is None
    assert negative_curvature_chart([], "key") is None

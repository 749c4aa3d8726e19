from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from matplotlib.axes import Axes

from convexlab.reporting import density_figure
from convexlab.reporting.comparison_figure import comparison_chart
from convexlab.reporting.curvature_figures import eigenvalue_chart, mass_chart
from convexlab.reporting.density_figure import chosen_checkpoints, density_chart, linear_width
from convexlab.reporting.digest import Digest, read_digest
from convexlab.reporting.figures import draw, label, scale_asinh, scale_linear, scale_log, spans_far
from convexlab.reporting.records import ProbedCheckpoint
from convexlab.reporting.svg import chart
from convexlab.reporting.training_figures import cost_charts, norm_chart
from convexlab.runs import Run

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def digest(full_run: Run) -> Digest:
    return read_digest(full_run, "run")


def _ticks(axes: Axes, which: str) -> list[str]:
    """The texts at an axis, within what it shows."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    low, high = axis.get_view_interval()
    write = axis.get_major_formatter()
    return [write(tick) for tick in axis.get_ticklocs() if low <= tick <= high]


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def test_every_chart_of_a_run_is_drawn(digest: Digest) -> None:
    titles = [made.title for made in cost_charts(digest, "cost")]
    assert titles == ["Loss over cost", "Loss over the paper's axis", "Loss over time"]
    for make in (norm_chart, eigenvalue_chart, mass_chart, density_chart):
        assert make(digest, "key") is not None


def test_charts_of_nothing_are_none(make_bare: MakeRun) -> None:
    digest = read_digest(make_bare(finished=False), "run")
    assert cost_charts(digest, "cost") == []
    for make in (norm_chart, eigenvalue_chart, mass_chart, density_chart):
        assert make(digest, "key") is None
    assert comparison_chart([digest], "key") is None


def test_figure_5_marks_start_and_switch_in_picture_and_words(digest: Digest) -> None:
    made = norm_chart(digest, "norm")
    assert made is not None
    texts = _texts(made.svg)
    for expected in ("Adam (phase one)", "cg-golden (phase two)", "start", "switch, epoch 40", "gradient norm"):
        assert expected in texts
    assert "Switch to cg-golden after epoch 40: loss 0.0" in made.description
    assert made.description in made.svg


def test_figure_6_has_baselines_and_says_the_numbers(digest: Digest) -> None:
    made = cost_charts(digest, "cost")[0]
    assert {"Adam, constant rate", "Adam, cosine rate", "switch"} <= set(_texts(made.svg))
    assert "Adam + cg-golden: loss 0.3" in made.description
    assert "lowest 1.40×10⁻⁴, 1.40×10⁻⁴ at the end, after 120 gradient equivalents." in made.description


def test_the_papers_axis_needs_the_model_size(digest: Digest) -> None:
    digest = dataclasses.replace(digest, parameters=None)
    assert [made.title for made in cost_charts(digest, "cost")] == ["Loss over cost", "Loss over time"]


def test_drawing_changes_no_global_setting(digest: Digest) -> None:
    before = dict(mpl.rcParams)
    norm_chart(digest, "norm")
    assert dict(mpl.rcParams) == before


def test_the_same_data_give_the_same_bytes(digest: Digest) -> None:
    assert density_chart(digest, "key") == density_chart(digest, "key")


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
    found = density_figure._density(checkpoint, grid, width, sigma)
    centres = np.arcsinh(np.array([-0.5, 0.0, 2.0, 40.0]) / width)
    expected = sum(
        w * scipy.stats.norm.pdf(grid, c, sigma) for w, c in zip([0.1, 0.6, 0.25, 0.05], centres, strict=True)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-300)
    # What lies between the ends of the grid, 4 sigma beyond the outer lines of weights 0.1 and 0.05, by SciPy. The
    # trapezoid rule errs by h^2 / 12 times the slopes at the ends (Euler-Maclaurin), 4 / sigma^2 phi(4) a weight.
    area = 1 - 0.15 * scipy.stats.norm.sf(4)
    step = grid[1] - grid[0]
    error = step**2 / 12 * 0.15 * 4 / sigma**2 * scipy.stats.norm.pdf(4)
    assert error < 1e-5
    assert scipy.integrate.trapezoid(found, grid) == pytest.approx(area, abs=1.01 * error)


def test_the_linear_part_of_the_axis_covers_the_rounding_floor() -> None:
    assert linear_width([_checkpoint([1e-6], [1.0], rounding_floor=1e-3)]) == 1e-3


@pytest.mark.parametrize(
    ("switch", "names"),
    [
        (40, ["first", "switch", "last"]),
        (41, ["first", "nearest the switch", "last"]),
        (0, ["first, switch", "last"]),
        (None, ["first", "middle", "last"]),
    ],
)
def test_densities_shown_are_start_switch_and_end(make_run: MakeRun, switch: int | None, names: list[str]) -> None:
    digest = read_digest(make_run(summary={"switch": {"epoch": switch}}), "run")
    chosen = chosen_checkpoints(digest)
    assert [name for name, _ in chosen] == names
    assert [checkpoint.epoch for _, checkpoint in chosen][:: len(chosen) - 1] == [0, 100]


def test_a_single_checkpoint_is_drawn(make_probe: MakeRun) -> None:
    digest = read_digest(make_probe(count=1), "probe")
    assert [name for name, _ in chosen_checkpoints(digest)] == ["only one"]
    for make in (eigenvalue_chart, mass_chart, density_chart):
        assert make(digest, "key") is not None


def test_checkpoints_of_unknown_epoch_are_drawn_in_order(make_probe: MakeRun) -> None:
    made = eigenvalue_chart(read_digest(make_probe(epoch=None), "probe"), "key")
    assert made is not None
    assert "checkpoint, in order" in _texts(made.svg)
    assert "epoch-00050.safetensors: smallest" in made.description

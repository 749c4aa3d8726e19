"""Results as figures: the report's charts, of whatever a notebook has at hand."""

from __future__ import annotations

import io

import pytest
import torch
from matplotlib.figure import Figure

import convexlab as cl
from convexlab.errors import MisuseError
from convexlab.probing import Probe
from convexlab.reporting.charts.curvature import eigenvalue_chart
from convexlab.reporting.facts.run import read_facts
from convexlab.runs import Run


@pytest.mark.parametrize("name", ["ends", "density", "mass", "slices", "norm", "loss"])
def test_a_run_has_the_reports_charts(name: str, finished: Run) -> None:
    figure = cl.plot(finished, name)
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), format="png")
    assert all(axes.has_data() for axes in figure.axes[:1])


def test_it_is_the_reports_own_figure(finished: Run) -> None:
    drawn = eigenvalue_chart(read_facts(finished, finished.path.name), "report")
    assert drawn is not None
    assert drawn.figure is not None
    ours, theirs = cl.plot(finished).axes[0], drawn.figure.axes[0]
    assert len(ours.lines) > 3
    assert [line.get_xydata().tolist() for line in ours.lines] == [line.get_xydata().tolist() for line in theirs.lines]
    assert ours.get_ylabel() == theirs.get_ylabel()


def test_a_path_a_probe_and_its_checkpoints(finished: Run) -> None:
    probe = Probe(finished, finished.probe)
    lines = [
        axes.lines[1].get_xydata().tolist()
        for result in (finished, str(finished.path), probe, probe.checkpoints)
        for axes in cl.plot(result).axes
    ]
    assert len(lines) == 4
    assert all(line == lines[0] for line in lines)
    assert len(cl.plot(probe.checkpoints[0]).axes) == 1


def test_a_spectral_density_has_a_row(finished: Run) -> None:
    matrix = torch.diag(torch.linspace(-1, 3, 20, dtype=torch.float64))
    figure = cl.plot(cl.spectral_density(_Dense(matrix), probes=2, steps=10))
    low, high = figure.axes[0].get_xlim()
    assert low < -0.9
    assert high > 2.9


def test_what_cannot_be_drawn_says_what_can(finished: Run) -> None:
    checkpoint = Probe(finished, finished.probe).checkpoints[0]
    with pytest.raises(MisuseError, match="'norm': expected one of 'ends', 'density'"):
        cl.plot(checkpoint, "norm")
    with pytest.raises(MisuseError, match="Did you mean 'density'"):
        cl.plot(finished, "densty")
    with pytest.raises(MisuseError, match="got int"):
        cl.plot(3)
    with pytest.raises(AttributeError, match="plott"):
        _ = cl.plott


class _Dense:
    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix, self.shape, self.dtype, self.device = matrix, matrix.shape, matrix.dtype, matrix.device

    def matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self.matrix @ v

"""A result as a matplotlib figure, for notebooks: the report's own charts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from convexlab.errors import MisuseError, unknown_name
from convexlab.reporting.charts.curvature import eigenvalue_chart, mass_chart
from convexlab.reporting.charts.density import density_chart
from convexlab.reporting.charts.plane import plane_chart
from convexlab.reporting.charts.slices import slice_chart
from convexlab.reporting.charts.svg import Chart
from convexlab.reporting.charts.training import cost_charts, norm_chart
from convexlab.reporting.facts.run import RunFacts, facts_of_probe, read_facts
from convexlab.runs import Run
from convexlab.runs.rows import ProbedCheckpoint

__all__ = ["plot"]

_CHARTS: Mapping[str, Callable[[RunFacts, str], Chart | None]] = MappingProxyType(
    {
        "ends": eigenvalue_chart,
        "density": density_chart,
        "mass": mass_chart,
        "slices": slice_chart,
        "plane": plane_chart,
        "norm": norm_chart,
        "loss": lambda facts, key: next(iter(cost_charts(facts, key, slice(1))), None),
    }
)


def plot(result: Any, chart: str | None = None) -> Figure:
    """Return a result as a matplotlib figure, drawn as the report draws it.

    A notebook displays the figure; ``figure.savefig("ends.pdf")`` stores it.

    Args:
        result: a `Run` or the path of one, a `Probe`, one of its ``checkpoints`` or several, or a `SpectralDensity`.
        chart: "ends" of the spectrum along checkpoints, spectral "density", negative "mass", loss "slices" along the
            extreme eigenvectors, or loss on the "plane" of the path. For a training run also gradient "norm" over the
            loss, or "loss" over the cost. None is the ends; for a density or one checkpoint it is the density.

    Raises:
        MisuseError: an unknown chart, an unknown kind of result, or a result without the data of the chart.
    """
    facts, default = _facts_of(result)
    name = chart or default
    if name not in _CHARTS:
        raise unknown_name("chart", name, _CHARTS)
    drawn = _CHARTS[name](facts, "plot")
    if drawn is None or drawn.figure is None:
        others = [other for other, draw in _CHARTS.items() if draw(facts, "plot") is not None]
        raise MisuseError(
            f"the {type(result).__name__} holds nothing for the chart {name!r}: expected one of "
            f"{', '.join(map(repr, others)) or 'none: it is empty'}."
        )
    return drawn.figure


def _facts_of(result: Any) -> tuple[RunFacts, str]:
    """Return the facts that the charts are drawn from, and the default chart."""
    if isinstance(result, str | os.PathLike):
        result = Run.open(result)
    if isinstance(result, Run):
        return read_facts(result, result.path.name), "ends"
    if isinstance(result, ProbedCheckpoint):
        return facts_of_probe([result]), "density"
    if isinstance(result, list | tuple) and result and all(isinstance(each, ProbedCheckpoint) for each in result):
        return facts_of_probe(result), "ends"
    # By what they hold: the rooms that make them are none that a page imports.
    if isinstance(getattr(result, "run", None), Run) and hasattr(result, "checkpoints"):
        facts = read_facts(result.run, result.run.path.name)
        return dataclasses.replace(facts, probe=tuple(result.checkpoints)), "ends"
    if hasattr(result, "nodes") and hasattr(result, "weights"):
        nodes, weights = (np.asarray(getattr(result, name), dtype=np.float64).ravel() for name in ("nodes", "weights"))
        row = ProbedCheckpoint(checkpoint="spectral density", nodes=nodes[weights > 0], weights=weights[weights > 0])
        return facts_of_probe([row]), "density"
    raise MisuseError(
        f"expected a Run, a Probe, checkpoints of one or a SpectralDensity to plot, got {type(result).__name__}."
    )

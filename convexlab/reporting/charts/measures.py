"""Other measures along training, a small chart each: over cost, like the training loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from convexlab.reporting.charts.curves import Column, both_known, plot_runs
from convexlab.reporting.charts.style import draw, label, legend, scale_linear, scale_log, spans_far
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.measures import is_share, measure_heading, measure_name, measure_value
from convexlab.reporting.words.run import algorithm_name
from convexlab.runs.rows import Curve

__all__ = ["drawable_measures", "measure_charts"]

Floats = npt.NDArray[np.float64]


def drawable_measures(facts: RunFacts) -> list[str]:
    """Return the names of the measures that were taken at least twice in a training run."""
    return [name for name in facts.measures if max((rows.size for rows in _rows(facts, name).values()), default=0) > 1]


def measure_charts(facts: RunFacts, names: Sequence[str], key: str) -> list[Chart]:
    """Return a chart for each of these measures."""
    return [_chart(facts, name, f"{key}-{index}") for index, name in enumerate(names)]


def _rows(facts: RunFacts, name: str) -> dict[str, npt.NDArray[np.int64]]:
    """Return where a measure was taken, by training run."""
    column = _column(name)
    return {run: both_known(curve.cost, column(curve)) for run, curve in facts.curves.items()}


def _column(name: str) -> Column:
    def column(curve: Curve) -> Floats:
        return curve.measures.get(name, np.full(curve.epoch.shape, np.nan))

    return column


def _cost(curve: Curve) -> Floats:
    return curve.cost


def _chart(facts: RunFacts, name: str, key: str) -> Chart:
    column, rows = _column(name), _rows(facts, name)
    values = np.concatenate([column(facts.curves[run])[known] for run, known in rows.items()])
    with draw(height=2.9) as (figure, (axes,)):
        plot_runs(axes, facts, _cost, column)
        scale_linear(axes, "x")
        (scale_log if spans_far(values) and not is_share(name) else scale_linear)(axes, "y")
        axes.set_xlabel("cost in gradient equivalents")
        axes.set_ylabel(label(measure_name(name), 24))
        legend(axes)
        return chart(
            figure,
            key=key,
            title=label(measure_heading(name), 60),
            caption="Over cost. The best epoch of a run is chosen by training loss alone.",
            description=" ".join(
                _describe(algorithm_name(run, facts), name, column(facts.curves[run])[known])
                for run, known in rows.items()
                if known.size
            ),
            values=("gradient equivalents", measure_name(name)),
        )


def _describe(run: str, name: str, values: Floats) -> str:
    first, last, low, high = (
        measure_value(name, float(value)) for value in (values[0], values[-1], values.min(), values.max())
    )
    return f"{run}: {first} at first, {last} at last, between {low} and {high}."

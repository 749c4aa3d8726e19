"""Several runs at a glance: each two-phase loss beside that of its better Adam baseline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from convexlab.reporting.charts.style import PALETTE, draw, label, legend, scale_linear, scale_log, spans_far
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.comparison import compare
from convexlab.reporting.facts.run import RunFacts
from convexlab.wording.numbers import number

__all__ = ["comparison_chart"]


def comparison_chart(runs: Sequence[RunFacts], key: str) -> Chart | None:
    """Return each run's two-phase loss beside that of its better Adam baseline; None without any such pair."""
    rows = [(facts, comparison) for facts in runs if (comparison := compare(facts)) is not None]
    if not rows:
        return None
    with draw(height=1.2 + 0.32 * len(rows)) as (figure, (axes,)):
        places = np.arange(len(rows), dtype=np.float64)[::-1]
        ours = np.array([comparison.two_phase_loss for _, comparison in rows])
        theirs = np.array([comparison.baseline_loss for _, comparison in rows])
        axes.hlines(
            places, np.minimum(ours, theirs), np.maximum(ours, theirs), color="#c3c9d3", linewidth=2.5, zorder=1
        )
        axes.plot(theirs, places, "s", color="#6f7785", markersize=6, label="better Adam baseline")
        axes.plot(ours, places, "^", color=PALETTE["vermilion"], markersize=8, label="two-phase")
        axes.set_yticks(places, [label(facts.label, 28) for facts, _ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(False, axis="y")
        (scale_log if spans_far([*ours, *theirs]) else scale_linear)(axes, "x")
        axes.set_xlabel("training loss at the best epoch")
        legend(axes)
        return chart(
            figure,
            key=key,
            title="Two-phase against the better Adam",
            caption="Left is better. Costs of each pair are in the table.",
            description=" ".join(
                f"{facts.label}: two-phase {number(comparison.two_phase_loss)}, "
                f"Adam {number(comparison.baseline_loss)}."
                for facts, comparison in rows
            ),
            values=("training loss", ""),
        )

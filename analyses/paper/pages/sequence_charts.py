"""The counterparts of the paper's figures 5 and 6: the gradient norm over the loss, the loss over what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convexlab.reporting.charts.style import INK, PALETTE, draw, legend, scale_linear, scale_log
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.claims import NON_CONVEX
from convexlab.runs import Row
from convexlab.wording.numbers import number
from paper.protocols import ADAM, FIXED, PAPERS
from paper.sequences import CG_ALONE

__all__ = ["NAMES", "cost_chart", "norm_over_loss_chart"]

Sequences = Mapping[str, Sequence[Row]]

NAMES: Mapping[str, str] = {
    ADAM: "Adam",
    PAPERS: "Adam, then CG",
    FIXED: "Adam, then ours",
    CG_ALONE: "CG alone",
}
_STYLES: Mapping[str, dict[str, Any]] = {
    ADAM: {"color": PALETTE["blue"], "linestyle": "-"},
    PAPERS: {"color": PALETTE["purple"], "linestyle": "--"},
    FIXED: {"color": PALETTE["vermilion"], "linestyle": "-."},
    CG_ALONE: {"color": INK, "linestyle": ":"},
}


def norm_over_loss_chart(sequences: Sequences, names: Sequence[str], *, key: str, title: str, caption: str) -> Chart:
    """Draw the gradient norm over the loss; rings where the loss is proven non-convex."""
    with draw(height=4.2) as (figure, (axes,)):
        for name in names:
            rows = sequences[name]
            losses, norms = ([row[column] for row in rows] for column in ("train_loss", "gradient_norm"))
            axes.plot(losses, norms, label=NAMES[name], linewidth=1.4, **_STYLES[name])
            proven = [row for row in rows if row.get("curvature", {}).get("verdict") == NON_CONVEX]
            axes.plot(
                [row["train_loss"] for row in proven],
                [row["gradient_norm"] for row in proven],
                "o",
                markersize=5,
                markerfacecolor="white",
                markeredgecolor=_STYLES[name]["color"],
                zorder=3,
            )
        axes.plot([], [], "o", markerfacecolor="white", markeredgecolor=INK, label="proven non-convex")
        scale_log(axes, "x")
        scale_log(axes, "y")
        axes.set_xlabel("training loss (training goes left)")
        axes.set_ylabel("gradient norm")
        legend(axes)
        described = [
            f"{NAMES[name]}: from loss {number(sequences[name][0]['train_loss'])}, norm "
            f"{number(sequences[name][0]['gradient_norm'])} to loss {number(sequences[name][-1]['train_loss'])}, norm "
            f"{number(sequences[name][-1]['gradient_norm'])}"
            for name in names
        ]
        return chart(figure, key=key, title=title, caption=caption, description="; ".join(described) + ".")


def cost_chart(
    sequences: Sequences,
    of: Callable[[Row], float],
    *,
    key: str,
    title: str,
    axis: str,
    caption: str,
    end: float | None = None,
) -> Chart:
    """Draw the loss over what was spent, as ``of`` tells it of a row, with Adam's end marked."""
    with draw(height=4.0) as (figure, (axes,)):
        for name, rows in sequences.items():
            spent = [of(row) for row in rows]
            axes.plot(spent, [row["train_loss"] for row in rows], label=NAMES[name], **_STYLES[name])
        if end is not None:
            axes.axvline(end, color="#aab1bd", linewidth=1.0, zorder=0)
        scale_log(axes, "y")
        scale_linear(axes, "x")
        axes.set_xlim(left=0)
        axes.set_xlabel(axis)
        axes.set_ylabel("training loss")
        legend(axes)
        ends = [
            f"{NAMES[name]} ends at {number(rows[-1]['train_loss'])} after {number(of(rows[-1]))}"
            for name, rows in sequences.items()
        ]
        return chart(figure, key=key, title=title, caption=caption, description="; ".join(ends) + ".")

"""The best switch in hindsight: the final loss over the switch epoch, and the mark of the best in other charts."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from convexlab.reporting.charts.style import INK, PALETTE, draw, legend, scale_linear, scale_log, thinned
from convexlab.reporting.charts.svg import Chart, chart
from convexlab.reporting.facts.run import RunFacts, value_at
from convexlab.runs.oracle import Oracle
from convexlab.runs.rows import Outcome
from convexlab.wording.numbers import count, number

__all__ = ["mark_best_epoch", "mark_best_point", "oracle_chart"]

_CONSTANT = "adam-constant"
# As the curves of the same runs are drawn over cost.
_ALONE = {
    _CONSTANT: ("Adam alone, constant", "#6f7785", "--"),
    "adam-cosine": ("Adam alone, cosine", PALETTE["green"], ":"),
}


def oracle_chart(facts: RunFacts, key: str) -> Chart | None:
    """Return the chart of the loss at the end of the same budget over the switch epoch; None without an oracle."""
    oracle = facts.oracle
    if oracle is None:
        return None
    with draw(height=4.0) as (figure, (axes,)):
        drawn = [*_draw_switches(axes, oracle), *_draw_alone(axes, facts), *_draw_decision(axes, facts)]
        scale_linear(axes, "x")
        # Ratios are what the eye should compare.
        (scale_log if min(drawn) > 0 else scale_linear)(axes, "y")
        axes.set_xlabel("epoch of Adam at which phase two begins")
        axes.set_ylabel("training loss at the best epoch")
        legend(axes)
        return chart(
            figure,
            key=key,
            title="Final loss over the switch epoch",
            caption="Every switch, followed to the end of the same budget. The lowest of several is partly luck.",
            description=_describe(facts, oracle),
            values=("switch epoch", "training loss"),
        )


def _draw_switches(axes: Axes, oracle: Oracle) -> list[float]:
    epochs, losses = ([getattr(tried, name) for tried in oracle.switches] for name in ("epoch", "train_loss"))
    color = PALETTE["blue"]
    axes.plot(epochs, losses, "o-", color=color, markersize=4.5, label="each switch tried")
    gave_up = [tried for tried in oracle.switches if tried.resort is not None]
    if gave_up:
        axes.plot(
            [tried.epoch for tried in gave_up],
            [tried.train_loss for tried in gave_up],
            "o",
            color="white",
            markeredgecolor=color,
            markersize=5.5,
            zorder=3,
            label="gave up phase two",
        )
    _best(axes, oracle.best.epoch, oracle.best.train_loss, _name(oracle))
    return list(losses)


def _name(oracle: Oracle) -> str:
    # Short: a legend's two columns have to fit above the axes.
    tried = len(oracle.switches)
    return f"{'only one tried' if tried == 1 else f'best of {tried}'}, epoch {count(oracle.best.epoch)}"


def _best(axes: Axes, x: float, y: float, name: str) -> None:
    axes.plot([x], [y], "P", color=PALETTE["orange"], markeredgecolor=INK, markersize=9, zorder=6, label=name)


def _draw_alone(axes: Axes, facts: RunFacts) -> list[float]:
    losses = []
    for run, (name, color, line) in _ALONE.items():
        loss = _loss(facts.baselines.get(run))
        if loss is not None:
            axes.axhline(loss, color=color, linestyle=line, linewidth=1.7, zorder=1.5, label=name)
            losses.append(loss)
    return losses


def _draw_decision(axes: Axes, facts: RunFacts) -> list[float]:
    loss, switch = _loss(facts.two_phase), facts.switch
    if loss is None or switch is None:
        return []
    if switch.epoch is None:
        axes.axhline(loss, color=INK, linewidth=1.2, zorder=1.4, label="this run, never switched")
    else:
        name = f"this run, epoch {count(switch.epoch)}"
        axes.plot(
            [switch.epoch],
            [loss],
            "D",
            color="white",
            markeredgecolor=INK,
            markeredgewidth=1.6,
            markersize=8,
            label=name,
        )
    return [loss]


def _loss(outcome: Outcome | None) -> float | None:
    return None if outcome is None else outcome.train_loss


def _describe(facts: RunFacts, oracle: Oracle) -> str:
    ends = ", ".join(f"{count(tried.epoch)}: {number(tried.train_loss)}" for tried in oracle.switches)
    alone = [f"{name} {number(_loss(facts.baselines.get(run)))}" for run, (name, _, _) in _ALONE.items()]
    best = oracle.best
    return (
        f"Loss by switch epoch: {ends}. Lowest: {number(best.train_loss)} at epoch {count(best.epoch)}. "
        f"This run: {number(_loss(facts.two_phase))}. {', '.join(alone)}."
    )


def mark_best_epoch(axes: Axes, facts: RunFacts) -> None:
    """Draw a line at the epoch of the best switch, for a legend; nothing without an oracle."""
    if facts.oracle is not None:
        line = (0, (5, 2, 1, 2))
        epoch, name = facts.oracle.best.epoch, _name(facts.oracle)
        axes.axvline(epoch, color=PALETTE["orange"], linewidth=1.5, linestyle=line, zorder=0.5, label=name)


def mark_best_point(axes: Axes, facts: RunFacts) -> None:
    """Mark loss and gradient norm of Adam where the best switch began; nothing where they are not known.

    Where the best switch lies behind the run's own, Adam's path to it is no part of the run. It is drawn too.
    """
    curve = facts.curves.get(_CONSTANT)
    if facts.oracle is None or curve is None:
        return
    best = facts.oracle.best.epoch
    own = None if facts.switch is None else facts.switch.epoch
    loss, norm = (value_at(curve.epoch, column, best) for column in (curve.loss, curve.norm))
    if loss is None or norm is None:
        return
    if own is not None and best > own:
        way = (curve.epoch >= own) & (curve.epoch <= best) & np.isfinite(curve.loss) & np.isfinite(curve.norm)
        name, color, line = _ALONE[_CONSTANT]
        axes.plot(*thinned(curve.loss[way], curve.norm[way]), color=color, linestyle=line, linewidth=1.3, label=name)
    _best(axes, loss, norm, _name(facts.oracle))

"""The rules that are compared: each detector with its inputs and their price, and switches fixed beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from convexlab.detection import BudgetFraction, Detector, build_detector
from convexlab.runs import Row

__all__ = ["RULES", "SOURCES", "Decision", "Rule", "fraction_label", "replay"]


@dataclass(frozen=True)
class Source:
    """Where loss and gradient norm come from."""

    loss: str
    """A column of `AdamRun.record`; likewise the others."""
    norm: str
    noise: str | None
    cost: float
    """Gradient equivalents an epoch; on the whole batch nothing, for there Adam has the full gradient."""


SOURCES: Mapping[str, Source] = {
    "full": Source("train_loss", "gradient_norm", None, 1.0),
    "halves": Source("running_loss", "unbiased_gradient_norm", "gradient_noise", 0.0),
    "batch": Source("running_loss", "batch_gradient_norm", None, 0.0),
}
"""The full gradient, once an epoch; the mini-batches' in halves, so that the noise is taken out; the same with it."""


@dataclass(frozen=True)
class Rule:
    """One rule."""

    name: str
    build: Callable[[int], Detector] = field(repr=False)
    """Takes the budget in epochs."""
    source: str | None = None
    """A key of `SOURCES`; None where the inputs decide nothing."""
    curvature: bool = False
    """Whether it gets the true curvature at no cost, which no rule could have in practice."""

    @property
    def label(self) -> str:
        """Its name with its inputs, where these are a choice."""
        return self.name if self.source is None else f"{self.name} ({self.source})"

    def price(self, *, whole_batch: bool) -> float:
        """Return the gradient equivalents an epoch beside Adam's."""
        return 0.0 if whole_batch or self.source is None else SOURCES[self.source].cost


def _named(name: str, *sources: str) -> list[Rule]:
    return [Rule(name, lambda budget, name=name: build_detector(name), source) for source in sources]  # type: ignore[misc]


def fraction_label(share: float) -> str:
    """Return what a switch fixed beforehand is called."""
    return f"at {share:.0%} of the budget"


def _fraction(share: float) -> Rule:
    return Rule(fraction_label(share), lambda budget: BudgetFraction(budget, share))


RULES: Sequence[Rule] = (
    *_named("algorithm-1", "full", "halves", "batch"),
    *_named("gradient-norm-peak", "full", "halves", "batch"),
    *_named("smoothed-norm", "full", "halves", "batch"),
    *_named("gradient-norm-change", "full", "halves", "batch"),
    *_named("unimodal-norm", "full", "halves", "batch"),
    *_named("noise-aware", "halves"),
    *_named("loss-plateau", "batch"),
    *_named("swats", "batch"),
    Rule("curvature, known at no cost", lambda budget: build_detector("curvature"), curvature=True),
    *map(_fraction, (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9)),
)


@dataclass(frozen=True)
class Decision:
    """What a rule decided."""

    epoch: int | None
    """None if it never fired in time."""
    reason: str
    spent: float
    """Gradient equivalents until then, Adam's and its own; all of the budget if it never fired."""
    factor: float
    """What an epoch of Adam costs with it, over what it costs without."""


def replay(rule: Rule, rows: Sequence[Row], truth: Mapping[int, Row], *, whole_batch: bool, budget: float) -> Decision:
    """Tell a rule of a recorded run, epoch after epoch, for as long as the budget allows it.

    Args:
        rule: the rule.
        rows: of `AdamRun.record`, one an epoch.
        truth: curvature by epoch, where it was measured.
        whole_batch: whether Adam has the full gradient anyway.
        budget: gradient equivalents in all.
    """
    detector = rule.build(len(rows))
    source = SOURCES["full" if whole_batch else rule.source or "full"]
    price = rule.price(whole_batch=whole_batch)
    factor = 1.0 + price * len(rows) / max(1, rows[-1]["cost"]) if rows else 1.0
    for row in rows:
        spent = row["cost"] + price * row["epoch"]
        if spent >= budget:
            break
        measured = truth.get(row["epoch"], {}) if rule.curvature else {}
        noise = row[source.noise] if source.noise else (0.0 if whole_batch else math.nan)
        fired = detector.update(
            loss=row[source.loss],
            gradient_norm=row[source.norm],
            gradient_noise=noise,
            projected_rate=row["projected_rate"],
            **{name: _number(measured.get(name)) for name in ("gradient_curvature", "smallest", "largest")},
        )
        if fired:
            return Decision(row["epoch"], detector.reason, spent, factor)
    return Decision(None, detector.reason, budget, factor)


def _number(value: float | None) -> float:
    return math.nan if value is None else value

"""The words for a comparison with the better Adam baseline: by what factor, and at what cost."""

from __future__ import annotations

import math

from convexlab.reporting.facts.comparison import BaselineComparison
from convexlab.wording.numbers import count, number

__all__ = ["cost_clause", "fairness", "loss_factor"]


def loss_factor(comparison: BaselineComparison) -> str:
    """Return the ratio of the larger loss to the smaller one; empty where it is not defined."""
    ratio = comparison.ratio
    return "" if math.isnan(ratio) or comparison.result == "equal" else number(max(ratio, 1 / ratio))


def fairness(comparison: BaselineComparison) -> str:
    """Return whether both cost the same, for a table."""
    ours, theirs = comparison.costs
    if not comparison.costs_known:
        return "unknown"
    return "yes" if comparison.costs_equal else f"no: {count(ours)} against {count(theirs)}"


def cost_clause(comparison: BaselineComparison) -> str:
    """Return the cost at which the losses were reached."""
    ours, theirs = comparison.costs
    if not comparison.costs_known:
        return "at a cost that was not recorded"
    if comparison.costs_equal:
        return f"at equal cost ({count(ours)} gradient equivalents)"
    return (
        f"at {'lower' if ours < theirs else 'higher'} cost ({count(ours)} against {count(theirs)} gradient equivalents)"
    )

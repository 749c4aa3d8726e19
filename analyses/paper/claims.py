"""A record of `validate_run` as evidence on the paper's claims 1 and 2."""

from __future__ import annotations

import math

from convexlab.reporting.facts.claims import Evidence, Point
from convexlab.runs import Row

__all__ = ["evidence", "share_along_gradient"]


def evidence(run: Row) -> Evidence:
    """Return what the claims are judged on: Adam, and the point where the best switch ended."""
    return Evidence(
        epochs=tuple(row["epoch"] for row in run["rows"]),
        norms=tuple(row["gradient_norm"] for row in run["rows"]),
        points=tuple(Point(row["epoch"], row["verdict"], row["gradient_norm"]) for row in run["truth"]),
        lowest=run["minimum"]["verdict"],
    )


def share_along_gradient(run: Row) -> float:
    """Return the share of the points along Adam with gᵀHg > 0; NaN if none was measured."""
    values = [row["gradient_curvature"] for row in run["truth"] if row["gradient_curvature"] is not None]
    return sum(value > 0 for value in values) / len(values) if values else math.nan

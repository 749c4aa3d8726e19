"""Ground truth along a run: curvature at stored points, and the segments between them."""

from __future__ import annotations

import math

from torch import Tensor

from convexlab.curvature.segment import segment_curvature
from convexlab.curvature.split import curvature_split
from convexlab.errors import MisuseError
from convexlab.probing import ProbeOptions, probe_objective
from convexlab.problems import Problem
from convexlab.reporting.facts.claims import CONVEX, NON_CONVEX
from convexlab.runs import Row
from convexlab.runs.rows import without_density

__all__ = ["curvature_at", "relative_kind", "segment_between"]


def curvature_at(problem: Problem, weights: Tensor, options: ProbeOptions) -> Row:
    """Return what `probe_objective` measures at a flat vector (n,), and the residual part along its witness."""
    problem.objective.write(weights)
    point, verdict = probe_objective(problem.objective, options)
    residual = None
    if verdict is not None and verdict.witness is not None:
        try:
            residual = float(curvature_split(problem.objective, verdict.witness).residual)
        except MisuseError:  # The loss is not one of an output and a criterion.
            residual = None
    return without_density(point.as_row()) | {"witness_residual": residual}


def segment_between(problem: Problem, begin: Tensor, end: Tensor) -> Row:
    """Return whether the loss is convex on the segment between two flat vectors (n,), and how far from it."""
    segment = segment_curvature(problem.objective, begin, end)
    return {"convex": segment.convex, "least": segment.least, "rises": segment.values[-1] > segment.values[0]}


def relative_kind(row: Row, share: float) -> str:
    """Return the verdict that a smallest eigenvalue of at least -share·largest counts as convex would give."""
    smallest, largest = row.get("smallest"), row.get("largest")
    if smallest is None or largest is None or not (math.isfinite(smallest) and largest > 0):
        return "unresolved"
    return CONVEX if smallest >= -share * largest else NON_CONVEX

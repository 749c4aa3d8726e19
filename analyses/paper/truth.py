"""Ground truth along a run: curvature at stored points, the segments between them, and what changed where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from convexlab.curvature.segment import segment_curvature
from convexlab.curvature.split import curvature_split
from convexlab.errors import MisuseError
from convexlab.probing import ProbeOptions, probe_objective
from convexlab.problems import Problem
from convexlab.runs import Row
from convexlab.runs.rows import without_density

__all__ = ["CONVEX", "NON_CONVEX", "Pattern", "curvature_at", "pattern", "relative_kind", "segment_between"]

NON_CONVEX, CONVEX = "non-convex", "no-negative-curvature"


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


@dataclass(frozen=True)
class Pattern:
    """How a verdict changes along a run."""

    swaps: int
    """Changes from one to the other; unresolved points are passed over."""
    bracket: tuple[float, float] | None
    """Between which epochs the last change to "no negative curvature" lies, after which none came back."""
    kinds: tuple[str, ...]

    @property
    def word(self) -> str:
        """What claim 1 makes of it."""
        known = [kind for kind in self.kinds if kind in {NON_CONVEX, CONVEX}]
        if not known or len(known) < 2:
            return "unknown"
        if self.swaps == 0:
            return "non-convex throughout" if known[0] == NON_CONVEX else "convex throughout"
        if self.swaps == 1:
            return "one swap to convex" if known[0] == NON_CONVEX else "one swap to non-convex"
        return "patchwork"


def pattern(epochs: Sequence[float], kinds: Sequence[str]) -> Pattern:
    """Count the changes of a verdict over epochs.

    The bracket's width is the uncertainty: the last point that is known to be non-convex, and the first after it that
    is known not to be.
    """
    known = [(epoch, kind) for epoch, kind in zip(epochs, kinds, strict=True) if kind in {NON_CONVEX, CONVEX}]
    swaps = sum(before[1] != after[1] for before, after in pairwise(known))
    bracket = None
    if known and known[-1][1] == CONVEX:
        last = max((epoch for epoch, kind in known if kind == NON_CONVEX), default=None)
        if last is not None:
            bracket = (last, min(epoch for epoch, kind in known if epoch > last))
    return Pattern(swaps, bracket, tuple(kinds))


def relative_kind(row: Row, share: float) -> str:
    """Return the verdict that a smallest eigenvalue of at least -share·largest counts as convex would give."""
    smallest, largest = row.get("smallest"), row.get("largest")
    if smallest is None or largest is None or not (math.isfinite(smallest) and largest > 0):
        return "unresolved"
    return CONVEX if smallest >= -share * largest else NON_CONVEX

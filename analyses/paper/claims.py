"""The paper's claims 1 and 2 against a run's record: supported, contradicted or undecided, and why.

Wording as in the verdicts: a witness proves non-convexity, nothing finite proves convexity. So claim 1 can be
contradicted by proof, and supported only as far as no negative curvature was found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from convexlab.runs import Row
from paper.scores import first_rise, smoothed
from paper.truth import CONVEX, NON_CONVEX, pattern

__all__ = ["Judgement", "Outcome", "claim_1", "claim_2", "norm_peak", "share_along_gradient"]

Outcome = Literal["supported", "contradicted", "undecided"]

_FALL = 0.9  # The paper's gnfact.


@dataclass(frozen=True)
class Judgement:
    """What a run says of a claim."""

    outcome: Outcome
    reason: str
    """One clause."""


def claim_1(run: Row) -> Judgement:
    """Judge: first non-convex, then convex around the minimum, no patchwork in between.

    Over the verdicts of the points along Adam and where the best switch ended.
    """
    verdicts = [row["verdict"] for row in run["truth"]] + [run["minimum"]["verdict"]]
    found = pattern(range(len(verdicts)), verdicts)
    if found.swaps >= 2 or (found.swaps == 1 and found.bracket is None):
        return Judgement("contradicted", "after points without negative curvature came non-convex ones")
    if found.swaps == 1:
        return Judgement("supported", "non-convex first, no negative curvature found after that")
    if found.word == "non-convex throughout":
        return Judgement("undecided", "proven non-convex at every point, the lowest one included")
    if found.word == "convex throughout":
        return Judgement("undecided", "no negative curvature found from the start on")
    return Judgement("undecided", "the verdicts are unresolved")


def norm_peak(rows: Sequence[Row]) -> int | None:
    """Return the epoch, from its first trough on, at which the full gradient norm is largest, if it is a peak.

    Of its centred median over five epochs: the largest must be above both that trough and the end by
    1 / 0.9.
    """
    norms = [row["gradient_norm"] for row in rows]
    smooth = smoothed(norms)
    begin = first_rise(norms)
    top = max(range(begin, len(smooth)), key=smooth.__getitem__)
    peak = smooth[top] * _FALL >= smooth[begin] and smooth[top] * _FALL >= smooth[-1]
    return top if peak else None


def claim_2(run: Row) -> Judgement:
    """Judge: the gradient norm rises in the non-convex part and falls in the convex one; its peak is the swap.

    A proven non-convex point well after the peak, where the norm is below 0.9 of it, contradicts that: the norm falls
    in a non-convex part.
    """
    peak = norm_peak(run["rows"])
    if peak is None:
        return Judgement("undecided", "the gradient norm has no peak after its first trough")
    truth = run["truth"]
    after = [row for row in truth if row["epoch"] > peak]
    before = [row for row in truth if row["epoch"] <= peak]
    top = max(row["gradient_norm"] for row in run["rows"][max(0, peak - 2) : peak + 3])
    fallen = [row for row in after if row["gradient_norm"] <= _FALL * top]
    if any(row["verdict"] == NON_CONVEX for row in fallen):
        count = sum(row["verdict"] == NON_CONVEX for row in fallen)
        return Judgement(
            "contradicted",
            f"after its peak at epoch {peak} the norm falls at {count} points that are proven non-convex",
        )
    if any(row["verdict"] == CONVEX for row in before):
        return Judgement(
            "contradicted", f"before its peak at epoch {peak} a point without negative curvature was found"
        )
    found = pattern([row["epoch"] for row in truth], [row["verdict"] for row in truth])
    if found.bracket is not None and found.bracket[0] <= peak <= found.bracket[1]:
        return Judgement("supported", f"the norm peaks at epoch {peak}, where the verdict changes")
    return Judgement("undecided", f"the norm peaks at epoch {peak}, but no change of the verdict is known")


def share_along_gradient(run: Row) -> float:
    """Return the share of the points along Adam with gᵀHg > 0; NaN if none was measured."""
    values = [row["gradient_curvature"] for row in run["truth"] if row["gradient_curvature"] is not None]
    return sum(value > 0 for value in values) / len(values) if values else math.nan

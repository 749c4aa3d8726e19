"""The paper's claims 1 and 2 against what a run has recorded: supported, contradicted or undecided.

As with verdicts, a witness proves non-convexity, and no finite computation proves convexity. So a proof can contradict
a claim, but a claim is supported only as far as no negative curvature was found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from convexlab.reporting.facts.norm import FALL, FEWEST, norm_peak
from convexlab.reporting.facts.run import RunFacts

__all__ = [
    "CLAIMS",
    "CONVEX",
    "NON_CONVEX",
    "OUTCOMES",
    "Evidence",
    "Judgement",
    "Outcome",
    "Pattern",
    "Point",
    "Reason",
    "claim_1",
    "claim_2",
    "evidence_of",
    "judge",
    "pattern",
]

NON_CONVEX, CONVEX = "non-convex", "no-negative-curvature"
CLAIMS = ("1", "2")
"""By their numbers in the paper."""

Outcome = Literal["supported", "contradicted", "undecided"]
OUTCOMES: tuple[Outcome, ...] = ("supported", "contradicted", "undecided")

Reason = Literal[
    "not measured",
    "too few verdicts",
    "one swap",
    "non-convex again",
    "non-convex throughout",
    "convex throughout",
    "too few norms",
    "no peak",
    "falls where non-convex",
    "convex before the peak",
    "peak at the swap",
    "swap unknown",
]


@dataclass(frozen=True)
class Point:
    """A point of training at which curvature was measured."""

    epoch: float
    verdict: str
    norm: float | None
    """Norm of the full gradient."""


@dataclass(frozen=True)
class Evidence:
    """The measurements that the claims are judged on."""

    epochs: tuple[float, ...]
    norms: tuple[float, ...]
    """Norm of the full gradient after each of these epochs."""
    points: tuple[Point, ...]
    """In order of training."""
    lowest: str | None = None
    """The verdict on a point of lower loss than all of these points; None without one."""

    @property
    def peak(self) -> float | None:
        """The epoch of the norm's peak after its first trough; None without a peak, or with too few norms."""
        place = norm_peak(self.norms) if len(self.norms) >= FEWEST else None
        return None if place is None else self.epochs[place]

    @property
    def proven(self) -> int:
        """At how many points non-convexity is proven."""
        return sum(point.verdict == NON_CONVEX for point in self.points)

    @property
    def pattern(self) -> Pattern:
        """How the verdict changes along the points."""
        return pattern([point.epoch for point in self.points], [point.verdict for point in self.points])


@dataclass(frozen=True)
class Judgement:
    """What a run says of a claim."""

    outcome: Outcome
    reason: Reason
    epoch: float | None = None
    """Epoch of the norm's peak, where the reason mentions it."""
    count: int = 0
    """Number of points that the reason rests on."""
    total: int = 0
    """Number of points that were considered."""
    to_the_lowest: bool = False
    """Whether the point of the lowest loss is among those counted."""


@dataclass(frozen=True)
class Pattern:
    """How a verdict changes along a run."""

    swaps: int
    """Changes between non-convex and no negative curvature; unresolved points are skipped."""
    bracket: tuple[float, float] | None
    """Epochs before and after the last change to "no negative curvature"; None where it did not last."""
    kinds: tuple[str, ...]

    @property
    def word(self) -> str:
        """The pattern in the words of claim 1."""
        known = [kind for kind in self.kinds if kind in {NON_CONVEX, CONVEX}]
        if len(known) < 2:
            return "unknown"
        if self.swaps == 0:
            return "non-convex throughout" if known[0] == NON_CONVEX else "convex throughout"
        if self.swaps == 1:
            return "one swap to convex" if known[0] == NON_CONVEX else "one swap to non-convex"
        return "patchwork"


def pattern(epochs: Sequence[float], kinds: Sequence[str]) -> Pattern:
    """Count the changes of a verdict over epochs.

    The bracket is the last point with a proof of non-convexity, and the first point after it without negative
    curvature. Its width is the uncertainty of the change.
    """
    known = [(epoch, kind) for epoch, kind in zip(epochs, kinds, strict=True) if kind in {NON_CONVEX, CONVEX}]
    swaps = sum(before[1] != after[1] for before, after in pairwise(known))
    bracket = None
    if known and known[-1][1] == CONVEX:
        # By place, not by epoch: two points may be of the same one.
        last = max((place for place, (_, kind) in enumerate(known) if kind == NON_CONVEX), default=None)
        if last is not None:
            bracket = (known[last][0], known[last + 1][0])
    return Pattern(swaps, bracket, tuple(kinds))


def evidence_of(facts: RunFacts) -> Evidence:
    """Return what a run directory says of both claims, its second phase included.

    Checkpoints that do not say when they were stored have no place along training. Without a curve the norms are those
    of the checkpoints.
    """
    points = tuple(
        Point(checkpoint.epoch, checkpoint.verdict, checkpoint.gradient_norm)
        for checkpoint in facts.probe
        if checkpoint.epoch is not None
    )
    pairs = [(point.epoch, point.norm) for point in points if point.norm is not None]
    if facts.curve is not None:
        pairs = list(zip(facts.curve.epoch.tolist(), facts.curve.norm.tolist(), strict=True))
    known = [(epoch, norm) for epoch, norm in pairs if math.isfinite(epoch) and math.isfinite(norm)]
    return Evidence(tuple(epoch for epoch, _ in known), tuple(norm for _, norm in known), points)


def judge(evidence: Evidence) -> dict[str, Judgement]:
    """Return what the evidence says of each claim, by the claim's number."""
    return {"1": claim_1(evidence), "2": claim_2(evidence)}


def claim_1(evidence: Evidence) -> Judgement:
    """Judge claim 1: first non-convex, then convex around the minimum, no patchwork in between."""
    kinds = [point.verdict for point in evidence.points] + [evidence.lowest] * (evidence.lowest is not None)
    found = pattern(range(len(kinds)), [kind or "" for kind in kinds])
    if found.swaps >= 2 or (found.swaps == 1 and found.bracket is None):
        return Judgement("contradicted", "non-convex again")
    if found.swaps == 1:
        return Judgement("supported", "one swap")
    if not kinds:
        return Judgement("undecided", "not measured")
    proven, convex = (kinds.count(kind) for kind in (NON_CONVEX, CONVEX))
    if proven + convex < 2:
        return Judgement("undecided", "too few verdicts", count=proven + convex, total=len(kinds))
    reason: Reason = "non-convex throughout" if proven else "convex throughout"
    return Judgement(
        "undecided",
        reason,
        count=proven or convex,
        total=len(kinds),
        to_the_lowest=evidence.lowest == (NON_CONVEX if proven else CONVEX),
    )


def claim_2(evidence: Evidence) -> Judgement:
    """Judge claim 2: the gradient norm rises in the non-convex part and falls in the convex one; its peak is the swap.

    Consider points well after the peak, where the norm is below 0.9 of it. One that is proven non-convex contradicts
    the claim: the norm falls in a non-convex part.
    """
    if not evidence.points:
        return Judgement("undecided", "not measured")
    if len(evidence.norms) < FEWEST:
        return Judgement("undecided", "too few norms", count=len(evidence.norms))
    place = norm_peak(evidence.norms)
    if place is None:
        return Judgement("undecided", "no peak")
    peak = evidence.epochs[place]
    before = [point for point in evidence.points if point.epoch <= peak]
    top = max(evidence.norms[max(0, place - 2) : place + 3])
    fallen = [
        point for point in evidence.points if point.epoch > peak and point.norm is not None and point.norm <= FALL * top
    ]
    proven = sum(point.verdict == NON_CONVEX for point in fallen)
    if proven:
        return Judgement("contradicted", "falls where non-convex", epoch=peak, count=proven, total=len(fallen))
    if any(point.verdict == CONVEX for point in before):
        return Judgement("contradicted", "convex before the peak", epoch=peak)
    bracket = evidence.pattern.bracket
    if bracket is not None and bracket[0] <= peak <= bracket[1]:
        return Judgement("supported", "peak at the swap", epoch=peak)
    return Judgement("undecided", "swap unknown", epoch=peak)

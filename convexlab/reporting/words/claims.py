"""The outcomes of the paper's claims 1 and 2 in words: for one run with reasons, for several in counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from convexlab.reporting.facts.claims import CLAIMS, OUTCOMES, Evidence, Judgement, evidence_of, judge
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.run import axis_of
from convexlab.wording.numbers import count
from convexlab.wording.proportion import Proportion

__all__ = [
    "ABOUT_OUTCOMES",
    "CLAIM_TEXTS",
    "ClaimNote",
    "claim_notes",
    "claim_sentences",
    "measured",
    "outcome_sentence",
    "reason_clause",
]

CLAIM_TEXTS = {
    "1": "Along training the loss is first non-convex, then convex around the minimum, with no patchwork in between.",
    "2": "The gradient norm, seen over the loss, rises in the non-convex part and falls in the convex one; its peak is "
    "the swap.",
}
"""By the claims' numbers."""

ABOUT_OUTCOMES = (
    "A claim is contradicted only by proof: a direction of negative curvature, multiplied out again. It is supported "
    "as far as no negative curvature was found below the verdict’s floor, with its confidence. The rest is undecided."
)


def reason_clause(judgement: Judgement, axis: str = "epoch") -> str:
    """Return why a claim is judged so, as a clause without a full stop."""
    peak = f"{axis} {count(judgement.epoch)}"
    others = "other is" if judgement.total - judgement.count == 1 else "others are"
    some = f"{judgement.count} of {judgement.total} points, the {others} unresolved"
    lowest = ", the lowest one included" if judgement.to_the_lowest else ""
    every = judgement.count == judgement.total
    return {
        "not measured": "no curvature was measured along training",
        "too few verdicts": "fewer than two verdicts are resolved",
        "one swap": "non-convex first, no negative curvature found after that",
        "non-convex again": "after points without negative curvature came non-convex ones",
        "non-convex throughout": f"proven non-convex at {f'every point{lowest}' if every else some}",
        "convex throughout": f"no negative curvature found {'from the start on' if every else f'at {some}'}",
        "too few norms": f"the gradient norm is known at {judgement.count} points, too few for a peak",
        "no peak": "the gradient norm has no peak after its first trough",
        "falls where non-convex": f"after its peak at {peak} the norm falls at {judgement.count} "
        f"point{'s that are' if judgement.count > 1 else ' that is'} proven non-convex",
        "convex before the peak": f"before its peak at {peak} a point without negative curvature was found",
        "peak at the swap": f"the norm peaks at {peak}, where the verdict changes",
        "swap unknown": f"the norm peaks at {peak}, but no change of the verdict is known",
    }[judgement.reason]


def outcome_sentence(claim: str, judgements: Sequence[Judgement]) -> str:
    """Return in how many runs a claim has which outcome, with 95 % intervals."""
    counts = Counter(judgement.outcome for judgement in judgements)
    shares = ", ".join(f"{outcome} in {Proportion(counts[outcome], len(judgements))}" for outcome in OUTCOMES)
    return f"Claim {claim} is {shares} runs."


def measured(runs: Sequence[RunFacts]) -> list[tuple[RunFacts, Evidence]]:
    """Return the runs along which curvature was measured, with what the claims are judged on."""
    evidence = ((facts, evidence_of(facts)) for facts in runs)
    return [(facts, known) for facts, known in evidence if known.points]


def claim_sentences(runs: Sequence[RunFacts]) -> list[str]:
    """Return what runs say of both claims; empty where no curvature was measured along any of them."""
    known = measured(runs)
    if not known:
        return []
    if len(runs) == 1:
        (facts, evidence), *_ = known
        judged = judge(evidence)
        axis = axis_of(facts.probe)
        return [
            proven_sentence([evidence]),
            *(f"Claim {claim} is {judged[claim].outcome}: {reason_clause(judged[claim], axis)}." for claim in CLAIMS),
        ]
    of = "" if len(known) == len(runs) else f"Of {len(runs)} runs, curvature was measured along {len(known)}. "
    judgements = [judge(evidence) for _, evidence in known]
    return [
        of + proven_sentence([evidence for _, evidence in known]),
        *(outcome_sentence(claim, [each[claim] for each in judgements]) for claim in CLAIMS),
        peak_sentence([evidence for _, evidence in known], axis_of([c for facts, _ in known for c in facts.probe])),
    ]


def proven_sentence(known: Sequence[Evidence]) -> str:
    """Return at how many of the points non-convexity is proven, and in how many runs at every one."""
    points, proven = sum(len(evidence.points) for evidence in known), sum(evidence.proven for evidence in known)
    sentence = f"Non-convexity is proven at {count(proven)} of {count(points)} measured points"
    if len(known) == 1:
        return f"{sentence}."
    every = sum(evidence.proven == len(evidence.points) for evidence in known)
    none = sum(evidence.proven == 0 for evidence in known)
    return f"{sentence}: at every one in {every} of {len(known)} runs, at none in {none}."


def peak_sentence(known: Sequence[Evidence], axis: str = "epoch") -> str:
    """Return in how many runs the gradient norm peaks after its first trough, and when."""
    peaks = sorted(evidence.peak for evidence in known if evidence.peak is not None)
    sentence = f"The gradient norm peaks after its first trough in {len(peaks)} of {len(known)} runs"
    ends = " to ".join(dict.fromkeys(count(peak) for peak in (peaks[0], peaks[-1]))) if peaks else ""
    return f"{sentence}{f', at {axis} {ends}' if ends else ''}."


class ClaimNote(NamedTuple):
    """A claim, and what one run says of it."""

    name: str
    claim: str
    outcome: str
    reason: str


def claim_notes(facts: RunFacts) -> list[ClaimNote]:
    """Return both claims with what the run says of them; empty where no curvature was measured along it."""
    evidence = evidence_of(facts)
    if not evidence.points:
        return []
    axis = axis_of(facts.probe)
    return [
        ClaimNote(f"Claim {claim}", CLAIM_TEXTS[claim], judgement.outcome, reason_clause(judgement, axis))
        for claim, judgement in judge(evidence).items()
    ]

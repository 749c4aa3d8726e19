"""The part of a page on the paper's claims: counts of runs with intervals, and a line a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from convexlab.reporting.facts.claims import CLAIMS, OUTCOMES, Judgement, judge
from convexlab.reporting.facts.run import RunFacts, value_at
from convexlab.reporting.tables import Cell, Column, Table, make_table
from convexlab.reporting.words.claims import measured, reason_clause
from convexlab.reporting.words.run import axis_of
from convexlab.wording.numbers import MISSING, count, number
from convexlab.wording.proportion import Proportion

__all__ = ["claim_counts_table", "judged_runs_table", "judgements_of"]


def judgements_of(runs: Sequence[RunFacts]) -> dict[str, list[Judgement]]:
    """Return what each run with measured curvature says of each claim, by the claim's number."""
    judged = [judge(evidence) for _, evidence in measured(runs)]
    return {claim: [each[claim] for each in judged] for claim in CLAIMS}


def claim_counts_table(judged: Mapping[str, Sequence[Judgement]]) -> Table | None:
    """Return in how many runs each claim has which outcome; None without any run."""
    if not any(judged.values()):
        return None
    rows = []
    for claim, judgements in judged.items():
        counts = Counter(judgement.outcome for judgement in judgements)
        shares = [str(Proportion(counts[outcome], len(judgements))) for outcome in OUTCOMES]
        rows.append([f"Claim {claim}", *shares])
    return make_table(
        "Claims, in runs, with 95 % intervals as of independent runs (Clopper and Pearson).",
        [Column("Claim", False), *(outcome.capitalize() for outcome in OUTCOMES)],
        rows,
    )


def judged_runs_table(runs: Sequence[RunFacts], anchors: Sequence[str]) -> Table | None:
    """Return a line a run: how its verdict changes, where its norm peaks, and what it says of each claim."""
    links = {facts.label: anchor for facts, anchor in zip(runs, anchors, strict=True)}
    rows: list[list[Cell | str]] = []
    for facts, evidence in measured(runs):
        judged, peak = judge(evidence), evidence.peak
        loss = None if peak is None or facts.curve is None else value_at(facts.curve.epoch, facts.curve.loss, peak)
        rows.append(
            [
                Cell(facts.label, link=f"#{links[facts.label]}"),
                f"{evidence.proven} of {len(evidence.points)}",
                evidence.pattern.word,
                MISSING if peak is None else f"{axis_of(facts.probe)} {count(peak)}",
                number(loss),
                *(f"{judged[claim].outcome}: {reason_clause(judged[claim], axis_of(facts.probe))}" for claim in CLAIMS),
            ]
        )
    if not rows:
        return None
    return make_table(
        "Each run: the points that are proven non-convex, the pattern of the verdicts, and the peak of the gradient "
        "norm after its first trough. The norm is smoothed by a median over five epochs.",
        [
            Column("Run", False),
            Column("Proven non-convex", False),
            Column("Pattern", False),
            Column("Norm peaks at", False),
            "at loss",
            *(Column(f"Claim {claim}", False) for claim in CLAIMS),
        ],
        rows,
    )

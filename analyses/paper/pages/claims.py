"""What runs say of the paper's claims 1 and 2: a part of the validation study's page, and a page of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from convexlab.reporting.facts import claims
from convexlab.reporting.facts.claims import NON_CONVEX, Judgement, pattern
from convexlab.reporting.facts.norm import norm_peak
from convexlab.reporting.parts.claims import claim_counts_table
from convexlab.reporting.study import Part, Study
from convexlab.reporting.tables import Column, make_table
from convexlab.reporting.words.claims import ABOUT_OUTCOMES, CLAIM_TEXTS, outcome_sentence, reason_clause
from convexlab.runs import Row
from convexlab.wording.numbers import MISSING, number, percent
from paper.claims import evidence, share_along_gradient
from paper.pages.detector_charts import curvature_chart
from paper.scores import curvature_peak
from paper.truth import relative_kind

__all__ = ["claims_part", "claims_study", "is_proven_throughout", "judge", "kinds"]

Judged = Mapping[str, Sequence[Judgement]]


def judge(runs: Sequence[Row]) -> dict[str, list[Judgement]]:
    """Return what each run says of each claim, by the claim's number."""
    judged = [claims.judge(evidence(run)) for run in runs]
    return {claim: [each[claim] for each in judged] for claim in claims.CLAIMS}


def claims_study(runs: Sequence[Row], settings: Mapping[str, Any], command: str) -> Study:
    """Return the page of records of `validate_run`, without their rules."""
    judged = judge(runs)
    return Study(
        title="Is the loss first non-convex, then convex, and does the gradient norm’s peak mark the border?",
        claim=f"{' '.join(f'Claim {claim}: {text}' for claim, text in CLAIM_TEXTS.items())} (Hrycej et al.)",
        answer=[
            *(outcome_sentence(claim, judgements) for claim, judgements in judged.items()),
            _throughout(runs),
        ],
        command=command,
        parts=[claims_part(runs, judged), _runs_part(runs, judged)],
        settings=settings,
    )


def _throughout(runs: Sequence[Row]) -> str:
    throughout = sum(is_proven_throughout(run) for run in runs)
    lowest = sum(run["minimum"]["verdict"] == NON_CONVEX for run in runs)
    return (
        f"At every measured point along Adam the loss was proven non-convex in {throughout} of {len(runs)} runs, and "
        f"where the second phase ended in {lowest}."
    )


def _runs_part(runs: Sequence[Row], judged: Judged) -> Part:
    rows = []
    for index, run in enumerate(runs):
        peak, last = norm_peak(evidence(run).norms), run["truth"][-1]
        lowest = curvature_peak(run)
        rows.append(
            [
                run["task"],
                str(run["case"]["seed"]),
                number(run["rows"][0]["train_loss"]),
                number(run["adam"]),
                MISSING if peak is None else str(peak),
                MISSING if peak is None else number(run["rows"][peak]["train_loss"]),
                MISSING if lowest is None else str(lowest),
                number(last["smallest"]),
                number(last["largest"]),
                number(share_along_gradient(run), 2),
                *(judged[claim][index].outcome for claim in judged),
            ]
        )
    return Part(
        "The runs",
        tables=[
            make_table(
                "Each run: the epoch at which the smoothed gradient norm peaks after its first trough, and the "
                "measured epoch with the lowest smallest eigenvalue. Then both ends of the spectrum at Adam’s end, "
                "and the share of points with gᵀHg > 0.",
                [
                    Column("Task", False),
                    "Seed",
                    "Loss at the start",
                    "Adam’s lowest",
                    "Norm peaks at epoch",
                    "at loss",
                    "Most negative at epoch",
                    "Smallest at the end",
                    "Largest",
                    "gᵀHg > 0",
                    *(Column(f"Claim {claim}", False) for claim in judged),
                ],
                rows,
            )
        ],
    )


def claims_part(runs: Sequence[Row], judged: Judged) -> Part:
    """Return the hypothesis' part: claims, reasons, patterns, and curvature along the runs."""
    reasons = Counter(
        (f"Claim {claim}", judgement.outcome, _anonymous(reason_clause(judgement)))
        for claim, judgements in judged.items()
        for judgement in judgements
    )
    why = [[claim, outcome, reason, str(count)] for (claim, outcome, reason), count in sorted(reasons.items())]
    strict = Counter(pattern(*kinds(run)).word for run in runs)
    near = Counter(pattern(*kinds(run, 0.05)).word for run in runs)
    words = list(dict.fromkeys([*strict, *near]))
    patterns = [[word, str(strict[word]), str(near[word])] for word in words]
    segments = [segment for run in runs for segment in run["segments"]]
    bent = sum(not segment["convex"] for segment in segments)
    along = [share_along_gradient(run) for run in runs]
    residual = [
        row["witness_residual"] for run in runs for row in run["truth"] if row.get("witness_residual") is not None
    ]
    paragraphs = [
        f"{ABOUT_OUTCOMES} Here the floor is a thousandth of the largest eigenvalue, the confidence 99.9 %. Undecided "
        "are mostly runs that never leave the non-convex region within their budget.",
        "The smallest eigenvalue shrinks relative to the largest as the loss falls: from a median of "
        f"{_negative(runs, 0)} at the start to {_negative(runs, -1)} at the end of Adam.",
        f"gᵀHg was positive at every measured point in {sum(share == 1 for share in along)} of {len(runs)} runs. "
        "Where it is positive and the smallest eigenvalue is not, the norm’s peak cannot show it.",
        f"Of {len(segments)} segments between successive points, {bent} are not convex (second differences of the loss "
        "at nine points, in float64). "
        + (
            f"Along {len(residual)} witnesses the residual part of the curvature, Σ ∂L/∂f ∇²f, is negative in "
            f"{sum(value < 0 for value in residual)}."
            if residual
            else ""
        ),
    ]
    return Part(
        "The hypothesis",
        paragraphs,
        list(filter(None, [curvature_chart(runs, "curvature")])),
        [
            *filter(None, [claim_counts_table(judged)]),
            make_table(
                "Why.", [Column("Claim", False), Column("Outcome", False), Column("Reason", False), "Runs"], why
            ),
            make_table(
                "How the verdict changes along Adam, with the verdict’s floor of 0.1 % of the largest eigenvalue. "
                "In the last column a smallest eigenvalue above −5 % of it counts as convex.",
                [Column("Pattern", False), "0.1 %", "5 %"],
                patterns,
            ),
        ],
    )


def _negative(runs: Sequence[Row], place: int) -> str:
    rows = [run["truth"][place] for run in runs if run["truth"][place]["largest"]]
    return percent(median(row["smallest"] / row["largest"] for row in rows), 2)


def _anonymous(reason: str) -> str:
    """Drop the numbers, so that equal reasons count together."""
    return " ".join("…" if word.strip(",").isdigit() else word for word in reason.split())


def is_proven_throughout(run: Row) -> bool:
    """Tell whether non-convexity is proven at every measured point along Adam."""
    return all(row["verdict"] == NON_CONVEX for row in run["truth"])


def kinds(run: Row, share: float | None = None) -> tuple[list[float], list[str]]:
    """Return the epochs of the measured points and their verdicts; with a share as `relative_kind` has them."""
    rows = run["truth"]
    kinds = [row["verdict"] if share is None else relative_kind(row, share) for row in rows]
    return [row["epoch"] for row in rows], kinds

"""The paper's claims 1 and 2 on one's own runs: judged by hand, said of one run, counted over several."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from convexlab.reporting.facts.claims import (
    CONVEX,
    NON_CONVEX,
    Evidence,
    Point,
    claim_1,
    claim_2,
    evidence_of,
    judge,
    pattern,
)
from convexlab.reporting.facts.norm import norm_peak
from convexlab.reporting.facts.run import read_facts
from convexlab.reporting.facts.runs import read_runs
from convexlab.reporting.parts.claims import claim_counts_table, judged_runs_table, judgements_of
from convexlab.reporting.words.claims import claim_notes, claim_sentences, reason_clause
from convexlab.runs import Run

MakeRun = Callable[..., Run]

N, C, U = NON_CONVEX, CONVEX, "unresolved"


@pytest.mark.parametrize(
    ("kinds", "swaps", "bracket", "word"),
    [
        ([N, N, N], 0, None, "non-convex throughout"),
        ([C, C], 0, None, "convex throughout"),
        ([N, C, C], 1, (0, 10), "one swap to convex"),
        ([N, U, U, C], 1, (0, 30), "one swap to convex"),  # the bracket is as wide as what is not known
        ([C, N], 1, None, "one swap to non-convex"),
        ([N, C, N, C], 3, (20, 30), "patchwork"),
        ([N, C, N], 2, None, "patchwork"),
        ([U, U, N], 0, None, "unknown"),
        ([], 0, None, "unknown"),
    ],
)
def test_pattern(kinds: list[str], swaps: int, bracket: tuple[float, float] | None, word: str) -> None:
    found = pattern([10 * place for place in range(len(kinds))], kinds)
    assert (found.swaps, found.bracket, found.word) == (swaps, bracket, word)


def test_two_points_of_one_epoch_are_told_apart_by_their_order() -> None:
    assert pattern([0, 7, 7], [N, N, C]).bracket == (7, 7)


def evidence(norms: list[float], points: list[Point], lowest: str | None = None) -> Evidence:
    return Evidence(tuple(map(float, range(len(norms)))), tuple(norms), tuple(points), lowest)


@pytest.mark.parametrize(
    ("kinds", "lowest", "outcome", "reason"),
    [
        ([N, N], C, "supported", "non-convex first, no negative curvature found after that"),
        ([N, C, C], None, "supported", "non-convex first, no negative curvature found after that"),
        ([N, U, C], C, "supported", "non-convex first, no negative curvature found after that"),
        ([N, C, N], None, "contradicted", "after points without negative curvature came non-convex ones"),
        ([N, C], N, "contradicted", "after points without negative curvature came non-convex ones"),
        ([C, N], N, "contradicted", "after points without negative curvature came non-convex ones"),
        ([N, N], None, "undecided", "proven non-convex at every point"),
        ([N, N], N, "undecided", "proven non-convex at every point, the lowest one included"),
        ([N, U, N], None, "undecided", "proven non-convex at 2 of 3 points, the other is unresolved"),
        ([C, C], C, "undecided", "no negative curvature found from the start on"),
        ([C, C, U, U], None, "undecided", "no negative curvature found at 2 of 4 points, the others are unresolved"),
        ([U, N, U], None, "undecided", "fewer than two verdicts are resolved"),
        ([], None, "undecided", "no curvature was measured along training"),
    ],
)
def test_claim_1_by_hand(kinds: list[str], lowest: str | None, outcome: str, reason: str) -> None:
    judgement = claim_1(evidence([], [Point(place, kind, 1.0) for place, kind in enumerate(kinds)], lowest))
    assert (judgement.outcome, reason_clause(judgement)) == (outcome, reason)


# The medians of five are largest from epoch 5 on.
PEAK = [1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 3.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("points", "outcome", "reason"),
    [
        ([Point(4, N, 4.0), Point(6, C, 1.0)], "supported", "the norm peaks at epoch 5, where the verdict changes"),
        (
            [Point(4, N, 4.0), Point(9, N, 1.0)],
            "contradicted",
            "after its peak at epoch 5 the norm falls at 1 point that is proven non-convex",
        ),
        # Non-convex after the peak, but the norm is still as high.
        (
            [Point(4, N, 4.0), Point(6, N, 4.9)],
            "undecided",
            "the norm peaks at epoch 5, but no change of the verdict is known",
        ),
        # Nothing is known of a norm that was not measured there.
        (
            [Point(4, N, 4.0), Point(9, N, None)],
            "undecided",
            "the norm peaks at epoch 5, but no change of the verdict is known",
        ),
        (
            [Point(2, C, 2.0), Point(6, C, 1.0)],
            "contradicted",
            "before its peak at epoch 5 a point without negative curvature was found",
        ),
        (
            [Point(4, N, 4.0), Point(6, U, 1.0)],
            "undecided",
            "the norm peaks at epoch 5, but no change of the verdict is known",
        ),
        ([], "undecided", "no curvature was measured along training"),
    ],
)
def test_claim_2_by_hand(points: list[Point], outcome: str, reason: str) -> None:
    judgement = claim_2(evidence(PEAK, points))
    assert (judgement.outcome, reason_clause(judgement)) == (outcome, reason)


@pytest.mark.parametrize(
    ("norms", "reason"),
    [
        ([0.9**epoch for epoch in range(12)], "the gradient norm has no peak after its first trough"),
        (PEAK[:9], "the gradient norm is known at 9 points, too few for a peak"),
        ([], "the gradient norm is known at 0 points, too few for a peak"),
    ],
)
def test_a_norm_without_a_peak_decides_nothing_about_claim_2(norms: list[float], reason: str) -> None:
    known = evidence(norms, [Point(6, N, 0.1)])
    assert known.peak is None
    assert (claim_2(known).outcome, reason_clause(claim_2(known))) == ("undecided", reason)


@pytest.mark.parametrize(
    ("norms", "place"),
    [
        (PEAK, 5),
        # Falls from a random head, which is no peak though it is the largest.
        ([9.0, 5.0, 2.0, 1.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0], 7),
        # No higher than 1 / 0.9 of the end.
        ([1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 4.8, 4.8, 4.8, 4.8], None),
        ([1.0], None),
        ([], None),
    ],
)
def test_norm_peak(norms: list[float], place: int | None) -> None:
    assert norm_peak(norms) == place
    # Free of scale.
    assert norm_peak([2.0**-40 * norm for norm in norms]) == place


def test_a_run_is_evidence_with_its_second_phase(make_run: MakeRun) -> None:
    run = make_run()
    known = evidence_of(read_facts(run, "run"))
    rows = [row for row in run.metrics if row["run"] == "two-phase"]
    assert known.norms == tuple(row["gradient_norm"] for row in rows)
    assert [point.verdict for point in known.points] == [row["verdict"] for row in run.probe]
    assert known.peak is not None
    # The fixture's norm is largest, but for its random head, around epoch 36.
    assert 25 <= known.peak <= 45


def test_checkpoints_alone_are_evidence_by_their_own_norms(make_probe: MakeRun) -> None:
    run = make_probe(count=3)
    known = evidence_of(read_facts(run, "probe"))
    assert known.norms == tuple(row["gradient_norm"] for row in run.probe)
    assert known.epochs == (0, 50, 100)
    # Without an epoch they have no place along training.
    assert evidence_of(read_facts(make_probe("bare", count=3, epoch=None), "bare")) == Evidence((), (), ())


def test_one_run_is_judged_with_its_reasons(make_run: MakeRun) -> None:
    facts = read_facts(make_run(), "run")
    proven, first, second = claim_sentences([facts])
    assert proven == "Non-convexity is proven at 6 of 11 measured points."
    assert first == "Claim 1 is supported: non-convex first, no negative curvature found after that."
    assert second.startswith("Claim 2 is contradicted: after its peak at epoch ")
    assert [(note.name, note.outcome) for note in claim_notes(facts)] == [
        ("Claim 1", "supported"),
        ("Claim 2", "contradicted"),
    ]


def test_steps_are_called_steps(make_probe: MakeRun) -> None:
    facts = read_facts(make_probe(count=12, axis="step", verdict=NON_CONVEX), "probe")
    norms = tuple(PEAK)
    known = Evidence(evidence_of(facts).epochs, norms, tuple(Point(50 * i, N, x) for i, x in enumerate(PEAK)))
    assert "its peak at step 250 the norm" in reason_clause(judge(known)["2"], "step")


def test_several_runs_are_counted_with_intervals(make_run: MakeRun, make_bare: MakeRun) -> None:
    runs = [make_run(name, epochs=20, switch=8) for name in ("a", "b")]
    for row in (rows := runs[1].probe):
        row["verdict"] = NON_CONVEX
    runs[1].probe_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = read_runs([*runs, make_bare("unprobed")])
    proven, first, *_, peaks = (text.replace("\N{NO-BREAK SPACE}", " ") for text in claim_sentences(facts))
    points = len(rows)
    assert proven.startswith("Of 3 runs, curvature was measured along 2. Non-convexity is proven at ")
    assert f" of {2 * points} measured points: at every one in 1 of 2 runs, at none in 0." in proven
    # One of two: by Clopper and Pearson from 1 - 0.975^(1/2).
    assert "Claim 1 is supported in 1 of 2 (50.0 %; 1.3 to 98.7 %), contradicted in 0 of 2" in first
    assert peaks.startswith("The gradient norm peaks after its first trough in ")
    judged = judgements_of(facts)
    counts = claim_counts_table(judged)
    table = judged_runs_table(facts, ["one", "two", "three"])
    assert counts is not None
    assert table is not None
    assert [row[0].text for row in counts.rows] == ["Claim 1", "Claim 2"]
    assert [(row[0].text, row[0].link) for row in table.rows] == [("a", "#one"), ("b", "#two")]
    assert [row[1].text for row in table.rows][1] == f"{points} of {points}"
    assert table.rows[1][2].text == "non-convex throughout"


def test_without_curvature_nothing_is_said(make_bare: MakeRun) -> None:
    facts = read_runs([make_bare("a"), make_bare("b")])
    assert claim_sentences(facts) == claim_sentences(facts[:1]) == claim_notes(facts[0]) == []
    assert claim_counts_table(judgements_of(facts)) is None
    assert judged_runs_table(facts, ["", ""]) is None

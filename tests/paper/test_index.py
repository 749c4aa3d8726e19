"""The index: each answer read into a word by the counts in it; every published answer is one that its rule reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from index import (
    BEYOND,
    CLAIMS,
    FIGURES,
    OPEN,
    Entry,
    behind_the_peak,
    below_adam,
    claims_together,
    held,
    judged,
    lowest,
)
from paper.published import read_page

REPORTS = Path(__file__).parents[2] / "reports"


@pytest.mark.parametrize(
    ("hits", "trials", "word", "tone"),
    [
        (15, 15, "holds", "good"),
        (8, 15, "mostly holds", "open"),
        (1, 15, "mostly fails", "bad"),
        (0, 15, "does not hold", "bad"),
    ],
)
def test_words_go_by_halves(hits: int, trials: int, word: str, tone: str) -> None:
    assert held(hits, trials, "rows") == (word, tone, f"{hits} of {trials} rows")


@pytest.mark.parametrize(
    ("counts", "word"),
    [((0, 5, 4), "contradicted"), ((3, 1, 5), "contradicted"), ((3, 0, 6), "supported"), ((0, 0, 9), "undecided")],
)
def test_one_proof_contradicts_a_claim(counts: tuple[int, int, int], word: str) -> None:
    parts = zip(("supported", "contradicted", "undecided"), counts, strict=True)
    said = ", ".join(f"{outcome} in {count} of 9 (1.0 %; 0.0 to 9.0 %)" for outcome, count in parts)
    finding = judged("2")([f"Claim 2 is {said} runs."])
    assert finding.word == word
    assert finding.figure == "supported in {}, contradicted in {}, undecided in {} of 9 runs".format(*counts)
    assert judged("1")([f"Claim 2 is {said} runs."]) == OPEN


def test_other_answers_are_read_by_hand() -> None:
    peak = ["Of the 6 points measured after it, 4 are proven non-convex; at 0 none was found."]
    assert behind_the_peak(peak).figure.startswith("2 of 6 points")
    axes = ["By cost: Adam is lowest (…).", "By the clock: Adam, then CG is lowest (…)."]
    assert lowest(axes).figure.startswith("1 of 2 axes")
    assert below_adam(["x: ends at 2.42×10⁻⁵ of Adam’s loss, at 3.", "y: ends at 1.30 of Adam’s loss."])[2].startswith(
        "1 of 2"
    )
    claims = ["Claim 1 is undecided: so.", "Claim 2 is supported: so. More.", "Claims 3 and 4 are contradicted, by it."]
    expected = ("contradicted", "bad", "supported in 1, contradicted in 2, undecided in 1 of 4 claims")
    assert claims_together(claims) == expected
    assert behind_the_peak([]) == lowest([]) == below_adam([]) == claims_together([]) == OPEN


@pytest.mark.parametrize("entry", [*CLAIMS, *FIGURES, *BEYOND], ids=lambda entry: entry.subject)
def test_every_published_answer_is_read(entry: Entry) -> None:
    pages = {path.stem: read_page(path) for path in (REPORTS / f"{name}.html" for name in _pages(entry))}
    card = entry.card(pages)
    assert card.verdict != OPEN.word
    assert any(digit.isdigit() for digit in card.figure)
    assert card.chart is not None


def _pages(entry: Entry) -> set[str]:
    return {entry.page, *([entry.picture[0]] if entry.picture else [])}

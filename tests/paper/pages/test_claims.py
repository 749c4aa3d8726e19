"""The hypothesis' page: what each run says of claims 1 and 2, counted, with intervals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from paper.pages.claims import claims_study, judge, kinds

from convexlab.reporting import write_study
from convexlab.reporting.facts.claims import CONVEX, NON_CONVEX

Run = dict[str, Any]


def a_run(verdicts: list[str], norms: list[float], minimum: str, seed: int = 0) -> Run:
    """A run of ten epochs, measured at every fifth; its loss halves every epoch."""
    truth = [
        {
            "epoch": epoch,
            "verdict": verdict,
            "smallest": -1.0 if verdict == NON_CONVEX else 0.1,
            "largest": 10.0,
            "gradient_norm": norms[epoch],
            "gradient_curvature": 2.0,
            "train_loss": 0.5**epoch,
        }
        for epoch, verdict in zip((0, 5, 10), verdicts, strict=True)
    ]
    return {
        "case": {"dataset": "mnist", "loss": "mse", "rate": 1e-3, "seed": seed},
        "task": "vit-mlp, mnist, mse",
        "rows": [{"epoch": epoch, "gradient_norm": norm, "train_loss": 0.5**epoch} for epoch, norm in enumerate(norms)],
        "truth": truth,
        "segments": [{"convex": True}, {"convex": False}],
        "minimum": {"verdict": minimum},
        "adam": 0.5**10,
    }


PEAKED = [1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4]
FALLING = [11.0 - epoch for epoch in range(11)]


def runs() -> list[Run]:
    return [
        a_run([NON_CONVEX, CONVEX, CONVEX], PEAKED, CONVEX),
        a_run([NON_CONVEX, NON_CONVEX, NON_CONVEX], PEAKED, NON_CONVEX, 1),
        a_run([CONVEX, NON_CONVEX, NON_CONVEX], FALLING, NON_CONVEX, 2),
    ]


def test_runs_are_judged_by_hand() -> None:
    judged = judge(runs())
    assert [judgement.outcome for judgement in judged["1"]] == ["supported", "undecided", "contradicted"]
    assert [judgement.outcome for judgement in judged["2"]] == ["supported", "contradicted", "undecided"]


def test_kinds_may_count_nearly_convex_as_convex() -> None:
    epochs, strict = kinds(runs()[1])
    assert (epochs, strict) == ([0, 5, 10], [NON_CONVEX] * 3)
    assert kinds(runs()[1], 0.2)[1] == [CONVEX] * 3  # -1 is above -0.2 · 10


def test_the_page_counts_with_intervals_and_shows_every_run(tmp_path: Path) -> None:
    study = claims_study(runs(), {"epochs": 10}, "python analyses/hypothesis.py")
    assert study.answer[0].startswith("Claim 1 is supported in 1 of 3 (33.3\xa0%")
    assert study.answer[2] == (
        "At every measured point along Adam the loss was proven non-convex in 1 of 3 runs, and where the second phase "
        "ended in 2."
    )
    page = write_study(study, tmp_path / "page.html").read_text("utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for sentence in (
        "vit-mlp, mnist, mse",
        "one swap to convex",
        "non-convex throughout",
        "first non-convex",
        "Norm peaks",
    ):
        assert sentence in text, sentence

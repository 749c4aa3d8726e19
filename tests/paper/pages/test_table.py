"""The pages of Table 1: medians, ratios and verdicts by hand; the paper's figures as printed; everything said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from paper.pages.fair_table import best_of, fair_study
from paper.pages.table import HIGHER, LOWER, MIXED, grouped, table_study, verdict, verdict_counts
from paper.protocols import ADAM, COSINE, FIXED, OURS, PAPERS
from paper.table import MODELS, PUBLISHED

from convexlab.architectures import build_model
from convexlab.reporting import write_study

Record = dict[str, Any]


def protocol(loss: float, **more: Any) -> Record:
    figures = {"train_loss": loss, "train_accuracy": 0.9, "validation_loss": 2 * loss, "validation_accuracy": 0.8}
    return figures | {"curve": [[0, 0, 1.0]]} | more


def record(dataset: str, model: str, seed: int, losses: dict[str, float], **case: Any) -> Record:
    """A run whose paper's protocol took 60 gradient equivalents for 20 epochs, and had twice its loss after 20."""
    switched = {"switch": 6, "failed": None}
    paper = {"steps": 14, "cost": 60.0, "at_equal_cost": protocol(2 * losses[PAPERS])}
    protocols = {name: protocol(loss) for name, loss in losses.items()}
    protocols[PAPERS] |= switched | paper
    protocols[FIXED] |= switched
    protocols[OURS] |= switched | {"switch": None if seed else 5, "reason": "it fell"}
    settings = {"dataset": dataset, "model": model, "epochs": 20, "seed": seed, "rate": 1e-3} | case
    return {
        "case": settings,
        "protocols": protocols,
        "parameters": 1000,
        "examples": 500,
        "overdetermination": 0.5 if model == "vit-mlp" else 5.0,
        "processor_seconds": 60.0,
    }


LOSSES = {ADAM: 0.02, COSINE: 0.01, PAPERS: 0.008, FIXED: 0.005, OURS: 0.03}


@pytest.fixture
def rows() -> list[Record]:
    worse = LOSSES | {PAPERS: 0.03, FIXED: 0.02}
    return [
        record("cifar10", "vgg5-max-relu", 0, worse),
        record("mnist", "vit-mlp", 0, LOSSES),
        record("mnist", "vit-mlp", 1, LOSSES | {PAPERS: 0.032}),
    ]


def test_the_published_rows_are_the_papers() -> None:
    assert len(PUBLISHED) == 15
    assert PUBLISHED["cifar10", "vit-nomlp"].adam == (0.0290, 0.819, 0.0981, 0.428)
    assert PUBLISHED["cifar100", "vgg5-max-relu"].adam_cg == (0.0032, 0.737, 0.0102, 0.321)
    assert sum(row.adam_cg[0] <= row.adam[0] for row in PUBLISHED.values()) == 15


def test_the_published_overdetermination_is_that_of_our_networks() -> None:
    sizes = {"mnist": (60_000, 10, 1), "cifar10": (50_000, 10, 3), "cifar100": (50_000, 100, 3)}
    for (dataset, model), row in PUBLISHED.items():
        examples, classes, channels = sizes[dataset]
        network = build_model(model, channels=channels, classes=classes)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        assert round(examples * classes / parameters, 1) == row.overdetermination


def test_rows_are_in_the_papers_order_with_a_record_a_seed(rows: list[Record]) -> None:
    groups = grouped(rows)
    assert [(group.dataset, group.model, len(group.runs)) for group in groups] == [
        ("mnist", "vit-mlp", 2),
        ("cifar10", "vgg5-max-relu", 1),
    ]
    assert list(PUBLISHED)[:5] == [("mnist", model) for model in MODELS]


def test_ratios_by_hand(rows: list[Record]) -> None:
    mnist, cifar = grouped(rows)
    assert mnist.per_epoch == pytest.approx([0.4, 1.6])
    # Twice the loss at equal cost, against the cosine rate, which is the better.
    assert mnist.per_cost == pytest.approx([1.6, 6.4])
    assert mnist.ours(FIXED) == pytest.approx([0.5, 0.5])
    assert cifar.ours(OURS) == pytest.approx([3.0])
    assert mnist.middle(PAPERS) == pytest.approx(0.02)


def test_verdicts_by_hand() -> None:
    assert verdict([0.5, 0.9]) == LOWER
    assert verdict([0.5, 1.1]) == MIXED
    assert verdict([1.0, 1.1]) == HIGHER
    sentence = verdict_counts([[0.5, 0.5], [0.5, 2.0], [2.0, 2.0]], "Adam")
    assert sentence.startswith("lower than Adam in 1 of 3 rows, in 1 with some seeds only, 1.00 times")


def test_the_page_has_both_accountings_and_the_papers_figures(rows: list[Record], tmp_path: Path) -> None:
    page = write_study(table_study(rows, "python analyses/table_1.py"), tmp_path / "page.html").read_text("utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for sentence in (
        "lower than Adam in 0 of 2 rows, in 1 with some seeds only",
        "as the paper counts, after 20 epochs: lower",
        "In the paper, after 700 or 1,000: in 2 of 2",
        "MNIST vit-mlp",
        "except for MNIST vit-mlp: there are too few images here",
        "0.0008",
        "0.0001",
        "60 / 20",
        "0.800 (0.400–1.60)",
        "some seeds",
        "5, –",
    ):
        assert sentence in text, sentence


def test_a_page_of_rows_that_the_paper_has_not_makes_no_mention_of_it(tmp_path: Path) -> None:
    rows = [record("digits", "vit-mlp", 0, LOSSES)]
    page = write_study(table_study(rows, "command"), tmp_path / "page.html").read_text("utf-8")
    assert "In the paper" not in page
    assert "Paper: Adam" not in page


def test_each_way_has_the_rate_that_serves_it_best() -> None:
    slow = record("mnist", "vit-mlp", 0, LOSSES, rate=3e-4)
    fast = record("mnist", "vit-mlp", 0, LOSSES | {ADAM: 0.001, FIXED: 0.05}, rate=2e-3)
    line = [*grouped([slow]), *grouped([fast])]
    assert (best_of(line, (ADAM, COSINE)).protocol, best_of(line, (ADAM, COSINE)).rate) == (ADAM, 2e-3)
    assert best_of(line, (FIXED,)).rate == 3e-4
    study = fair_study([slow, fast], "command")
    assert study.answer[0].startswith(
        "Ours from the paper’s switch: lower than the best Adam in 0 of 1 rows, 5.00 times"
    )
    assert study.answer[2] == "The best Adam of 2 rates has a cosine rate in 0 of 1 rows."


def test_the_fair_page_names_the_rates(tmp_path: Path) -> None:
    slow, fast = (record("mnist", "vit-mlp", 0, LOSSES, rate=rate) for rate in (3e-4, 2e-3))
    page = write_study(fair_study([slow, fast], "command"), tmp_path / "page.html").read_text("utf-8")
    assert "0.0003, 0.002" in page
    assert "(0.0003, cosine)" in page


def test_the_fair_page_has_the_papers_way_where_it_was_trained() -> None:
    slow, fast = (record("mnist", "vit-mlp", 0, LOSSES, rate=rate) for rate in (3e-4, 1e-3))
    del slow["protocols"][PAPERS]
    study = fair_study([slow, fast], "command")
    assert study.answer[3].startswith(
        "The paper’s protocol at the rate 0.001, epoch against epoch: lower than Adam in 1 of 1 rows, 0.400 times"
    )
    assert [part.heading for part in study.parts] == ["The rows", "The paper’s protocol on these rows"]
    del fast["protocols"][PAPERS]
    assert len(fair_study([slow, fast], "command").parts) == 1

"""When a run should have switched: the sentences, the charts and their marks, and how to ask where it was not."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.colors
import pytest
from matplotlib.axes import Axes

from convexlab.reporting import contents as contents_module
from convexlab.reporting import summary_lines, write_report
from convexlab.reporting.charts import hindsight as oracle_figure
from convexlab.reporting.charts.curvature import eigenvalue_chart, mass_chart
from convexlab.reporting.charts.hindsight import oracle_chart
from convexlab.reporting.charts.training import norm_chart
from convexlab.reporting.facts.run import RunFacts, read_facts
from convexlab.reporting.parts.hindsight import oracle_part
from convexlab.reporting.words.hindsight import joint_oracle_sentence, oracle_paragraphs, oracle_sentence
from convexlab.runs import Run

MakeRun = Callable[..., Run]

# The run of the fixtures: switched at epoch 40, 1.4e-4; Adam alone 3.1e-4 and 2.3e-4.
ENDS = {20: 6e-4, 40: 1.4e-4, 60: 1e-4, 80: 2e-4}
HINT = "No other switch was tried."


def with_oracle(run: Run, ends: Mapping[int, float] = ENDS, resorted: Sequence[int] = ()) -> Run:
    """Add what an oracle leaves."""
    rows = [
        {
            "switch_epoch": epoch,
            "train_loss": loss,
            "validation_loss": 0.0123,
            "gradient_equivalents": 120.0,
            "epoch": 99,
            "safe_resort": {"epoch": epoch + 10, "reason": "the search failed"} if epoch in resorted else None,
        }
        for epoch, loss in ends.items()
    ]
    run.oracle_path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    best = min(rows, key=lambda row: row["train_loss"])
    asked = {"epoch": best["switch_epoch"], "train_loss": best["train_loss"], "regret": 0.4, "switches": len(rows)}
    if run.summary is not None:
        summary = run.summary | {"oracle": asked | {"gradient_equivalents": sum(120.0 - epoch for epoch in ends)}}
        run.summary_path.write_text(json.dumps(summary), encoding="utf-8")
    run.config_path.write_text(json.dumps(run.config | {"oracle_every": 20}), encoding="utf-8")
    return run


def facts_of(run: Run) -> RunFacts:
    return read_facts(run, "run")


def text_of(path: Path) -> str:
    source = re.sub(r"<(style|title|desc)\b.*?</\1>", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", " ", source)).replace("\N{NO-BREAK SPACE}", " ")
    return " ".join(text.split())


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


# Words


@pytest.mark.parametrize(
    ("ends", "begins"),
    [
        (ENDS, "The best of 4 switches was at epoch 60: 0.714 times the loss of the detected switch at epoch 40."),
        ({20: 6e-4, 40: 1.4e-4}, "The best of 2 switches was at epoch 40, where this run switched."),
        ({30: 1.405e-4, 60: 1e-3}, "The best of 2 switches was at epoch 30, level with the detected switch at epoch"),
        (
            {30: 2.8e-4, 60: 1e-3},
            "None of 2 switches ended lower than the detected switch at epoch 40: the best, at epoch 30, has 2.00 "
            "times its loss.",
        ),
        ({60: 0.7e-4}, "The one switch tried, at epoch 60, ended at 0.500 times the loss of the detected switch at"),
    ],
)
def test_the_run_against_the_best_switch(ends: dict[int, float], begins: str, make_bare: MakeRun) -> None:
    sentence = oracle_sentence(facts_of(with_oracle(make_bare(), ends)))
    assert sentence.startswith(begins)
    # One alone is the best of nothing.
    assert sentence.endswith("The best of several is partly luck.") == (len(ends) > 1)


def test_adam_alone_answers_whether_to_switch_at_all(make_bare: MakeRun) -> None:
    better = "Adam alone, the better of constant and cosine rate, ended "
    assert f"{better}at 2.30 times the loss of the best switch." in oracle_sentence(facts_of(with_oracle(make_bare())))
    lower = with_oracle(make_bare("lower"), {20: 4.6e-4, 40: 1e-3})
    assert f"{better}at 0.500 times the loss of the best switch." in oracle_sentence(facts_of(lower))
    same = with_oracle(make_bare("same"), {20: 2.301e-4, 40: 1e-3})
    assert f"{better}level with the best switch." in oracle_sentence(facts_of(same))


def test_a_run_that_never_switched_and_one_with_a_set_switch(make_bare: MakeRun) -> None:
    never = oracle_sentence(facts_of(with_oracle(make_bare("never", switch=None, final=2.8e-4), {20: 1.4e-4, 40: 1})))
    assert "at epoch 20: 0.500 times the loss of this run without a switch." in never
    switch = {"epoch": 40, "detector": "switch-epoch", "train_loss": 0.1, "gradient_norm": 0.1, "reason": "was set"}
    sentence = oracle_sentence(facts_of(with_oracle(make_bare("set", summary={"switch": switch}))))
    assert "times the loss of the chosen switch at epoch 40" in sentence


def test_what_was_tried_and_what_it_cost(make_bare: MakeRun) -> None:
    (words,) = oracle_paragraphs(facts_of(with_oracle(make_bare(), resorted=[20, 80])))
    assert "also started from 4 epochs, 20 to 80, of Adam at a constant rate" in words
    # 100 + 80 + 60 + 40 beside the Adam epochs.
    assert "These trials cost 280 gradient equivalents beside the run, and had no part in its decision." in words
    assert "In 2 of them phase two gave up, and Adam went on." in words
    # 6 / 1.4, 1.4 / 1 and 2 / 1: their median is 2.
    assert "the loss changes by a median factor of 2.00." in words
    assert "After epoch 40 the curvature charts show this run's second phase" in words
    (alone,) = oracle_paragraphs(facts_of(with_oracle(make_bare("alone"), {20: 1e-4})))
    assert "started from epoch 20 of Adam" in alone
    assert "factor" not in alone
    assert "gave up" not in alone
    assert "curvature charts" not in alone


def test_several_runs_together(make_bare: MakeRun) -> None:
    runs = [with_oracle(make_bare("a"), {20: 0.7e-4}), with_oracle(make_bare("b", seed=1), {20: 2.8e-4})]
    words = joint_oracle_sentence([facts_of(run) for run in runs])
    assert words.startswith("Over 2 runs, the best switch ended at 1.00 times the loss of the run's own decision")
    assert "(geometric mean; 0.500 to 2.00)" in words
    assert words in summary_lines(runs)
    assert joint_oracle_sentence([facts_of(make_bare("c"))]) == ""


# Charts


def test_the_chart_has_every_switch_the_decision_and_both_rates_of_adam(
    make_bare: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Axes] = []
    monkeypatch.setattr(oracle_figure, "legend", drawn.append)
    made = oracle_chart(facts_of(with_oracle(make_bare(), resorted=[20])), "key")
    assert made is not None
    (axes,) = drawn
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines["each switch tried"].get_xdata()) == list(ENDS)
    assert list(lines["each switch tried"].get_ydata()) == list(ENDS.values())
    assert list(lines["gave up phase two"].get_xdata()) == [20]
    assert (lines["best of 4, epoch 60"].get_xdata(), lines["best of 4, epoch 60"].get_ydata()) == ([60], [1e-4])
    decision = lines["this run, epoch 40"]
    assert (decision.get_xdata(), decision.get_ydata()) == ([40], [1.4e-4])
    for name, loss in (("Adam alone, constant", 3.1e-4), ("Adam alone, cosine", 2.3e-4)):
        assert set(lines[name].get_ydata()) == {loss}
    # Told apart without colour: by marker, or by line.
    looks = {(line.get_marker(), line.get_linestyle()) for name, line in lines.items() if name != "gave up phase two"}
    assert len(looks) == len(lines) - 1


def test_the_chart_says_its_numbers(make_bare: MakeRun) -> None:
    made = oracle_chart(facts_of(with_oracle(make_bare())), "key")
    assert made is not None
    assert {"best of 4, epoch 60", "this run, epoch 40", "Adam alone, constant"} <= set(texts(made.svg))
    assert "20: 6.00×10⁻⁴, 40: 1.40×10⁻⁴" in made.description
    assert "Lowest: 1.00×10⁻⁴ at epoch 60. This run: 1.40×10⁻⁴." in made.description
    never = oracle_chart(facts_of(with_oracle(make_bare("never", switch=None))), "key")
    assert never is not None
    assert "this run, never switched" in texts(never.svg)


def test_a_loss_of_zero_and_a_single_switch_can_be_drawn(make_bare: MakeRun) -> None:
    for ends in ({20: 0.0, 40: 1e-4}, {20: 1e-4}):
        facts = facts_of(with_oracle(make_bare(f"run-{len(ends)}"), ends))
        assert oracle_chart(facts, "key") is not None
        assert oracle_part(facts, "key", compact=False) is not None
    assert oracle_sentence(facts_of(Run(make_bare("none").path))) == ""


@pytest.mark.parametrize("best", [20, 80])
def test_the_best_switch_is_marked_beside_the_decision(best: int, make_run: MakeRun) -> None:
    ends = {20: 3e-4, 80: 3e-4} | {best: 1e-4}
    facts = facts_of(with_oracle(make_run(), ends))
    name = f"best of 2, epoch {best}"
    norm, ends_chart, mass = norm_chart(facts, "a"), eigenvalue_chart(facts, "b"), mass_chart(facts, "c")
    assert norm is not None
    assert ends_chart is not None
    assert mass is not None
    assert {name, "switch, epoch 40"} <= set(texts(norm.svg))
    # Behind the run's own switch Adam went another way.
    assert ("Adam alone, constant" in texts(norm.svg)) == (best > 40)
    for made in (ends_chart, mass):
        assert {name, "switch"} <= set(texts(made.svg))
    assert f"The best of the switches tried began at epoch {best} of Adam." in norm.description


def test_without_an_oracle_no_chart_changes(make_run: MakeRun) -> None:
    facts = facts_of(make_run())
    assert oracle_chart(facts, "key") is None
    assert oracle_part(facts, "key", compact=False) is None
    color = matplotlib.colors.to_hex(oracle_figure.PALETTE["orange"])
    for make in (norm_chart, eigenvalue_chart, mass_chart):
        made = make(facts, "key")
        assert made is not None
        assert color not in made.svg
        assert not any("best of" in text for text in texts(made.svg))


# The page


def test_the_page_answers_and_shows(make_bare: MakeRun) -> None:
    run = with_oracle(make_bare(), resorted=[80])
    text = text_of(write_report([run]))
    places = [
        text.index(part)
        for part in (
            "The best of 4 switches was at epoch 60",
            "The switch, and why",
            "When to have switched",
            "Phase two was also started from 4 epochs",
            "Final loss over the switch epoch",
            "Every switch that was tried",
            "Results",
        )
    ]
    assert places == sorted(places)
    assert "epoch 80 2.00×10⁻⁴ 1.43 0.0123 120 90" in text
    assert "<strong>1.00×10⁻⁴</strong>" in run.report_path.read_text(encoding="utf-8")
    assert HINT not in text


def test_the_page_says_how_to_ask(make_bare: MakeRun, make_probe: MakeRun) -> None:
    text = text_of(write_report([make_bare()]))
    assert text.count(HINT) == 1
    assert "convexlab train two-phase --oracle-every N" in text
    assert "When to have switched" not in text
    # Not where there is nothing to switch, nor where the answer is still to come.
    assert HINT not in text_of(write_report([make_probe(density=None)]))
    unfinished = with_oracle(make_bare("unfinished", finished=False))
    assert HINT not in text_of(write_report([unfinished]))
    assert "When to have switched" not in text_of(unfinished.report_path)


def test_a_compact_page_keeps_the_words(make_bare: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents_module, "MANY", 1)
    text = text_of(write_report([with_oracle(make_bare("a")), with_oracle(make_bare("b"))]))
    assert text.count("When to have switched") == 2
    assert "Final loss over the switch epoch" not in text


def test_any_value_of_it_may_be_null(make_bare: MakeRun) -> None:
    run = with_oracle(make_bare())
    rows = [
        dict.fromkeys(row) | {"switch_epoch": row["switch_epoch"], "train_loss": row["train_loss"]}
        for row in run.oracle
    ]
    run.oracle_path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    summary: dict[str, Any] = run.summary or {}
    run.summary_path.write_text(json.dumps(summary | {"oracle": dict.fromkeys(summary["oracle"])}), encoding="utf-8")
    text = text_of(write_report([run]))
    assert "The best of 4 switches was at epoch 60" in text
    assert "None of" not in text
    assert not {"None", "nan"} & set(text.split())

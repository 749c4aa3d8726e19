"""A run of the study from end to end on small tasks: what is recorded, what a restart repeats, what is charged."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest
from paper import validated_run as runs_module
from paper.adam_run import AdamRun
from paper.pages.detectors import validation_study
from paper.rules import RULES, Rule, replay
from paper.scores import score
from paper.validated_run import ValidationPlan, decided, validate_run

from convexlab.detection import Algorithm1, BudgetFraction, FixedEpoch
from convexlab.problems import Problem, friedman, physics_informed
from convexlab.problems.physics_informed import convection

PLAN = ValidationPlan(epochs=8, rate=3e-3, seed=0, switch_every=3, truth_every=4)


@pytest.fixture(scope="module")
def task() -> Problem:
    return friedman(train_size=60, seed=0, batch_size=16)


@pytest.fixture(scope="module")
def made(task: Problem) -> dict[str, Any]:
    run = validate_run(task, PLAN)
    return json.loads(json.dumps(run))  # as it comes back from disk


def test_everything_is_recorded(made: dict[str, Any]) -> None:
    assert [row["epoch"] for row in made["rows"]] == list(range(9))
    assert [row["cost"] for row in made["rows"]] == list(range(9))
    assert [row["epoch"] for row in made["truth"]] == [0, 4, 8]
    assert [(one["begin"], one["end"]) for one in made["segments"]] == [(0, 4), (4, 8)]
    assert set(made["decisions"]) == {rule.label for rule in RULES}
    assert made["adam"] == min(row["train_loss"] for row in made["rows"])
    assert made["minimum"]["verdict"] in {"non-convex", "no-negative-curvature", "unresolved"}


def test_every_decision_is_followed_to_the_end_of_the_budget(made: dict[str, Any]) -> None:
    endings = {(one["epoch"], one["spent"]): one for one in made["endings"]}
    assert {(3, 3.0), (6, 6.0)} <= endings.keys()
    for decision in made["decisions"].values():
        assert decision["epoch"] is None or (decision["epoch"], decision["spent"]) in endings
    for (epoch, _), ending in endings.items():
        assert all(cost <= 8 + 1e-9 for cost, _ in ending["curve"])
        before = min(row["train_loss"] for row in made["rows"][: epoch + 1])
        assert ending["loss"] == min([before, *(loss for _, loss in ending["curve"])])
    assert all(score(made, label).regret >= 0 for label in made["decisions"])


def test_what_is_known_is_not_done_again(task: Problem, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("was done again")

    for name in ("switch_at", "curvature_at", "segment_between"):
        monkeypatch.setattr(runs_module, name, never)
    assert json.loads(json.dumps(validate_run(task, PLAN, known=made))) == made


def test_rules_are_asked_anew_from_the_record_alone(made: dict[str, Any]) -> None:
    assert decided(made) == made
    first = Rule("at epoch 3", lambda budget: BudgetFraction(budget, 3 / 8))
    again = decided(made, [first])
    assert again is not None
    assert again["decisions"]["at epoch 3"] == {"epoch": 3, "spent": 3.0, "factor": 1.0} | {
        "reason": "the switch was set to epoch 3, 38% of a budget of 8"
    }
    # No rule fired at the first epoch, at twice its cost.
    paid = Rule("algorithm-1", lambda budget: FixedEpoch(1), "full")
    assert decided(made, [paid]) is None


def test_only_what_another_rule_needs_is_added(task: Problem, made: dict[str, Any]) -> None:
    fifth = Rule("at epoch 5", lambda budget: BudgetFraction(budget, 5 / 8))
    more = validate_run(task, PLAN, [*RULES, fifth], known=made)
    added = {(one["epoch"], one["spent"]) for one in more["endings"]} - {
        (one["epoch"], one["spent"]) for one in made["endings"]
    }
    assert added <= {(5, 5.0)}
    assert more["decisions"]["at epoch 5"]["epoch"] == 5


def test_a_run_goes_on_from_its_state_as_if_nothing_had_been(task: Problem) -> None:
    run = AdamRun(task, rate=1e-2, seed=3)
    for _ in range(2):
        run.train()
    state = run.state()
    expected = [run.train() for _ in range(2)]
    run.restore(state)
    assert [run.train() for _ in range(2)] == expected


def test_a_rule_pays_for_the_full_gradient_and_runs_out_of_budget(made: dict[str, Any]) -> None:
    rows = made["rows"][1:]
    full = Rule("algorithm-1", lambda budget: Algorithm1(0.01), "full")
    found = replay(full, rows, {}, whole_batch=False, budget=8.0)
    assert (found.epoch, found.spent, found.factor) == (None, 8.0, 2.0)
    at_once = Rule("algorithm-1", lambda budget: Algorithm1(0.999), "full")
    paid, free = (replay(at_once, rows, {}, whole_batch=whole, budget=8.0) for whole in (False, True))
    assert free.epoch is not None
    assert free.spent == free.epoch
    assert paid.epoch is None or paid.spent == 2 * paid.epoch


def test_on_the_whole_batch_the_full_norm_is_free_and_exact() -> None:
    task = physics_informed(convection(), train_size=20, seed=0)
    plan = ValidationPlan(epochs=3, rate=1e-3, seed=0, steps=2, switch_every=2, truth_every=3)
    run = validate_run(task, plan)
    assert run["budget"] == 6.0
    assert [row["cost"] for row in run["rows"]] == [0, 2, 4, 6]
    assert all(decision["factor"] == 1.0 for decision in run["decisions"].values())
    # No criterion, no residual part.
    assert all(row["witness_residual"] is None for row in run["truth"])
    assert math.isnan(run["rows"][1]["unbiased_gradient_norm"])


def test_the_page_says_what_the_runs_say(made: dict[str, Any]) -> None:
    cases = [{"dataset": "friedman", "loss": "mse", "rate": 3e-3, "seed": seed} for seed in (0, 1)]
    runs = [made | {"case": case, "task": task} for case, task in zip(cases, ("first", "second"), strict=True)]
    study = validation_study(runs, {"scale": "toy"}, "python x.py")
    assert " of 2 runs" in study.answer[0]
    rules = study.parts[1].tables[0]
    assert {row[0].text for row in rules.rows} == set(made["decisions"])
    assert [row[0].text for row in study.parts[4].tables[0].rows] == ["first", "second"]
    assert len(study.parts[2].tables[0].rows) == 4
    switches = 2 * len(made["endings"])
    assert f"in none of {switches} switches." in study.parts[3].paragraphs[1]


def test_the_page_counts_why_the_second_phase_was_given_up(made: dict[str, Any]) -> None:
    case = {"dataset": "friedman", "loss": "mse", "rate": 3e-3, "seed": 0}
    reasons = ["the gradient norm has been above Adam's largest, 2, for 10 steps", "no descent", "no descent"]
    endings = [
        ending | {"resorted": reason}
        for ending, reason in itertools.zip_longest(made["endings"], reasons[: len(made["endings"])])
    ]
    runs = [made | {"case": case, "task": task, "endings": endings} for task in ("first", "second")]
    part = validation_study(runs, {"scale": "toy"}, "python x.py").parts[3]
    assert "4 because steps failed, 2 because the gradient norm stayed above Adam’s largest" in part.paragraphs[1]

"""The sequences of figures 5 and 6: recorded without being disturbed, and their shared beginnings are the same."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise

import pytest
from paper.adam_run import AdamRun
from paper.protocols import ADAM, FIXED, PAPERS, ProtocolPlan
from paper.sequences import CG_ALONE, Recording, train_sequences
from paper.switching import followed

from convexlab.linalg.vectors import norm
from convexlab.problems import Problem, friedman
from convexlab.progress import Progress
from convexlab.runs import Row
from convexlab.training.phases import phase_two

PLAN = ProtocolPlan(epochs=6, switch=2, rate=3e-3, seed=0)


@pytest.fixture(scope="module")
def task() -> Problem:
    return friedman(train_size=60, seed=0, batch_size=16)


@pytest.fixture(scope="module")
def sequences(task: Problem) -> dict[str, list[Row]]:
    return train_sequences(task, PLAN, Recording(every=3))


def test_each_goes_on_for_all_its_epochs(sequences: dict[str, list[Row]]) -> None:
    assert [row["epoch"] for row in sequences[ADAM]] == list(range(7))
    assert [row["epoch"] for row in sequences[PAPERS]] == [2, 3, 4, 5, 6]
    assert [row["epoch"] for row in sequences[FIXED]] == [2, 3, 4, 5, 6]
    assert [row["epoch"] for row in sequences[CG_ALONE]] == list(range(7))


def test_they_start_where_adam_stood(sequences: dict[str, list[Row]]) -> None:
    for name, epoch in ((PAPERS, 2), (FIXED, 2), (CG_ALONE, 0)):
        for column in ("cost", "train_loss", "gradient_norm", "seconds"):
            assert sequences[name][0][column] == sequences[ADAM][epoch][column]


def test_costs_and_seconds_grow(sequences: dict[str, list[Row]]) -> None:
    for rows in sequences.values():
        for before, after in pairwise(rows):
            assert after["cost"] >= before["cost"] + 1
            assert after["seconds"] >= before["seconds"]


def test_measuring_along_the_way_changes_nothing(task: Problem, sequences: dict[str, list[Row]]) -> None:
    run = AdamRun(task, rate=PLAN.rate, seed=PLAN.seed, watched=False)
    for _ in range(PLAN.switch):
        run.train()
    steps = list(followed(run, phase_two(PLAN.papers), budget=math.inf, steps=4))
    assert [step.loss for step in steps] == [row["train_loss"] for row in sequences[PAPERS][1:]]
    costs = [PLAN.switch, *(step.cost for step in steps)]
    assert [row["cost"] for row in sequences[PAPERS]] == pytest.approx(list(itertools.accumulate(costs)))


def test_the_norm_is_the_full_gradients(task: Problem, sequences: dict[str, list[Row]]) -> None:
    run = AdamRun(task, rate=PLAN.rate, seed=PLAN.seed, watched=False)
    for _ in range(PLAN.switch):
        run.train()
    list(followed(run, phase_two(PLAN.ours), budget=math.inf, steps=4))
    assert sequences[FIXED][-1]["gradient_norm"] == pytest.approx(float(norm(task.objective.gradient())), rel=1e-5)


def test_curvature_is_measured_where_it_was_asked_for(sequences: dict[str, list[Row]]) -> None:
    measured = {name: [row["epoch"] for row in rows if "curvature" in row] for name, rows in sequences.items()}
    assert measured == {ADAM: [0, 3, 6], PAPERS: [3, 6], FIXED: [3, 6], CG_ALONE: [0, 3, 6]}
    for rows in sequences.values():
        for row in rows:
            if "curvature" in row:
                assert row["curvature"]["train_loss"] == pytest.approx(row["train_loss"], rel=1e-6)


def test_progress_is_told(task: Problem) -> None:
    told: list[Progress] = []
    train_sequences(task, ProtocolPlan(2, 1, 3e-3, 0), Recording(every=5), progress=told.append)
    assert {step.task for step in told} == {ADAM, PAPERS, FIXED, CG_ALONE}

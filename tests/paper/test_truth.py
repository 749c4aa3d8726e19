"""What counts as nearly convex, by hand; and curvature of a task whose loss is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from paper.truth import curvature_at, relative_kind, segment_between

from convexlab.probing import ProbeOptions
from convexlab.problems import Problem, friedman
from convexlab.reporting.facts.claims import CONVEX, NON_CONVEX

C, N, U = CONVEX, NON_CONVEX, "unresolved"


@pytest.mark.parametrize(
    ("smallest", "largest", "kind"),
    [
        (-0.04, 1.0, C),
        (-0.05, 1.0, C),
        (-0.051, 1.0, N),
        (0.1, 1.0, C),
        (None, 1.0, U),
        (math.nan, 1.0, U),
        (-1.0, 0.0, U),
    ],
)
def test_relative_kind(smallest: float | None, largest: float, kind: str) -> None:
    assert relative_kind({"smallest": smallest, "largest": largest}, 0.05) == kind


@pytest.fixture(scope="module")
def task() -> Problem:
    return friedman(train_size=40, seed=0, batch_size=16)


def test_curvature_is_that_of_the_weights_asked_for(task: Problem) -> None:
    task.reset()
    start = task.objective.flat_parameters()
    moved = start * 0.5
    first, second = (curvature_at(task, weights, ProbeOptions(density_probes=1)) for weights in (start, moved))
    for weights, row in ((start, first), (moved, second)):
        task.objective.write(weights)
        assert row["train_loss"] == pytest.approx(task.objective.value())
        # A witness of a squared error bends downwards through the residual part alone: the other is never negative.
        if row["verdict"] == N:
            assert row["witness_residual"] <= row["smallest"] + 1e-4 * row["largest"]
        assert "density" not in row
    assert first["verdict"] == N


def test_segments_of_a_network_that_is_linear_in_its_last_layer_are_convex_there(task: Problem) -> None:
    task.reset()
    start = task.objective.flat_parameters()
    end = start.clone()
    end[-65:] += torch.linspace(-1.0, 1.0, 65)  # 64 weights and a bias
    found = segment_between(task, start, end)
    assert found["convex"]
    assert found["least"] > 0

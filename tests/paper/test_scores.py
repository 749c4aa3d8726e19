"""Regret, transients, misses and lags by hand; intervals against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from paper.choosing import Criterion, choose, halves
from paper.claims import evidence, share_along_gradient
from paper.scores import (
    Score,
    best_neighbourhood,
    best_switch,
    bootstrap,
    curvature_peak,
    jump,
    outcomes,
    run_by_run,
    score,
    transient,
)

from convexlab.reporting.facts.claims import NON_CONVEX, Point
from convexlab.reporting.facts.norm import first_rise

Run = dict[str, Any]


def point(epoch: int, verdict: str, smallest: float = -1.0, norm: float = 1.0) -> Run:
    return {
        "epoch": epoch,
        "verdict": verdict,
        "smallest": smallest,
        "largest": 10.0,
        "gradient_norm": norm,
        "gradient_curvature": 2.0,
    }


def a_run(norms: list[float], truth: list[Run], **more: Any) -> Run:
    """A run of len(norms) - 1 epochs, at one gradient equivalent each, whose loss halves every epoch."""
    rows = [
        {"epoch": epoch, "cost": epoch, "gradient_norm": norm, "train_loss": 0.5**epoch}
        for epoch, norm in enumerate(norms)
    ]
    return {
        "rows": rows,
        "truth": truth,
        "budget": float(len(norms) - 1),
        "adam": rows[-1]["train_loss"],
        "minimum": {"verdict": NON_CONVEX},
        "endings": [],
    } | more


@pytest.mark.parametrize(
    ("norms", "steep", "rise"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0, 0),
        # Medians of up to five: 5 4.5 4 3 2 2 3: each but one falls by a tenth or more, until the fifth.
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0], 4, 4),
        # Each falls by a twentieth: no collapse, and no rise to the end.
        ([0.95**epoch for epoch in range(12)], 0, 11),
        ([0.5**epoch for epoch in range(12)], 11, 11),
        ([1.0], 0, 0),
    ],
)
def test_transient_and_first_rise(norms: list[float], steep: int, rise: int) -> None:
    assert (transient(norms), first_rise(norms)) == (steep, rise)


ENDINGS = [
    {"epoch": 2, "spent": 2.0, "loss": 0.004},
    {"epoch": 4, "spent": 4.0, "loss": 0.002},
    {"epoch": 3, "spent": 6.0, "loss": 0.001},  # of a rule that doubled the cost: no oracle's
]
DECISIONS = {
    "free": {"epoch": 4, "spent": 4.0, "factor": 1.0},
    "early": {"epoch": 2, "spent": 2.0, "factor": 1.0},
    "paid": {"epoch": 3, "spent": 6.0, "factor": 2.0},
    "never": {"epoch": None, "spent": 8.0, "factor": 1.0},
    "never, paid": {"epoch": None, "spent": 8.0, "factor": 2.0},
}
# The medians are 5 4.5 4 3 3: the transient ends at epoch 3.
RUN = a_run(
    [6.0, 5.0, 4.0, 3.0, 2.0, 2.0, 3.0, 4.0, 1.0],
    [
        point(0, NON_CONVEX, -1.0),
        point(2, NON_CONVEX, -5.0),
        point(4, NON_CONVEX, -0.6),
        point(6, NON_CONVEX, -0.4),
        point(8, NON_CONVEX, -0.1),
    ],
    endings=ENDINGS,
    decisions=DECISIONS,
)


def test_the_oracle_takes_the_best_of_what_costs_nothing_beside_adam() -> None:
    assert best_switch(RUN) == ENDINGS[1]
    alone = best_switch(RUN | {"endings": [{"epoch": 4, "spent": 4.0, "loss": 1.0}]})
    assert (alone["epoch"], alone["loss"]) == (None, 0.5**8)


SMOOTH = (0.004 * 0.002 * 0.5**8) ** (1 / 3)


def test_the_oracle_without_its_luck() -> None:
    # Outcomes 0.004, 0.002 and, for Adam alone, 2⁻⁸: one neighbourhood of three.
    assert [one["epoch"] for one in outcomes(RUN)] == [2, 4, None]
    assert best_neighbourhood(RUN) == pytest.approx(SMOOTH)
    assert jump(RUN) == pytest.approx(math.sqrt(2.0 * 0.5**8 / 0.002))


def test_scores_by_hand() -> None:
    assert curvature_peak(RUN) == 2
    found = {name: score(RUN, name) for name in DECISIONS}
    # The smallest eigenvalue is above -5 % of 10 from epoch 6 on; the last one below it was at 4.
    assert found["free"] == Score(
        4,
        0.002,
        0.0,
        pytest.approx(0.002 / SMOOTH - 1),
        early=False,
        before_rise=False,
        missed=False,
        lag=2,
        transition_lag=(-2, 0),
    )
    assert found["early"].regret == pytest.approx(1.0)
    assert found["early"].early
    assert found["paid"].regret == 0.0  # below the oracle, which had twice the price: no negative regret
    # Adam alone, at all epochs or at half of them; a switch would have halved that.
    assert (found["never"].loss, found["never"].missed) == (0.5**8, True)
    assert (found["never, paid"].loss, found["never, paid"].missed) == (0.5**4, True)
    assert found["never"].lag is None
    assert found["never"].transition_lag is None


def test_a_switch_that_would_not_pay_is_not_missed() -> None:
    run = RUN | {"endings": [{"epoch": 4, "spent": 4.0, "loss": 0.95 * 0.5**8}]}
    assert not score(run | {"decisions": {"never": DECISIONS["never"]}}, "never").missed


def test_a_record_is_evidence_on_the_claims() -> None:
    known = evidence(a_run([3.0, 2.0], [point(1, NON_CONVEX, norm=2.0)], minimum={"verdict": "unresolved"}))
    assert (known.epochs, known.norms) == ((0, 1), (3.0, 2.0))
    assert (known.points, known.lowest) == ((Point(1, NON_CONVEX, 2.0),), "unresolved")


def test_share_of_points_convex_along_the_gradient() -> None:
    truth = [point(0, NON_CONVEX), point(1, NON_CONVEX) | {"gradient_curvature": -1.0}]
    assert share_along_gradient(a_run([1.0] * 3, truth)) == 0.5
    assert math.isnan(share_along_gradient(a_run([1.0] * 3, [])))


def test_bootstrap_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        found = bootstrap(generator.standard_normal(40), np.mean)
        hits += found.low <= 0.0 <= found.high
    # 95 % of 100, less the percentile method's bias at 40 (some 1 %): below 85 has a probability of 1e-4.
    assert hits >= 85
    assert bootstrap([2.0, 2.0]).low == bootstrap([2.0, 2.0]).high == 2.0


@pytest.mark.parametrize("by", ["geometric mean", "median"])
def test_the_default_is_chosen_on_one_half_and_reported_on_the_other(by: Criterion) -> None:
    runs = [{"task": task} for task in ("a", "a", "b", "c", "d")]
    assert halves(runs) == (["a", "c"], ["b", "d"])

    def scores(*regrets: float, early: bool = False) -> list[Score]:
        return [
            Score(1, 1.0, regret, regret, early, before_rise=early, missed=False, lag=None, transition_lag=None)
            for regret in regrets
        ]

    table = {
        "good on a and c": scores(0.0, 0.0, 9.0, 0.0, 9.0),
        "good on b and d": scores(9.0, 9.0, 0.1, 9.0, 0.1),
        "curvature, known at no cost": scores(0.0, 0.0, 0.0, 0.0, 0.0),
        "good, but within the transient": scores(0.0, 0.0, 0.0, 0.0, 0.0, early=True),
    }
    first, second = choose(runs, table, by=by)
    assert (first.label, first.own, first.regrets, first.tasks) == ("good on a and c", 0.0, [9.0, 9.0], ["b", "d"])
    assert (second.label, second.regrets) == ("good on b and d", [9.0, 9.0, 9.0])
    assert first.runner_up == "good on b and d"


def test_the_median_does_not_see_what_the_geometric_mean_does() -> None:
    runs = [{"task": task} for task in ("a", "a", "a", "b")]

    def scores(*regrets: float) -> list[Score]:
        return [Score(1, 1.0, regret, regret, False, False, False, None, None) for regret in regrets]

    table = {"lost once": scores(0.0, 0.0, 1e6, 0.0), "steady": scores(0.1, 0.1, 0.1, 0.0)}
    assert choose(runs, table)[0].label == "steady"
    assert choose(runs, table, by="median")[0].label == "lost once"


def test_two_rules_are_compared_run_by_run() -> None:
    def scores(*losses: float) -> list[Score]:
        return [Score(1, loss, 0.0, 0.0, False, False, False, None, None) for loss in losses]

    # Runs differ by orders of magnitude, the rules by a factor of 2 in each.
    steady = run_by_run(scores(2.0, 2e-3, 2e-6), scores(1.0, 1e-3, 1e-6))
    assert (steady.lower, steady.higher, steady.told_apart) == (0, 3, True)
    assert [steady.ratio.low, steady.ratio.high] == pytest.approx([2.0, 2.0])
    mixed = run_by_run(scores(1.0, 4.0, 1.0), scores(4.0, 1.0, 1.0))
    assert (mixed.lower, mixed.higher, mixed.told_apart) == (1, 1, False)
    assert mixed.ratio.value == pytest.approx(1.0)
    # Below float32's resolution losses are equal.
    assert run_by_run(scores(1e-9), scores(1e-12)).ratio.value == 1.0

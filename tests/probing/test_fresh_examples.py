"""What a sample says of the full loss: on data whose curvature is known example by example."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
import torch
from scipy.stats import t
from torch import Tensor, nn

import convexlab as cl
from convexlab.curvature.intervals import LEVEL
from convexlab.probing.fresh_examples import sampling_error
from convexlab.problems import ImageProblem
from convexlab.reporting.words.sampling import sampling_sentence
from convexlab.runs.rows import ProbedCheckpoint, Sampling


class Bowls(nn.Module):
    """(c a² + b²) / 2 for an example of value c: its Hessian is diag(c, 1) everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, 0] * self.theta[0].square() + self.theta[1].square()) / 2


def _examples(curvatures: Tensor) -> tuple[Tensor, Tensor]:
    return curvatures.float().view(-1, 1, 1, 1), torch.zeros(len(curvatures), dtype=torch.int64)


def _problem(sample: Tensor, test: Tensor, **more: Any) -> ImageProblem:
    (x, y), (x_test, y_test) = _examples(sample), _examples(test)
    data = cl.Dataset("bowls", x, y, x_test, y_test, 1, torch.zeros(1), torch.ones(1), **more)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return output.mean()

    model = Bowls()
    return ImageProblem(
        model,
        cl.Objective(model, [(x, y)], loss),
        dataset=data,
        loss=loss,
        x=x.double(),
        y=y,
        held_out=data.batches("test"),
    )


def _measured(problem: ImageProblem) -> Sampling:
    return sampling_error(problem, cl.convexity_verdict(problem.objective))


def _told(problem: ImageProblem) -> str:
    """The sentence of the row that is stored."""
    verdict = cl.convexity_verdict(problem.objective)
    row = ProbedCheckpoint(
        **vars(sampling_error(problem, verdict)),
        interval_level=LEVEL,
        verdict=verdict.kind,
        smallest=verdict.extremes.smallest,
        rounding_floor=verdict.rounding_floor,
        examples=problem.dataset.train_size,
    )
    return sampling_sentence(ProbedCheckpoint.from_row(row.as_row()))


def _spread(mean: float, count: int = 60) -> Tensor:
    """Values about a mean, exact in float32, of standard deviation 1 or so."""
    return torch.linspace(-64, 64, count).round() / 32 + mean


MINUS_ONE = torch.full((60,), -1.0)


def _of_subset(fresh: Tensor, others: int) -> ImageProblem:
    return _problem(MINUS_ONE, MINUS_ONE, fresh=_examples(fresh), population=60 + others)


def test_the_whole_training_split_is_held_against_the_validation_split() -> None:
    row = _measured(_problem(_spread(-1.0, 90), _spread(0.5, 70)))
    # Rounding of float64 only: the values are exact in float32.
    assert row.smallest_fresh == pytest.approx(0.5, abs=1e-12)
    assert (row.largest_fresh, row.largest_standard_error) == (pytest.approx(1.0, rel=1e-12), pytest.approx(0.0))
    assert (row.population, row.fresh_examples) == (90, 70)
    # All of the training loss is known.
    assert row.smallest_full == pytest.approx(-1.0, rel=1e-12)
    assert (row.smallest_full_standard_error, row.largest_full_standard_error) == (0, 0)


def test_standard_errors_are_those_of_the_batches() -> None:
    problem = _problem(_spread(-1.0, 90), _spread(0.5, 70))
    row = _measured(problem)
    for objective, name in ((problem.sample(), "smallest"), (problem.fresh(), "smallest_fresh")):
        parts = [(batch[0].mean().item(), weight) for batch, weight in objective.parts()]
        assert len(parts) == 16
        total = sum(weight for _, weight in parts)
        mean = sum(weight * value for value, weight in parts) / total
        squares = sum((weight * (value - mean)) ** 2 for value, weight in parts)
        expected = math.sqrt(16 / 15 * squares) / total
        assert getattr(row, f"{name}_standard_error") == pytest.approx(expected, rel=1e-9)
        # Of about the size that the examples' own spread gives: an estimate from 16 values errs by 18 %.
        values = [value for batch, _ in objective.parts() for value in batch[0].flatten().tolist()]
        assert expected == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), rel=4 * 0.18)


def test_a_subset_is_held_against_others_of_the_training_split() -> None:
    row = _measured(_of_subset(_spread(1.0), others=180))
    assert row.smallest_fresh == pytest.approx(1.0, rel=1e-12)
    assert row.smallest_full == pytest.approx((60 * -1.0 + 180 * 1.0) / 240, rel=1e-12)
    # Of the 240 the 60 are known; of the other 180 a third was seen.
    expected = 180 / 240 * math.sqrt(1 - 60 / 180) * row.smallest_fresh_standard_error
    assert row.smallest_full_standard_error == pytest.approx(expected, rel=1e-12)
    assert row.smallest_full_low is not None
    assert row.smallest_full_low < row.smallest_full - 2 * expected
    assert row.smallest_standard_error == pytest.approx(0, abs=1e-12)


def test_nothing_is_left_to_chance_once_all_others_are_seen() -> None:
    row = _measured(_of_subset(_spread(1.5, 40), others=40))
    assert row.fresh_examples == 40
    assert row.smallest_full == pytest.approx((60 * -1.0 + 40 * 1.5) / 100, abs=1e-12)
    assert row.smallest_full_standard_error == 0
    assert row.smallest_full_low == row.smallest_full == row.smallest_full_high
    assert row.smallest_fresh_standard_error > 0


def test_fresh_examples_are_at_most_as_many_as_the_sample_has_and_the_cost_is_charged() -> None:
    for test, fresh in ((500, 60), (60, 60), (15, 15)):
        problem = _problem(MINUS_ONE, _spread(0.0, test))
        verdict = cl.convexity_verdict(problem.objective)
        before = problem.objective.cost
        row = sampling_error(problem, verdict)
        assert row.fresh_examples == fresh
        cost = problem.objective.cost - before
        # Two vectors a pass over the sample, and over the fresh examples in parts of it.
        assert cost.hessian_products == pytest.approx(2 * (1 + fresh / 60), rel=1e-12)
        assert cost.gradient_equivalents <= 8
        assert cost.seconds > 0


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (
            _problem(MINUS_ONE, torch.full((1200,), -0.75)),
            "The loss is that of all 60 training examples. On 60 validation examples the direction of smallest "
            "curvature (−1.00) has −0.750: negative there too.",
        ),
        (
            _problem(MINUS_ONE, torch.full((60,), 0.5)),
            "The loss is that of all 60 training examples. On 60 validation examples the direction of smallest "
            "curvature (−1.00) has 0.500: not negative there.",
        ),
        (
            _of_subset(torch.full((60,), 1.0), others=1180),
            "The loss is that of 60 of 1,240 training examples. On 60 other training examples the direction of "
            "smallest curvature (−1.00) has 1.00, hence on all 1,240 0.903: not negative "
            "there.",
        ),
        (
            _of_subset(torch.full((30,), 1.0), others=30),
            "The loss is that of 60 of 90 training examples. On 30 other training examples the direction of smallest "
            "curvature (−1.00) has 1.00, hence on all 90 −0.333: negative there too.",
        ),
        (
            # Not convex on the sample, so nothing is said of a sign.
            _problem(torch.ones(60), torch.full((60,), 1.5)),
            "The loss is that of all 60 training examples. On 60 validation examples the direction of smallest "
            "curvature (1.00) has",
        ),
    ],
)
def test_what_is_told(problem: ImageProblem, told: str) -> None:
    summary = _told(problem).replace("\N{NO-BREAK SPACE}", " ")
    assert summary == told if told.endswith(".") else summary.startswith(told)
    assert told.endswith(".") or "there" not in summary


@pytest.mark.parametrize(("mean", "told"), [(-0.5, "negative there too"), (0.5, "not negative there")])
def test_no_sign_is_told_where_the_interval_holds_zero(mean: float, told: str) -> None:
    values = _spread(0.0)
    row = _measured(_problem(MINUS_ONE, values))
    assert row.smallest_fresh_low is not None
    assert row.smallest_fresh_high is not None
    # By Student's t of 15 degrees; the parts differ in size by one example at most.
    reach = (row.smallest_fresh_high - row.smallest_fresh_low) / 2
    assert reach == pytest.approx(t.ppf(0.975, 15) * row.smallest_fresh_standard_error, rel=1e-2)
    for share, expected in ((0.95, "its sign there is open"), (1.05, told)):
        shift = math.copysign(share * reach, mean)
        summary = _told(_problem(MINUS_ONE, values + shift)).replace("\N{NO-BREAK SPACE}", " ")
        assert summary.endswith(f"with 95 % confidence): {expected}.")


def test_one_batch_has_no_error_and_tells_no_sign() -> None:
    problem = _problem(MINUS_ONE, _spread(-1.0, 3))
    assert math.isnan(_measured(problem).smallest_fresh_standard_error)
    assert _told(problem).endswith("has −1.00 (error unknown): its sign there is open.")


def test_one_example_left_out_leaves_nothing_to_chance() -> None:
    row = _measured(_of_subset(torch.ones(1), others=1))
    assert math.isnan(row.smallest_fresh_standard_error)
    assert row.smallest_full == pytest.approx(-59 / 61, rel=1e-12)
    assert row.smallest_full_standard_error == 0


def test_a_subset_that_brings_no_others_says_nothing_of_the_full_loss() -> None:
    problem = _problem(MINUS_ONE, _spread(-1.0), population=1000)
    assert math.isnan(_measured(problem).smallest_full)
    assert _told(problem).startswith("The loss is that of 60 of 1,000 training examples. On 60 validation")


def test_without_a_verdict_only_the_extent_is_told() -> None:
    row = sampling_error(_of_subset(MINUS_ONE, others=180), None)
    assert row == Sampling(population=240)
    assert sampling_sentence(ProbedCheckpoint(**vars(row), examples=60)) == (
        "The loss is that of 60 of 240 training examples."
    )

"""Sampling error of curvature: against dense Hessians of every batch, and against populations in closed form."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import convexlab as cl
from convexlab.errors import MisuseError
from tests.dense import as_vector, derivatives, loss_of

# Derivatives of a two-layer network on a few examples: some hundred operations on numbers of the order of 1.
EXACT = {"rtol": 1e-11, "atol": 1e-12}

Batch = tuple[Tensor, Tensor]


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(sum(sizes), 4, generator=generator).double()
    y = torch.randint(0, 3, (sum(sizes),), generator=generator)
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def _directions(size: int, count: int = 2) -> Tensor:
    directions, _ = torch.linalg.qr(torch.randn(size, count, generator=torch.Generator().manual_seed(2)).double())
    return directions


def _objective(*sizes: int, criterion: Any = None, **options: Any) -> cl.Objective:
    return cl.Objective(_network(), _batches(*sizes), criterion or nn.CrossEntropyLoss(), **options)


def _regression(x: Tensor, sizes: Sequence[int]) -> cl.Objective:
    """Linear regression: the Hessian of a batch is 2 XᵀX / rows, whatever the weights and the targets are."""
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    batches = [(part, part[:, :1]) for part in x.split(list(sizes))]
    return cl.Objective(model, batches, nn.MSELoss(), micro_batch=None)


# Against dense Hessians


@pytest.mark.parametrize("sizes", [(3, 5, 1), (4, 4), (2, 7, 7, 2, 1)])
def test_quotients_of_every_batch_are_those_of_its_dense_hessian(sizes: tuple[int, ...]) -> None:
    objective = _objective(*sizes, micro_batch=None)
    vectors = _directions(objective.size)
    curvature = cl.sampled_curvature(objective, vectors)
    model, names = _network(), objective.parameter_names
    expected = []
    for x, y in _batches(*sizes):
        _, _, hessian = derivatives(loss_of(model, nn.CrossEntropyLoss(), x, y, names), as_vector(model, names))
        expected.append((vectors.T @ hessian @ vectors).diagonal())
    torch.testing.assert_close(curvature.quotients, torch.stack(expected), **EXACT)
    assert curvature.weights.tolist() == list(sizes)
    assert (curvature.batches, curvature.examples) == (len(sizes), sum(sizes))


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)),
        nn.CrossEntropyLoss(ignore_index=1),
        lambda output, target: functional.mse_loss(output, functional.one_hot(target, 3).to(output)),
    ],
)
@pytest.mark.parametrize("micro_batch", [None, 4, 1])
def test_the_mean_is_the_quotient_of_the_whole_objective(criterion: Any, micro_batch: int | None) -> None:
    objective = _objective(9, 6, 2, criterion=criterion, micro_batch=micro_batch)
    vectors = _directions(objective.size, 3)
    curvature = cl.sampled_curvature(objective, vectors)
    torch.testing.assert_close(curvature.value, (vectors * objective.hvp(vectors)).sum(dim=0), **EXACT)


def test_one_vector_is_a_column_and_its_length_does_not_matter() -> None:
    objective = _objective(3, 5, 4)
    vectors = _directions(objective.size)
    both = cl.sampled_curvature(objective, vectors)
    for scale, column in itertools.product((1.0, 1e-3, -50.0), (0, 1)):
        single = cl.sampled_curvature(objective, scale * vectors[:, column])
        assert single.value.shape == single.standard_error.shape == ()
        assert single.quotients.shape == (3,)
        torch.testing.assert_close(single.value, both.value[column], **EXACT)
        torch.testing.assert_close(single.standard_error, both.standard_error[column], **EXACT)


def test_float32() -> None:
    sizes = (30, 50, 20)
    exact, rounded = (_objective(*sizes, dtype=dtype) for dtype in (torch.float64, torch.float32))
    vectors = _directions(exact.size)
    curvature = cl.sampled_curvature(rounded, vectors)
    assert curvature.value.dtype == torch.float64
    # Sums over 50 examples of products of 40 numbers of the order of 1: each adds at most half an eps.
    tolerance = 100 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(
        curvature.quotients, cl.sampled_curvature(exact, vectors).quotients, rtol=0, atol=tolerance
    )


def test_attention_is_differentiated_twice() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.query = nn.Parameter(torch.randn(4, 4).double())

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.view(-1, 1, 3, 4)
            return functional.scaled_dot_product_attention(tokens @ self.query, tokens, tokens).mean((1, 2))

    x, y = torch.randn(10, 12, generator=torch.Generator().manual_seed(3)).double(), torch.arange(10) % 4
    objective = cl.Objective(Attention(), [(x[:6], y[:6]), (x[6:], y[6:])], nn.CrossEntropyLoss())
    vector = _directions(16, 1)[:, 0]
    curvature = cl.sampled_curvature(objective, vector)
    torch.testing.assert_close(curvature.value, vector @ objective.hvp(vector), **EXACT)


# The standard error


def test_equal_batches_give_the_usual_standard_error() -> None:
    objective = _objective(*[4] * 6)
    curvature = cl.sampled_curvature(objective, _directions(objective.size, 1)[:, 0])
    expected = statistics.stdev(curvature.quotients.tolist()) / math.sqrt(6)
    assert float(curvature.standard_error) == pytest.approx(expected, rel=1e-12)


def test_two_unequal_batches_in_closed_form() -> None:
    """Their residuals are ± w₁ w₂ (q₁ - q₂) / W, so that the error is 2 w₁ w₂ |q₁ - q₂| / W²."""
    objective = _objective(3, 7)
    curvature = cl.sampled_curvature(objective, _directions(objective.size, 1)[:, 0])
    first, second = curvature.quotients.tolist()
    assert float(curvature.standard_error) == pytest.approx(2 * 3 * 7 * abs(first - second) / 10**2, rel=1e-12)


def test_fewer_than_two_batches_have_no_error() -> None:
    objective = _objective(8)
    vectors = _directions(objective.size)
    curvature = cl.sampled_curvature(objective, vectors)
    torch.testing.assert_close(curvature.value, (vectors * objective.hvp(vectors)).sum(dim=0), **EXACT)
    assert curvature.standard_error.isnan().all()
    assert curvature.batches == 1


def test_the_variance_is_right_on_average_over_all_samples_of_a_small_population() -> None:
    """Over all 20 samples of 3 of 6 batches (1 - f) s² / 3 is on average the variance of the mean (Cochran, 2.7)."""
    size = _objective(1).size
    vector, batches = _directions(size, 1)[:, 0], _batches(*[5] * 6)
    means, variances = [], []
    for sample in itertools.combinations(batches, 3):
        objective = cl.Objective(_network(), list(sample), nn.CrossEntropyLoss(), micro_batch=None)
        curvature = cl.sampled_curvature(objective, vector, population=30)
        means.append(float(curvature.value))
        variances.append(float(curvature.standard_error) ** 2)
    assert statistics.mean(variances) == pytest.approx(statistics.pvariance(means), rel=1e-10)


def test_nothing_is_left_to_chance_when_the_sample_is_the_population() -> None:
    objective = _objective(5, 6)
    vector = _directions(objective.size, 1)[:, 0]
    endless, whole = (cl.sampled_curvature(objective, vector, population=population) for population in (None, 11))
    assert float(endless.standard_error) > 0
    assert float(whole.standard_error) == 0
    assert torch.equal(whole.value, endless.value)


@pytest.mark.slow
def test_two_standard_errors_cover_the_population_as_often_as_they_should() -> None:
    """Inputs N(0, Σ): the population's curvature along v is 2 vᵀΣv. Batches of 32 and of 96 examples by turns."""
    runs, sizes, spreads = 300, [32, 96] * 12, torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    vector = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64) / 3
    truth = 2 * float((vector * spreads).square().sum())
    generator = torch.Generator().manual_seed(0)
    values, errors = np.empty(runs), np.empty(runs)
    for run in range(runs):
        x = torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64) * spreads
        curvature = cl.sampled_curvature(_regression(x, sizes), vector)
        values[run], errors[run] = float(curvature.value), float(curvature.standard_error)
    # Residuals of variances 1 and 3: 48² / 120 - 1 = 18 degrees of freedom (Satterthwaite), so that ±2 errors hold 94 %
    # of the runs, ± 1.4 % at one standard deviation.
    covered = np.mean(np.abs(values - truth) <= 2 * errors)
    assert abs(covered - 0.94) <= 4 * 0.014
    # The spread of 300 values is known to 1 / √600 = 4.1 %, the mean square of their errors to 1 / √(300 × 18 / 2).
    assert math.sqrt(np.mean(errors**2)) == pytest.approx(values.std(ddof=1), rel=4 * 0.045)


def test_the_sample_that_chose_a_direction_flatters_it_and_fresh_examples_do_not() -> None:
    """Inputs N(0, I): curvature is 2 along every direction, but on 64 examples the least of 20 is about 0.4."""
    runs, sizes = 50, [8] * 8
    generator = torch.Generator().manual_seed(0)
    covered = {"sample": 0, "fresh": 0}
    for _ in range(runs):
        x = {name: torch.randn(64, 20, generator=generator, dtype=torch.float64) for name in covered}
        vector = torch.from_numpy(np.linalg.eigh(x["sample"].T.numpy() @ x["sample"].numpy())[1][:, 0])
        for name, rows in x.items():
            curvature = cl.sampled_curvature(_regression(rows, sizes), vector)
            covered[name] += abs(float(curvature.value) - 2) <= 2 * float(curvature.standard_error)
    assert covered["sample"] == 0
    # Student's t with 7 degrees of freedom: 91 %, a little less as squares of normal numbers are skewed; four standard
    # deviations of 50 draws are 16 %.
    assert covered["fresh"] / runs >= 0.91 - 0.04 - 0.16


# What it costs, and what it leaves


def test_cost_is_charged() -> None:
    objective = _objective(6, 6)
    curvature = cl.sampled_curvature(objective, _directions(objective.size, 3))
    assert objective.cost.hessian_products == 3
    assert objective.cost.gradient_equivalents == curvature.effort.gradient_equivalents == 6
    assert curvature.effort.products == 3
    assert curvature.effort.seconds >= objective.cost.seconds > 0


def test_nothing_is_changed() -> None:
    model = _network()
    model.insert(1, nn.Dropout(0.5))
    objective = cl.Objective(model, _batches(6, 6), nn.CrossEntropyLoss())
    vector, before, state = _directions(objective.size, 1)[:, 0], objective.flat_parameters(), torch.get_rng_state()
    with torch.inference_mode():
        inside = cl.sampled_curvature(objective, vector.clone())
    assert torch.equal(inside.quotients, cl.sampled_curvature(objective, vector).quotients)
    assert torch.equal(objective.flat_parameters(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_curvature_that_is_not_finite_is_a_value() -> None:
    model = _network()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    objective = cl.Objective(model, _batches(4, 4), nn.CrossEntropyLoss())
    curvature = cl.sampled_curvature(objective, _directions(objective.size, 1)[:, 0])
    assert math.isnan(curvature.value)
    assert math.isnan(curvature.standard_error)


def test_batches_of_any_kind_count_as_one_example() -> None:
    """Of ½ a θ², a the batch, the curvature is a."""
    model = nn.Linear(1, 1, bias=False).double()
    objective = cl.Objective.from_batch_loss(
        model, [1, 2, 6], lambda module, batch: batch * module.weight.square().sum() / 2, weight=lambda batch: 1.0
    )
    curvature = cl.sampled_curvature(objective, torch.ones(1), population=12)
    assert curvature.quotients.tolist() == [1, 2, 6]
    assert curvature.examples == 3
    assert float(curvature.standard_error) == pytest.approx(math.sqrt((1 - 3 / 12) * 7 / 3), rel=1e-12)


@pytest.mark.parametrize(
    ("vectors", "population", "message"),
    [
        (torch.ones(7), None, r"expected vectors of shape \(43,\) or \(43, k\), got \(7,\)"),
        (torch.ones(43, 0), None, r"got \(43, 0\)"),
        (torch.ones(43, 2, 2), None, r"got \(43, 2, 2\)"),
        (torch.zeros(43), None, r"finite length above 0, got lengths \[0.0\]"),
        (torch.full((43,), math.nan), None, r"finite length above 0, got lengths \[nan\]"),
        (torch.ones(43), 0, "expected a population of at least 1, got 0"),
        (torch.ones(43), 7, "at least the 8 examples of the objective, got 7. Pass the number of examples of the full"),
    ],
)
def test_misuse(vectors: Tensor, population: int | None, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        cl.sampled_curvature(_objective(4, 4), vectors, population=population)

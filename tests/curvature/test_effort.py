"""Every result says what it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.curvature.effort import Effort, Meter
from tests.curvature.matrices import random_matrix
from tests.dense import Dense


class _Counting(Dense):
    """Also says how many products it made."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.products = 0

    def matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return super().matvec(v)


class _Diagonal:
    """A diagonal matrix of any size."""

    def __init__(self, entries: Tensor) -> None:
        self.entries, self.dtype, self.device = entries, entries.dtype, entries.device
        self.shape = (len(entries), len(entries))

    def matvec(self, v: Tensor) -> Tensor:
        return self.entries * v


def _objective() -> cl.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return cl.Objective(model, [(torch.randn(8, 4).double(), torch.randint(0, 3, (8,)))], nn.CrossEntropyLoss())


RESULTS: dict[str, Callable[[cl.Objective], Any]] = {
    "extreme eigenvalues": lambda objective: cl.extreme_eigenvalues(objective.hessian(), tolerance=1e-9),
    # Long enough, and loose enough, to be made with differences of gradients.
    "extreme eigenvalues, cheap": lambda objective: cl.extreme_eigenvalues(objective.hessian(), tolerance=0.1),
    "verdict": cl.convexity_verdict,
    "density": lambda objective: cl.spectral_density(objective.hessian(), probes=2, steps=5),
    "trace": lambda objective: cl.trace(objective.ggn(), samples=9),
    "diagonal": lambda objective: cl.diagonal(objective.hessian(), samples=9),
    "top": lambda objective: cl.top_eigenpairs(objective.hessian(), 3, tolerance=1e-9),
    "top, cheap": lambda objective: cl.top_eigenpairs(objective.hessian(), 3, tolerance=0.1),
    "split": lambda objective: cl.curvature_split(objective, torch.ones(43)),
    "sampled": lambda objective: cl.sampled_curvature(objective, torch.ones(43)),
}


@pytest.mark.parametrize("name", RESULTS)
def test_what_an_objective_was_charged_is_told_with_the_time_and_the_memory(name: str) -> None:
    objective = _objective()
    objective.require_one_function()
    before, begin = objective.cost, time.perf_counter()
    effort = RESULTS[name](objective).effort
    elapsed, cost = time.perf_counter() - begin, objective.cost - before
    assert effort.gradient_equivalents == cost.gradient_equivalents
    assert cost.seconds <= effort.seconds <= elapsed
    assert effort.plan == ""
    # The check of the products is charged, and is no part of the run.
    checked = 0 if name == "sampled" else 1  # Two products and a gradient.
    exact, gradients = cost.hessian_products + cost.gauss_newton_products - 2 * checked, cost.gradients - checked
    # A difference is a gradient, and one is needed at the point itself.
    assert effort.products == exact + max(0, gradients - 1)
    assert ("cheap" in name) == (gradients > 0)


@pytest.mark.parametrize(
    "measure",
    [
        lambda operator: cl.extreme_eigenvalues(operator, max_steps=7),
        lambda operator: cl.extreme_eigenvalues(operator),
        lambda operator: cl.spectral_density(operator, probes=3, steps=9),
        lambda operator: cl.trace(operator, samples=10),
        lambda operator: cl.trace(operator, method="xtrace", samples=11),
        lambda operator: cl.trace(operator, method="hutchinson", samples=4),
    ],
)
def test_products_of_any_operator_are_counted_and_their_cost_is_not_known(measure: Callable[[Any], Any]) -> None:
    operator = _Counting(random_matrix("normal", 0, least=50))
    effort = measure(operator).effort
    assert effort.products == operator.products > 0
    assert effort.gradient_equivalents is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
def test_the_memory_of_a_long_basis_shows() -> None:
    n, steps = 200_000, 60
    operator = _Diagonal(torch.linspace(-1, 1, n).double())
    # More memory used before and freed is no excuse.
    torch.ones(steps, n).sum()
    effort = cl.extreme_eigenvalues(operator, max_steps=steps, tolerance=1e-6).effort
    basis = (steps + 1) * n * 8
    assert effort.peak_memory is not None
    # Beside it vectors, ten at most.
    assert basis <= effort.peak_memory <= basis + 10 * n * 8 + 8 * 10**6


def test_efforts_are_equal_where_what_was_counted_is() -> None:
    effort = Effort(products=3, gradient_equivalents=6.0, seconds=1.0, peak_memory=5)
    assert effort == Effort(products=3, gradient_equivalents=6.0, seconds=2.0, peak_memory=None)
    assert effort != Effort(products=4, gradient_equivalents=6.0, seconds=1.0, peak_memory=5)
    assert effort != Effort(products=3, gradient_equivalents=6.0, seconds=1.0, peak_memory=5, plan="other")


def test_a_meter_counts_from_where_it_was_started() -> None:
    objective = _objective()
    objective.gradient()
    with Meter(objective) as meter:
        first = meter.effort(0)
        objective.gradient()
        second = meter.effort(1)
    assert (first.gradient_equivalents, second.gradient_equivalents) == (0, 1)
    assert 0 <= first.seconds < second.seconds

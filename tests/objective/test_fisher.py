"""The empirical Fisher matrix against outer products of gradients, example by example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import MisuseError


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _data(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, generator=generator).double(), torch.randint(0, 3, (rows,), generator=generator)


def _dense(model: nn.Module, criterion: Any, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Every gradient by a backward pass of its own."""
    total = torch.zeros(())
    for row, target, weight in zip(x.split(1), y.split(1), weights, strict=True):
        if weight:
            model.zero_grad()
            criterion(model(row), target).backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            total = total + weight * torch.outer(gradient, gradient)
    model.zero_grad()
    return total / weights.sum()


CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("micro_batch", [None, 4, 1])
@pytest.mark.parametrize(
    ("criterion", "weights"),
    [
        (nn.CrossEntropyLoss(), lambda y: torch.ones(len(y))),
        (nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), lambda y: CLASS_WEIGHTS[y]),
        (nn.CrossEntropyLoss(ignore_index=1), lambda y: (y != 1).double()),
        (lambda output, y: (output - y[:, None]).square().mean(), lambda y: torch.ones(len(y))),
    ],
)
def test_it_is_the_mean_of_the_outer_products(criterion: Any, weights: Any, micro_batch: int | None) -> None:
    x, y = _data(13)
    objective = cl.Objective(_network(), [(x[:9], y[:9]), (x[9:], y[9:])], criterion, micro_batch=micro_batch)
    fisher = objective.fisher() @ torch.eye(objective.size, dtype=torch.float64)
    torch.testing.assert_close(fisher, _dense(_network(), criterion, x, y, weights(y)), rtol=1e-11, atol=1e-14)


def test_its_trace_is_the_mean_square_of_the_gradients_and_its_rank_the_examples() -> None:
    x, y = _data(6)
    objective = cl.Objective(_network(), [(x, y)], nn.CrossEntropyLoss())
    pairs = cl.top_eigenpairs(objective.fisher(), 8, tolerance=1e-8)
    assert bool((pairs.values[:6] > 1e-6).all())
    assert bool((pairs.values[6:].abs() < 1e-12).all())
    dense = _dense(_network(), nn.CrossEntropyLoss(), x, y, torch.ones(6))
    torch.testing.assert_close(pairs.values[:6], torch.linalg.eigvalsh(dense).flip(0)[:6], rtol=1e-8, atol=0)


def test_it_costs_as_a_gauss_newton_product() -> None:
    x, y = _data(10)
    objective = cl.Objective(_network(), [(x, y)], nn.CrossEntropyLoss())
    objective.fisher() @ torch.ones(objective.size, 3)
    assert objective.cost.gauss_newton_products == 3


def test_misuse() -> None:
    x, _ = _data(4)
    alone = cl.Objective.from_batch_loss(_network(), [x], lambda model, batch: model(batch).square().mean())
    with pytest.raises(
        MisuseError, match="the empirical Fisher matrix needs the model's output and the criterion apart"
    ):
        alone.fisher()
    uneven = cl.Objective(_network(), [(x, torch.zeros(3))], lambda output, y: output.square().mean() + y.sum())
    with pytest.raises(MisuseError, match="all have a row an example"):
        uneven.fisher() @ torch.ones(uneven.size)

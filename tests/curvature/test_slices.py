"""Slices of the loss: on a quadratic loss they are the model itself, at a stated cost, and nothing is left moved."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.curvature.slices import extreme_slices, loss_slice, losses_at, reach_of

X = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
HESSIAN = 2 * X.T @ X / 40


def quadratic_loss(w: Tensor) -> float:
    """The mean squared error of y = X w by its formula."""
    return float((X @ w - Y[:, 0]).square().mean())


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(5, 1, bias=False, dtype=torch.float64)


@pytest.fixture
def objective(model: nn.Linear) -> cl.Objective:
    return cl.Objective(model, [(X[:15], Y[:15]), (X[15:], Y[15:])], nn.MSELoss())


def weights_of(model: nn.Linear) -> Tensor:
    return model.weight.detach()[0].clone()


@pytest.mark.parametrize("points", [3, 7, 13])
def test_a_slice_of_a_quadratic_loss_is_its_formula(points: int, model: nn.Linear, objective: cl.Objective) -> None:
    values, vectors = torch.linalg.eigh(HESSIAN)
    w = weights_of(model)
    gradient = 2 * X.T @ (X @ w - Y[:, 0]) / 40
    for value, vector in zip(values, vectors.T, strict=True):
        line = loss_slice(objective, vector, loss=objective.value(), reach=0.7, points=points)
        assert line.steps == pytest.approx([0.7 * (2 * k / (points - 1) - 1) for k in range(points)], abs=1e-15)
        assert line.steps[points // 2] == 0
        for step, loss in zip(line.steps, line.losses, strict=True):
            # Forty terms of the order of 1 in float64.
            assert loss == pytest.approx(quadratic_loss(w + step * vector), abs=1e-13)
            model_loss = quadratic_loss(w) + step * float(gradient @ vector) + 0.5 * float(value) * step**2
            assert loss == pytest.approx(model_loss, abs=1e-13)


def test_every_value_but_the_middle_is_charged(objective: cl.Objective) -> None:
    loss_slice(objective, torch.ones(5) / math.sqrt(5), loss=1.0, reach=1.0, points=9)
    assert objective.cost.values == 8
    assert objective.cost.gradient_equivalents == pytest.approx(8 / 3, rel=1e-15)


def test_slices_of_a_verdict_end_where_curvature_makes_up_a_quarter_of_the_loss(objective: cl.Objective) -> None:
    verdict = cl.convexity_verdict(objective)
    loss, before = objective.value(), objective.cost
    found = extreme_slices(objective, verdict, loss, 7)
    for end in ("smallest", "largest"):
        reach, curvature = found[end].steps[-1], getattr(verdict.extremes, end)
        assert 0.5 * curvature * reach**2 == pytest.approx(loss / 4, rel=1e-12)
        assert len(found[end].losses) == 7
    assert (objective.cost - before).values == 12
    assert extreme_slices(objective, verdict, loss, 0) == {}
    assert extreme_slices(objective, verdict, 0.0, 7) == {}


def test_reach() -> None:
    assert reach_of(2.0, 4.0) == reach_of(2.0, -4.0) == reach_of(-2.0, 4.0) == 0.5
    # Curvature that cannot be told from zero counts as what can just be told.
    assert reach_of(2.0, 1e-9, resolution=4.0) == 0.5
    for loss, curvature in ((0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 1.0)):
        assert reach_of(loss, curvature) is None


class BrokenError(Exception):
    pass


def snapshot(model: nn.Module) -> dict[str, Any]:
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"weights": weights, "gradients": gradients, "rng": torch.get_rng_state(), "training": model.training}


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    torch.testing.assert_close(before, after, rtol=0, atol=0)


@pytest.mark.parametrize("fails_at", [None, 1, 4])
def test_nothing_of_the_model_is_changed_also_after_an_exception(fails_at: int | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)).double().train()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    calls = 0

    def loss(module: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise BrokenError
        return (module(batch[0]) - batch[1]).square().mean() + 0 * torch.rand(())

    objective = cl.Objective.from_batch_loss(model, [(X, Y)], loss)
    direction = torch.zeros(objective.size, dtype=torch.float64)
    direction[0] = 1.0
    before = snapshot(model)
    if fails_at is None:
        loss_slice(objective, direction, loss=1.0, reach=1.0, points=5)
    else:
        with pytest.raises(BrokenError):
            loss_slice(objective, direction, loss=1.0, reach=1.0, points=5)
    assert_same(before, snapshot(model))
    assert calls == (fails_at or 4)


def test_a_loss_that_is_not_finite_is_a_value(objective: cl.Objective) -> None:
    losses = losses_at(objective, [torch.full((5,), math.inf, dtype=torch.float64), torch.zeros(5).double()])
    assert math.isnan(losses[0]) or math.isinf(losses[0])
    assert losses[1] == pytest.approx(quadratic_loss(torch.zeros(5).double()))
    assert losses_at(objective, []).shape == (0,)


@pytest.mark.parametrize("points", [0, 1, 2, 4, -3, 5.0])
def test_points_need_a_middle(points: Any, objective: cl.Objective) -> None:
    with pytest.raises(cl.MisuseError, match=f"expected an odd number of points from 3.*got {points}"):
        loss_slice(objective, torch.ones(5), loss=1.0, reach=1.0, points=points)
    assert objective.cost.values == 0


def test_a_direction_of_another_length(objective: cl.Objective) -> None:
    with pytest.raises(cl.MisuseError, match=r"expected a direction of shape \(5,\), got \(4,\)"):
        loss_slice(objective, torch.ones(4), loss=1.0, reach=1.0)

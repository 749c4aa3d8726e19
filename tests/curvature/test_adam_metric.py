"""Curvature in Adam's metric against dense matrices and against the recursion whose stability it is about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convexlab as cl
from convexlab.errors import MisuseError


def _objective() -> cl.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(40, 4).double(), torch.randint(0, 3, (40,))
    return cl.Objective(model, [(x, y)], nn.CrossEntropyLoss())


def _train(objective: cl.Objective, adam: torch.optim.Optimizer, steps: int = 7) -> None:
    for _ in range(steps):
        adam.zero_grad()
        objective.closure()
        adam.step()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_the_largest_eigenvalue_is_that_of_the_dense_matrix(kind: Any, amsgrad: bool) -> None:
    objective, rate, betas, eps = _objective(), 3e-2, (0.8, 0.95), 1e-6
    adam = kind(reversed(list(objective.model.parameters())), lr=rate, betas=betas, eps=eps, amsgrad=amsgrad)
    _train(objective, adam)
    name = "max_exp_avg_sq" if amsgrad else "exp_avg_sq"
    moments = torch.cat([adam.state[p][name].flatten() for p in objective.model.parameters()]).numpy()
    p = (1 - betas[0] ** 7) * (np.sqrt(moments / (1 - betas[1] ** 7)) + eps)
    hessian = objective.hvp(torch.eye(objective.size, dtype=torch.float64)).numpy()
    largest = np.linalg.eigvalsh(hessian / np.sqrt(np.outer(p, p)))[-1]
    sharpness = cl.adam_sharpness(objective, adam, tolerance=1e-6)
    assert sharpness.converged
    assert sharpness.value == pytest.approx(largest, rel=1e-9)
    assert sharpness.threshold == pytest.approx(2 * 1.8 / (0.2 * rate))
    assert sharpness.ratio == pytest.approx(largest / sharpness.threshold, rel=1e-9)
    assert sharpness.effort.gradient_equivalents is not None
    assert sharpness.effort.gradient_equivalents >= 2 * sharpness.effort.products
    np.testing.assert_allclose(cl.adam_metric(objective, adam).diagonal.numpy(), p, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_threshold_is_where_descent_with_averaged_gradients_diverges(momentum: float) -> None:
    rate = 0.1
    threshold = cl.AdamMetric(torch.ones(1), rate, momentum).threshold
    for share, stable in ((0.99, True), (1.01, False)):
        theta, mean = 1.0, 0.0
        for _ in range(4000):
            mean = momentum * mean + (1 - momentum) * share * threshold * theta
            theta -= rate * mean
        assert (abs(theta) < 1) == stable


def test_groups_of_other_rates_count_in_the_units_of_the_first() -> None:
    objective = _objective()
    layers = [list(objective.model[0].parameters()), list(objective.model[2].parameters())]
    adam = torch.optim.Adam([{"params": layers[0], "lr": 1e-2}, {"params": layers[1], "lr": 4e-2}])
    _train(objective, adam)
    metric = cl.adam_metric(objective, adam)
    adam.param_groups[1]["lr"] = 1e-2
    same = cl.adam_metric(objective, adam)
    ratio = same.diagonal / metric.diagonal
    assert metric.threshold == same.threshold
    first = sum(p.numel() for p in layers[0])
    np.testing.assert_allclose(ratio.numpy(), [1.0] * first + [4.0] * (objective.size - first), rtol=1e-12)


def test_a_parameter_without_a_gradient_counts_as_average_and_a_part_of_them_will_do() -> None:
    objective = _objective()
    adam = torch.optim.Adam(objective.model.parameters())
    _train(objective, adam)
    del adam.state[objective.model[0].bias]
    metric = cl.adam_metric(objective, adam)
    rest = torch.cat([metric.diagonal[:24], metric.diagonal[30:]])
    np.testing.assert_allclose(metric.diagonal[24:30].numpy(), float(rest.mean()), rtol=1e-12)
    part = cl.adam_metric(objective.restricted_to("2.weight"), adam)
    np.testing.assert_array_equal(part.diagonal.numpy(), metric.diagonal[30:48].numpy())


def test_misuse() -> None:
    objective = _objective()
    parameters = list(objective.model.parameters())
    for optimizer, message in (
        (torch.optim.Adam(parameters), "has made a step, got one without moments"),
        (torch.optim.Adam(parameters[:2]), r"trains all parameters .* got one without 2.weight, 2.bias"),
        (torch.optim.SGD(parameters, lr=0.1), "the state of an Adam or AdamW"),
        (None, "trains all parameters"),
    ):
        with pytest.raises(MisuseError, match=message):
            cl.adam_sharpness(objective, optimizer)  # type: ignore[arg-type]
    adam = torch.optim.Adam([{"params": parameters[:2], "betas": (0.5, 0.9)}, {"params": parameters[2:]}])
    _train(objective, adam)
    with pytest.raises(MisuseError, match="one beta1 in all groups"):
        cl.adam_metric(objective, adam)

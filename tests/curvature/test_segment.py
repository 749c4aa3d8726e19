"""The loss on a segment against closed forms, and the rounding that must not be taken for curvature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.architectures import OneLayerTanh, TwoLayerTanh

EPS = torch.finfo(torch.float64).eps


class _Quadratic(nn.Module):
    """½ θᵀA θ, whatever the input."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(len(matrix), dtype=matrix.dtype))
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return self.theta @ self.matrix @ self.theta / 2


def _quadratic(eigenvalues: list[float]) -> cl.Objective:
    matrix = torch.diag(torch.tensor(eigenvalues, dtype=torch.float64))
    return cl.Objective(_Quadratic(matrix), [(torch.ones(1), torch.ones(1))], lambda output, _: output)


@pytest.mark.parametrize("points", [3, 4, 9, 20])
@pytest.mark.parametrize("eigenvalues", [[1.0, 2.0, 5.0], [-1.0, 2.0, 5.0], [-1.0, -2.0, 0.0]], ids=str)
def test_a_quadratic(eigenvalues: list[float], points: int) -> None:
    objective = _quadratic(eigenvalues)
    begin, end = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([3.0, -1.0, 0.0]).double()
    d = end - begin
    curvature = float(d @ objective.hvp(d))
    segment = cl.segment_curvature(objective, begin, end, points=points)
    assert len(segment.values) == points
    assert segment.values[0] == pytest.approx(float(begin**2 @ torch.tensor(eigenvalues).double()) / 2, rel=1e-15)
    assert segment.values[-1] == pytest.approx(float(end**2 @ torch.tensor(eigenvalues).double()) / 2, rel=1e-15)
    # Second differences of a quadratic are h² dᵀA d; of three values of size below 20, each rounded thrice.
    expected = [curvature / (points - 1) ** 2] * (points - 2)
    assert segment.second_differences == pytest.approx(expected, abs=20 * 12 * EPS)
    assert segment.convex == (curvature > 0)
    span = max(segment.values) - min(segment.values)
    assert segment.least == pytest.approx(min(segment.second_differences) / span)


def test_along_some_segments_a_saddle_is_convex() -> None:
    objective = _quadratic([-1.0, 2.0])
    origin = torch.zeros(2).double()
    assert cl.segment_curvature(objective, origin, torch.tensor([0.0, 1.0])).convex
    assert not cl.segment_curvature(objective, origin, torch.tensor([1.0, 0.0])).convex
    # dᵀA d = 0: flat, but for rounding.
    flat = cl.segment_curvature(objective, origin, torch.tensor([math.sqrt(2.0), 1.0]).double())
    assert flat.convex
    assert min(flat.second_differences) >= -10 * EPS


@pytest.mark.parametrize("begin", [-1.0, 0.3, 2.0])
def test_the_papers_one_layer_model_by_hand(begin: float) -> None:
    generator = np.random.default_rng(0)
    x, y, end = generator.uniform(-0.5, 0.5, (1, 30)), 0.6, begin + 0.9
    model = OneLayerTanh(7.0).double()
    data = [(torch.from_numpy(x), torch.full((1, 1), y, dtype=torch.float64))]
    segment = cl.segment_curvature(
        cl.Objective(model, data, nn.MSELoss()), *(torch.tensor([p], dtype=torch.float64) for p in (begin, end))
    )
    p = np.linspace(begin, end, 9)
    values = (np.tanh(p[:, None] * x).sum(axis=1) - y) ** 2
    # Sums of 30 terms below 1, squared: residuals of some 10 at most, off by 30 ε.
    np.testing.assert_allclose(segment.values, values, rtol=0, atol=2 * 10 * 30 * EPS)
    np.testing.assert_allclose(segment.second_differences, np.diff(values, 2), rtol=0, atol=4 * 2 * 10 * 30 * EPS)
    assert segment.convex == bool((np.diff(values, 2) > 0).all())


def test_the_papers_two_layer_model_has_both_kinds() -> None:
    data = [(torch.ones(1, 1).double(), torch.full((1, 1), 0.1, dtype=torch.float64))]
    objective = cl.Objective(TwoLayerTanh(weight=0.5).double(), data, nn.MSELoss())
    p = np.linspace(-3.0, 3.0, 9)
    h = np.tanh(p)
    differences = np.diff((np.tanh(h) - 0.5 * np.tanh(2 * h) - 0.1) ** 2, 2)
    # All are far above what rounding amounts to, and some are of either sign.
    assert differences.min() < -1e-5
    assert differences.max() > 1e-5
    segment = cl.segment_curvature(objective, torch.tensor([-3.0]), torch.tensor([3.0]))
    np.testing.assert_allclose(segment.second_differences, differences, rtol=0, atol=4 * 10 * EPS)
    assert not segment.convex
    assert segment.least < 0


@pytest.mark.parametrize("length", [1e-2, 1e-5, 1e-7, 1e-9])
def test_rounding_fakes_no_curvature_of_a_convex_loss(length: float) -> None:
    # Far out, residuals of 1 are the difference of numbers of 10⁵: rounding is 10⁵ times what the loss's size says.
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        x, noise = torch.randn(50, 5, generator=generator), torch.randn(50, 1, generator=generator)
        model = nn.Linear(5, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(1e5 * torch.randn(1, 5, generator=generator))
        objective = cl.Objective(model, [(x, (model(x) + noise).detach())], nn.MSELoss())
        begin = objective.flat_parameters().double()
        segment = cl.segment_curvature(objective, begin, begin + length * torch.randn(5, generator=generator).double())
        assert segment.convex, f"seed {seed}"
        assert segment.rounding <= math.sqrt(EPS) * max(segment.values), f"seed {seed}"


def test_what_stands_above_rounding_is_seen_in_float32_models_too() -> None:
    # Second differences of 1e-8 of the loss, below the rounding of float32, above that of float64.
    class Bump(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.tensor([0.5]))

        def forward(self, x: Tensor) -> Tensor:
            return (x - 6.4e-7 * self.p**2 / 2).sum()

    objective = cl.Objective(Bump(), [(torch.ones(1), torch.ones(1))], lambda output, _: output)
    segment = cl.segment_curvature(objective, torch.tensor([0.0]), torch.tensor([1.0]))
    assert segment.second_differences == pytest.approx([-1e-8] * 7, abs=4 * EPS)
    assert not segment.convex


def test_a_loss_with_tensors_of_its_own_dtype_is_evaluated_in_that() -> None:
    model = nn.Linear(3, 1, bias=False)
    matrix = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def loss(module: nn.Linear, batch: tuple[Tensor]) -> Tensor:
        return (matrix @ module.weight.T).square().mean()

    objective = cl.Objective.from_batch_loss(model, [(torch.ones(8, 1),)], loss)
    begin, end = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.1])
    segment = cl.segment_curvature(objective, begin, end)
    assert segment.convex
    assert segment.rounding >= 100 * torch.finfo(torch.float32).eps * max(segment.values)
    assert objective.cost.values == 9


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 4, 8])
def test_a_loss_that_is_not_finite_is_not_convex(value: float, where: int) -> None:
    calls = iter(range(9))

    def loss(module: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return module.weight.square().sum() + (value if next(calls) == where else 0.0)

    objective = cl.Objective.from_batch_loss(nn.Linear(2, 1, bias=False), [(torch.ones(1),)], loss)
    segment = cl.segment_curvature(objective, torch.zeros(2), torch.ones(2))
    assert not segment.convex
    assert math.isnan(segment.least)


def test_a_constant_loss_is_convex() -> None:
    segment = cl.segment_curvature(_quadratic([0.0, 0.0]), torch.zeros(2), torch.ones(2))
    assert segment.convex
    assert segment.least == 0.0


def test_the_model_stays_where_it_is_and_a_value_a_point_is_charged() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    objective = cl.Objective(model, [(torch.randn(6, 3), torch.randn(6, 1))], nn.MSELoss())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    begin = objective.flat_parameters()
    cl.segment_curvature(objective, begin, begin + 1, points=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert objective.cost.values == 5
    assert objective.cost.gradient_equivalents == pytest.approx(5 / 3)
    sample = objective.sample(3)
    cl.segment_curvature(sample, begin, begin + 1, points=6)
    assert objective.cost.values == pytest.approx(8)


@pytest.mark.parametrize("shapes", [((3,), (2,)), ((2,), (1, 2)), ((), ())])
def test_ends_of_another_shape(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    objective = _quadratic([1.0, 2.0])
    with pytest.raises(cl.MisuseError, match=r"ends of shape \(2,\)"):
        cl.segment_curvature(objective, *(torch.zeros(shape) for shape in shapes))
    assert objective.cost == cl.Cost()


@pytest.mark.parametrize("points", [2, 0, -1])
def test_fewer_than_three_points(points: int) -> None:
    with pytest.raises(cl.MisuseError, match=f"at least 3 points .* got {points}"):
        cl.segment_curvature(_quadratic([1.0]), torch.zeros(1), torch.ones(1), points=points)

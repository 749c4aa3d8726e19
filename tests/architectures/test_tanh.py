from __future__ import annotations

import numpy as np
import pytest
import torch

from convexlab.architectures import OneLayerTanh, TwoLayerTanh, build_model

EPSILON = np.finfo(np.float64).eps


def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 100, dtype=torch.float64, generator=generator) - 0.5


@pytest.mark.parametrize("p", [-3.0, 0.0, 1.0, 20.0])
def test_one_layer_has_its_closed_form_and_derivative(p: float) -> None:
    model, x = OneLayerTanh(p).double(), inputs()
    y = model(x)
    (slope,) = torch.autograd.grad(y.sum(), model.p)
    expected = np.tanh(p * x.numpy()).sum(1, keepdims=True)
    expected_slope = (x.numpy() / np.cosh(p * x.numpy()) ** 2).sum()
    # Sums of 100 and 500 terms of at most 1 and 1/2, each right to a few epsilon.
    np.testing.assert_allclose(y.detach(), expected, rtol=0, atol=500 * EPSILON)
    assert slope.item() == pytest.approx(expected_slope, abs=1000 * EPSILON)


@pytest.mark.parametrize("weight", [0.4, 0.5, 0.6, -0.5])
def test_two_layers_have_their_closed_form(weight: float) -> None:
    x = inputs()
    hidden = np.tanh(2.5 * x.numpy())
    expected = (np.tanh(hidden) - weight * np.tanh(2 * hidden)).sum(1, keepdims=True)
    y = TwoLayerTanh(2.5, weight=weight).double()(x)
    np.testing.assert_allclose(y.detach(), expected, rtol=0, atol=500 * EPSILON)


def loss_curve(weight: float) -> np.ndarray:
    """The squared error over p in [-4, 4] of one example x = 1 with target 0.1."""
    model = TwoLayerTanh(weight=weight).double()
    grid = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    values = torch.func.vmap(lambda p: torch.func.functional_call(model, {"p": p}, (torch.ones(1, dtype=p.dtype),)))
    return ((values(grid) - 0.1) ** 2).detach().numpy().ravel()


def count_convex_regions(curve: np.ndarray) -> int:
    # Second differences are 1e-6 times the second derivative and right to 1e-16: their sign holds where it matters.
    convex = np.diff(curve, 2) > 0
    return int(convex[0]) + int((~convex[:-1] & convex[1:]).sum())


def count_minima(curve: np.ndarray) -> int:
    falling = np.diff(curve) < 0
    return int((falling[:-1] & ~falling[1:]).sum())


@pytest.mark.parametrize(
    ("weight", "convex_regions", "minima"), [(0.40, 1, 1), (0.45, 2, 1), (0.50, 2, 1), (0.55, 2, 2), (0.60, 2, 2)]
)
def test_two_layers_show_what_the_paper_says_of_its_figure_4(weight: float, convex_regions: int, minima: int) -> None:
    curve = loss_curve(weight)
    assert (count_convex_regions(curve), count_minima(curve)) == (convex_regions, minima)


@pytest.mark.parametrize("weight", [0.40, 0.45, 0.50, 0.55, 0.60])
def test_with_a_plus_sign_they_would_not(weight: float) -> None:
    curve = loss_curve(-weight)
    assert (count_convex_regions(curve), count_minima(curve)) == (1, 1)


@pytest.mark.parametrize("name", ["tanh-1d", "tanh-2layer"])
def test_one_scalar_parameter(name: str) -> None:
    model = build_model(name)
    assert [tuple(parameter.shape) for parameter in model.parameters()] == [()]
    assert model(torch.zeros(4, 100)).shape == (4, 1)


def test_default_weight_is_the_third_curve() -> None:
    assert build_model("tanh-2layer").weight == 0.5

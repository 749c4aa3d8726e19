from __future__ import annotations

import numpy as np
import pytest
import torch

from convexlab import MisuseError
from convexlab.architectures import Perceptron


def test_it_is_the_formula() -> None:
    torch.manual_seed(0)
    model = Perceptron(3, 2, width=5, depth=2).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    arrays = [parameter.detach().numpy() for parameter in model.parameters()]
    h = x.numpy()
    for weight, bias in zip(arrays[0:4:2], arrays[1:4:2], strict=True):
        h = np.tanh(h @ weight.T + bias)
    # Sums of at most 5 terms of order 1.
    np.testing.assert_allclose(model(x).detach(), h @ arrays[4].T + arrays[5], rtol=0, atol=1e-14)


def test_the_default_is_the_usual_size() -> None:
    assert sum(parameter.numel() for parameter in Perceptron().parameters()) == 3 * 50 + 3 * 51 * 50 + 51


def test_it_starts_within_the_bounds_of_glorot_and_bengio() -> None:
    torch.manual_seed(0)
    linear = [module for module in Perceptron(width=400).layers if isinstance(module, torch.nn.Linear)]
    for layer in linear:
        bound = np.sqrt(6 / sum(layer.weight.shape))
        assert layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    # 160,000 uniform numbers: the variance of bound²/3 is found to within sqrt(4/5 / 160,000) < 0.3 %; five times that.
    assert linear[1].weight.var().item() == pytest.approx(2 / 800, rel=0.015)


@pytest.mark.parametrize("option", ["inputs", "outputs", "width", "depth"])
def test_sizes_below_one_are_refused(option: str) -> None:
    with pytest.raises(MisuseError, match=f"expected {option} of at least 1, got 0"):
        Perceptron(**{option: 0})

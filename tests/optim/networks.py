"""A small network and quadratics that the tests of several optimisers share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.optim.running import Loss


class Regression:
    """A tanh network of 33 weights on 40 examples, in the dtype of its weights."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
        self.y = torch.sin(2.0 * self.x[:, 0]) * self.x[:, 1]
        self.start = torch.randn(33, generator=generator, dtype=torch.float64)

    def residuals(self, weights: Tensor) -> Tensor:
        w_1, b_1, w_2, b_2 = weights.split([16, 8, 8, 1])
        hidden = torch.tanh(self.x.to(weights) @ w_1.view(2, 8) + b_1)
        return hidden @ w_2 + b_2 - self.y.to(weights)

    def __call__(self, weights: Tensor) -> Tensor:
        return self.residuals(weights).square().mean()

    def gauss_newton(self, weights: Tensor) -> Tensor:
        jacobian = torch.func.jacrev(self.residuals)(weights)
        return 2.0 / len(self.y) * jacobian.T @ jacobian


def quadratic(n: int = 8, condition: float = 10.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Loss]:
    """Return H, b and ½(x - c)ᵀH(x - c) with Hc = b, zero at its minimum so that no digit of the loss is lost there."""
    generator = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(generator.standard_normal((n, n)))
    h = basis @ np.diag(np.geomspace(1.0, condition, n)) @ basis.T
    b = generator.standard_normal(n)
    matrix, centre = torch.tensor(h), torch.tensor(np.linalg.solve(h, b))
    return h, b, lambda x: 0.5 * (x - centre) @ matrix @ (x - centre)

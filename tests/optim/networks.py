"""A small network and quadratics that the tests of several optimisers share, and what is exact on a quadratic."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

from convexlab.optim.line_search import StrongWolfe
from tests.optim.running import Loss

EXACT = StrongWolfe(decrease=1e-12, curvature=1e-10)  # On a parabola a step exact to ten digits.
# Steps are exact to ten digits. What that spoils of the conjugacy grows with the square of the condition number, 10,
# and adds up over 8 steps; the distance to the minimum is of order 1 at the start.
ITERATE_TOLERANCE = 1e-10 * 10.0**2 * 8
ROSENBROCK = torch.tensor([-1.2, 1.0] * 3, dtype=torch.float64)


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


def check_linear_conjugate_gradients(
    points: Iterable[Tensor], h: np.ndarray, b: np.ndarray, preconditioner: np.ndarray | None = None
) -> None:
    """Check that the points are the iterates of linear conjugate gradients by SciPy, from zero."""
    expected: list[np.ndarray] = []
    scipy.sparse.linalg.cg(h, b, rtol=1e-13, M=preconditioner, callback=lambda x: expected.append(x.copy()))
    for ours, theirs in zip(points, expected, strict=False):
        assert np.linalg.norm(ours.numpy() - theirs) <= ITERATE_TOLERANCE

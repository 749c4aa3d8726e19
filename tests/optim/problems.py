"""Test problems of Moré, Garbow and Hillstrom (ACM TOMS 7, 1981), numbered as there, as torch functions.

Each is a sum of squares; starts, minima and data are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    number: int
    name: str
    residuals: Callable[[Tensor], Tensor]
    start: tuple[float, ...]
    minima: tuple[float, ...]
    """Published values at local minima."""
    tolerance: float = 1e-7
    """Gradient norm that counts as zero: what rounding leaves, where losses or curvatures are large."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.residuals(x).square().sum()


def _rosenbrock(x: Tensor) -> Tensor:
    even, odd = x[1::2], x[::2]
    return torch.cat([10.0 * (even - odd**2), 1.0 - odd])


def _freudenstein_roth(x: Tensor) -> Tensor:
    a, b = x
    return torch.stack([-13.0 + a + ((5.0 - b) * b - 2.0) * b, -29.0 + a + ((b + 1.0) * b - 14.0) * b])


def _brown_badly_scaled(x: Tensor) -> Tensor:
    a, b = x
    return torch.stack([a - 1e6, b - 2e-6, a * b - 2.0])


def _beale(x: Tensor) -> Tensor:
    a, b = x
    return torch.stack([y - a * (1.0 - b**i) for i, y in enumerate((1.5, 2.25, 2.625), start=1)])


def _jennrich_sampson(x: Tensor) -> Tensor:
    i = torch.arange(1, 11, dtype=x.dtype)
    return 2.0 + 2.0 * i - (torch.exp(i * x[0]) + torch.exp(i * x[1]))


def _helical_valley(x: Tensor) -> Tensor:
    a, b, c = x
    angle = torch.atan(b / a) / (2.0 * math.pi) + (0.5 if a < 0 else 0.0)
    return torch.stack([10.0 * (c - 10.0 * angle), 10.0 * (torch.sqrt(a**2 + b**2) - 1.0), c])


_BARD = (0.14, 0.18, 0.22, 0.25, 0.29, 0.32, 0.35, 0.39, 0.37, 0.58, 0.73, 0.96, 1.34, 2.10, 4.39)


def _bard(x: Tensor) -> Tensor:
    y = torch.tensor(_BARD, dtype=x.dtype)
    u = torch.arange(1, 16, dtype=x.dtype)
    v = 16.0 - u
    return y - (x[0] + u / (v * x[1] + torch.minimum(u, v) * x[2]))


_GAUSSIAN = (0.0009, 0.0044, 0.0175, 0.0540, 0.1295, 0.2420, 0.3521, 0.3989)


def _gaussian(x: Tensor) -> Tensor:
    y = torch.tensor(_GAUSSIAN + _GAUSSIAN[-2::-1], dtype=x.dtype)
    t = (8.0 - torch.arange(1, 16, dtype=x.dtype)) / 2.0
    return x[0] * torch.exp(-x[1] * (t - x[2]) ** 2 / 2.0) - y


def _box(x: Tensor) -> Tensor:
    t = 0.1 * torch.arange(1, 11, dtype=x.dtype)
    return torch.exp(-t * x[0]) - torch.exp(-t * x[1]) - x[2] * (torch.exp(-t) - torch.exp(-10.0 * t))


def _powell_singular(x: Tensor) -> Tensor:
    a, b, c, d = x.view(-1, 4).T
    return torch.cat([a + 10.0 * b, math.sqrt(5.0) * (c - d), (b - 2.0 * c) ** 2, math.sqrt(10.0) * (a - d) ** 2])


def _wood(x: Tensor) -> Tensor:
    a, b, c, d = x
    terms = [10.0 * (b - a**2), 1.0 - a, math.sqrt(90.0) * (d - c**2), 1.0 - c]
    return torch.stack([*terms, math.sqrt(10.0) * (b + d - 2.0), (b - d) / math.sqrt(10.0)])


_KOWALIK_Y = (0.1957, 0.1947, 0.1735, 0.1600, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246)
_KOWALIK_U = (4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625)


def _kowalik_osborne(x: Tensor) -> Tensor:
    y, u = torch.tensor(_KOWALIK_Y, dtype=x.dtype), torch.tensor(_KOWALIK_U, dtype=x.dtype)
    return y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def _brown_dennis(x: Tensor) -> Tensor:
    t = torch.arange(1, 21, dtype=x.dtype) / 5.0
    return (x[0] + t * x[1] - torch.exp(t)) ** 2 + (x[2] + x[3] * torch.sin(t) - torch.cos(t)) ** 2


def _penalty_1(x: Tensor) -> Tensor:
    return torch.cat([math.sqrt(1e-5) * (x - 1.0), (x @ x - 0.25).reshape(1)])


def _variably_dimensioned(x: Tensor) -> Tensor:
    weighted = (torch.arange(1, x.numel() + 1, dtype=x.dtype) * (x - 1.0)).sum().reshape(1)
    return torch.cat([x - 1.0, weighted, weighted**2])


def _trigonometric(x: Tensor) -> Tensor:
    i = torch.arange(1, x.numel() + 1, dtype=x.dtype)
    return x.numel() - torch.cos(x).sum() + i * (1.0 - torch.cos(x)) - torch.sin(x)


def _discrete_boundary_value(x: Tensor) -> Tensor:
    h = 1.0 / (x.numel() + 1)
    t = h * torch.arange(1, x.numel() + 1, dtype=x.dtype)
    left, right = torch.roll(x, 1), torch.roll(x, -1)
    left, right = torch.where(t == t[0], 0.0, left), torch.where(t == t[-1], 0.0, right)
    return 2.0 * x - left - right + h**2 * (x + t + 1.0) ** 3 / 2.0


def _broyden_tridiagonal(x: Tensor) -> Tensor:
    zero = torch.zeros(1, dtype=x.dtype)
    return (3.0 - 2.0 * x) * x - torch.cat([zero, x[:-1]]) - 2.0 * torch.cat([x[1:], zero]) + 1.0


_GRID = [i / 11.0 for i in range(1, 11)]

PROBLEMS = (
    Problem(1, "Rosenbrock", _rosenbrock, (-1.2, 1.0), (0.0,)),
    Problem(2, "Freudenstein and Roth", _freudenstein_roth, (0.5, -2.0), (0.0, 48.9842)),
    Problem(4, "Brown badly scaled", _brown_badly_scaled, (1.0, 1.0), (0.0,), 1e-3),
    Problem(5, "Beale", _beale, (1.0, 1.0), (0.0,)),
    Problem(6, "Jennrich and Sampson", _jennrich_sampson, (0.3, 0.4), (124.362,)),
    Problem(7, "Helical valley", _helical_valley, (-1.0, 0.0, 0.0), (0.0,)),
    Problem(8, "Bard", _bard, (1.0, 1.0, 1.0), (8.21487e-3, 17.4286)),
    Problem(9, "Gaussian", _gaussian, (0.4, 1.0, 0.0), (1.12793e-8,)),
    Problem(12, "Box three-dimensional", _box, (0.0, 10.0, 20.0), (0.0,)),
    Problem(13, "Powell singular", _powell_singular, (3.0, -1.0, 0.0, 1.0), (0.0,)),
    Problem(14, "Wood", _wood, (-3.0, -1.0, -3.0, -1.0), (0.0,)),
    Problem(15, "Kowalik and Osborne", _kowalik_osborne, (0.25, 0.39, 0.415, 0.39), (3.07505e-4, 1.02734e-3)),
    Problem(16, "Brown and Dennis", _brown_dennis, (25.0, 5.0, -5.0, -1.0), (85822.2,), 1e-2),
    Problem(21, "Extended Rosenbrock", _rosenbrock, (-1.2, 1.0) * 5, (0.0,)),
    Problem(23, "Penalty I", _penalty_1, (1.0, 2.0, 3.0, 4.0), (2.24997e-5,)),
    Problem(25, "Variably dimensioned", _variably_dimensioned, tuple(1.0 - i / 10.0 for i in range(1, 11)), (0.0,)),
    Problem(26, "Trigonometric", _trigonometric, (0.1,) * 10, (0.0, 2.79506e-5)),
    Problem(28, "Discrete boundary value", _discrete_boundary_value, tuple(t * (t - 1.0) for t in _GRID), (0.0,)),
    Problem(30, "Broyden tridiagonal", _broyden_tridiagonal, (-1.0,) * 10, (0.0,)),
)

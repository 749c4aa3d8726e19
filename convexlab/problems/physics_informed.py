"""Physics-informed losses: how far a network u(x, t) is from solving a differential equation, as one scalar.

Source: Raissi, Perdikaris and Karniadakis 2019, J. Comput. Phys. 378. Loss and points go to
`Objective.from_batch_loss(model, [points], equation.loss)`, the whole set as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from convexlab.errors import MisuseError

__all__ = ["DifferentialEquation", "Points", "burgers", "convection"]

Function = Callable[[Any], Any]
"""Maps points (N, 2), a row (x, t) each, to values (N, 1): a network or a solution."""

# Nodes of the Gauss-Hermite rule for Burgers' solution: on [-1, 1] × [0, 1] with the usual viscosity 100 and 200 agree
# to 3e-15, 60 and 200 to 1e-9.
_NODES = 100


class Points(NamedTuple):
    """Where the equation, the initial condition and the boundary condition are asked for."""

    interior: Tensor
    """(N, 2), rows (x, t)."""
    initial: Tensor
    """(M, 2), t = 0."""
    initial_values: Tensor
    """(M, 1), what u shall be there."""
    left: Tensor
    """(K, 2), at the lower end of x."""
    right: Tensor
    """(K, 2), at the upper end of x, at the same times."""


@dataclass(frozen=True)
class DifferentialEquation:
    """An equation for u(x, t) on an interval of x and 0 ≤ t ≤ 1, with initial and boundary condition and solution."""

    description: str
    """One line."""
    interval: tuple[float, float]
    """Ends of x."""
    residual: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    """Maps u (N, 1) and the points (N, 2) that it was computed from to what the equation says is zero, (N, 1)."""
    mismatch: Callable[[Tensor, Tensor], Tensor] = field(repr=False)
    """Maps u at both ends, (K, 1) each, to what the boundary condition says is zero."""
    solution: Callable[[Tensor], Tensor] = field(repr=False)
    """Maps points (N, 2) to u (N, 1)."""

    def points(self, interior: int = 1000, initial: int = 100, boundary: int = 100, *, seed: int = 0) -> Points:
        """Return float32 points: uniformly random in the interior, evenly spaced at t = 0 and on the boundary.

        Raises:
            MisuseError: one of the numbers is below 1.
        """
        for name, value in {"interior": interior, "initial": initial, "boundary": boundary}.items():
            if value < 1:
                raise MisuseError(f"expected {name} of at least 1 point, got {value!r}.")
        low, high = self.interval
        inside = torch.rand(interior, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        inside[:, 0] = low + (high - low) * inside[:, 0]
        x, t = torch.linspace(low, high, initial).double(), torch.linspace(0.0, 1.0, boundary).double()
        start = torch.stack([x, torch.zeros_like(x)], dim=1)
        ends = [torch.stack([torch.full_like(t, end), t], dim=1) for end in self.interval]
        return Points(*(part.float() for part in (inside, start, self.solution(start), *ends)))

    def loss(self, model: Function, points: Points) -> Tensor:
        """Return the sum of three mean squares, all of weight 1: residual, initial error, boundary mismatch."""
        # Under no_grad too: the residual itself is made of derivatives.
        with torch.enable_grad():
            interior = points.interior.detach().requires_grad_()
            residual = self.residual(model(interior), interior)
        sizes = [len(points.initial), len(points.left), len(points.right)]
        initial, left, right = model(torch.cat([points.initial, points.left, points.right])).split(sizes)
        parts = residual, initial - points.initial_values, self.mismatch(left, right)
        return torch.stack([part.square().mean() for part in parts]).sum()

    @torch.no_grad()
    def relative_error(
        self, model: Function, *, columns: int = 256, rows: int = 100, device: torch.device | str | None = None
    ) -> float:
        """Return ‖u - solution‖ / ‖solution‖ over a grid of ``columns`` values of x times ``rows`` values of t.

        ``device`` is where the model is; None is the CPU.
        """
        x, t = torch.linspace(*self.interval, columns), torch.linspace(0.0, 1.0, rows)
        grid = torch.cartesian_prod(x, t)
        # The solution on the CPU: not every device has float64.
        found, solution = model(grid.to(device)).cpu().double(), self.solution(grid.double())
        return float(torch.linalg.vector_norm(found - solution) / torch.linalg.vector_norm(solution))


def convection(speed: float = 30.0) -> DifferentialEquation:
    """Return u_t + speed · u_x = 0 on 0 ≤ x ≤ 2π, periodic, u(x, 0) = sin x.

    Source: Krishnapriyan et al. 2021, arXiv 2109.01050; at speed = 30 training fails unless it is helped.
    """

    def residual(u: Tensor, points: Tensor) -> Tensor:
        gradient = _gradient(u, points)
        return gradient[:, 1:] + speed * gradient[:, :1]

    return DifferentialEquation(
        f"convection with speed {speed:g}, periodic in 0 ≤ x ≤ 2π, u(x, 0) = sin x",
        (0.0, 2 * math.pi),
        residual,
        lambda left, right: left - right,
        lambda points: torch.sin(points[:, :1] - speed * points[:, 1:]),
    )


def burgers(viscosity: float = 0.01 / math.pi) -> DifferentialEquation:
    """Return u_t + u u_x = viscosity · u_xx on -1 ≤ x ≤ 1, zero at both ends, u(x, 0) = -sin(πx).

    Source: Raissi et al. 2019; the solution is that of Basdevant et al. 1986, Computers & Fluids 14, by the Cole-Hopf
    transform and a Gauss-Hermite rule.
    """

    def residual(u: Tensor, points: Tensor) -> Tensor:
        gradient = _gradient(u, points)
        u_x, u_t = gradient[:, :1], gradient[:, 1:]
        return u_t + u * u_x - viscosity * _gradient(u_x, points)[:, :1]

    nodes, weights = map(torch.from_numpy, np.polynomial.hermite.hermgauss(_NODES))

    def solution(points: Tensor) -> Tensor:
        x, t = points[:, :1], points[:, 1:]
        arrived = math.pi * (x - nodes.to(points) * (4 * viscosity * t).sqrt())
        # Of the exponential only ratios count: the largest of a row becomes 1.
        exponent = -torch.cos(arrived) / (2 * math.pi * viscosity)
        shares = torch.softmax(exponent + weights.log().to(points), dim=1)
        return -(shares * torch.sin(arrived)).sum(dim=1, keepdim=True)

    return DifferentialEquation(
        f"Burgers with viscosity {viscosity:.4g}, zero at x = ±1, u(x, 0) = -sin(πx)",
        (-1.0, 1.0),
        residual,
        lambda left, right: torch.cat([left, right]),
        solution,
    )


def _gradient(u: Tensor, points: Tensor) -> Tensor:
    """Return (u_x, u_t) of every row, (N, 2), which can be differentiated again."""
    return torch.autograd.grad(u.sum(), points, create_graph=True)[0]

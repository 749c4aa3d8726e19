"""Physics-informed losses: how far a network u(x, t) is from solving a differential equation, as one scalar.

Source: Raissi, Perdikaris and Karniadakis 2019, J. Comput. Phys. 378. Loss and points go to
`Objective.from_batch_loss(model, [points], equation.loss)`, the whole set as one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convexlab.errors import MisuseError

__all__ = [
    "DifferentialEquation",
    "Points",
    "allen_cahn",
    "burgers",
    "convection",
    "helmholtz",
    "klein_gordon",
    "wave",
]

Function = Callable[[Any], Any]
"""Maps points (N, 2), a row (x, t) or (x, y) each, to values (N, 1): a network or a solution."""

# Nodes of the Gauss-Hermite rule for Burgers' solution. On [-1, 1] × [0, 1] with the usual viscosity, 100 and 200 agree
# to 3e-15, 60 and 200 to 1e-9.
_NODES = 100

# Allen and Cahn's solution: modes in x, times it is kept at, steps between two of them.
_MODES, _TIMES, _STEPS = 2048, 401, 10


class Points(NamedTuple):
    """Where the equation, the initial condition and the boundary condition are asked for."""

    interior: Tensor
    """(N, 2), rows (x, t) or (x, y)."""
    initial: Tensor
    """(M, 2), t = 0; in the plane both ends of y, (2M, 2)."""
    initial_values: Tensor
    """(M, 1), what u shall be there."""
    left: Tensor
    """(K, 2), at the lower end of x."""
    right: Tensor
    """(K, 2), at the upper end of x, at the same times."""


@dataclass(frozen=True)
class DifferentialEquation:
    """An equation for u(x, t) on an interval of x and 0 ≤ t ≤ 1, with initial and boundary condition and solution.

    An equation in the plane has y in place of t.
    """

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
    starts_at_rest: bool = False
    """Whether u_t = 0 at t = 0, too."""
    plane: bool = False
    """Whether the second coordinate is y, which has the interval of x, and values at both ends."""

    @property
    def second_interval(self) -> tuple[float, float]:
        """Ends of t or y."""
        return self.interval if self.plane else (0.0, 1.0)

    def points(self, interior: int = 1000, initial: int = 100, boundary: int = 100, *, seed: int = 0) -> Points:
        """Return float32 points: uniformly random in the interior, evenly spaced at t = 0 and on the boundary.

        Raises:
            MisuseError: one of the numbers is below 1.
        """
        for name, value in {"interior": interior, "initial": initial, "boundary": boundary}.items():
            if value < 1:
                raise MisuseError(f"expected {name} of at least 1 point, got {value!r}.")
        (low, high), (first, last) = self.interval, self.second_interval
        inside = torch.rand(interior, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        inside[:, 0] = low + (high - low) * inside[:, 0]
        inside[:, 1] = first + (last - first) * inside[:, 1]
        x, t = torch.linspace(low, high, initial).double(), torch.linspace(first, last, boundary).double()
        given = (first, last) if self.plane else (first,)
        start = torch.cat([torch.stack([x, torch.full_like(x, end)], dim=1) for end in given])
        ends = [torch.stack([torch.full_like(t, end), t], dim=1) for end in self.interval]
        return Points(*(part.float() for part in (inside, start, self.solution(start), *ends)))

    def residuals(self, model: Function, points: Points) -> list[Tensor]:
        """Return what should be zero, (·, 1) each: residual, initial error, boundary mismatch, and u_t of a rest."""
        # Under no_grad too: the residual itself is made of derivatives.
        with torch.enable_grad():
            interior = points.interior.detach().requires_grad_()
            residual = self.residual(model(interior), interior)
        sizes = [len(points.initial), len(points.left), len(points.right)]
        initial, left, right = model(torch.cat([points.initial, points.left, points.right])).split(sizes)
        parts = [residual, initial - points.initial_values, self.mismatch(left, right)]
        if self.starts_at_rest:
            with torch.enable_grad():
                start = points.initial.detach().requires_grad_()
                parts.append(_gradient(model(start), start)[:, 1:])
        return parts

    def scaled_residuals(self, model: Function, points: Points) -> list[Tensor]:
        """Return `residuals` scaled so that their squares sum to the loss."""
        return [part / math.sqrt(len(part)) for part in self.residuals(model, points)]

    def loss(self, model: Function, points: Points) -> Tensor:
        """Return the sum of the mean squares of `residuals`, all of weight 1."""
        return torch.stack([part.square().mean() for part in self.residuals(model, points)]).sum()

    @torch.no_grad()
    def relative_error(
        self, model: Function, *, columns: int = 256, rows: int = 100, device: torch.device | str | None = None
    ) -> float:
        """Return ‖u - solution‖ / ‖solution‖ over a grid of ``columns`` values of x times ``rows`` of t or y.

        ``device`` is where the model is; None is the CPU.
        """
        x, t = torch.linspace(*self.interval, columns), torch.linspace(*self.second_interval, rows)
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


def helmholtz(waves: tuple[int, int] = (1, 4)) -> DifferentialEquation:
    """Return u_xx + u_yy + u = q on the square -1 ≤ x, y ≤ 1, zero on its border; q makes u = sin(aπx) sin(bπy).

    Source: Wang, Teng and Perdikaris 2021, SIAM J. Sci. Comput. 43, section 4, with (a, b) = (1, 4).
    """
    a, b = (count * math.pi for count in waves)

    def solution(points: Tensor) -> Tensor:
        return torch.sin(a * points[:, :1]) * torch.sin(b * points[:, 1:])

    def residual(u: Tensor, points: Tensor) -> Tensor:
        u_xx, u_yy = _second_derivatives(u, points)
        return u_xx + u_yy + u - (1.0 - a**2 - b**2) * solution(points.detach())

    return DifferentialEquation(
        f"Helmholtz in the plane, zero on the border of -1 ≤ x, y ≤ 1, u = sin({waves[0]}πx) sin({waves[1]}πy)",
        (-1.0, 1.0),
        residual,
        lambda left, right: torch.cat([left, right]),
        solution,
        plane=True,
    )


def klein_gordon() -> DifferentialEquation:
    """Return u_tt - u_xx + u³ = q on 0 ≤ x ≤ 1, at rest at t = 0; q makes u = x cos(5πt) + (xt)³.

    Source: Wang, Teng and Perdikaris 2021, SIAM J. Sci. Comput. 43, section 4. The ends are asked for at
    `DifferentialEquation.points`' default of 100 even times.
    """
    frequency = 5 * math.pi

    def solution(points: Tensor) -> Tensor:
        x, t = points[:, :1], points[:, 1:]
        return x * torch.cos(frequency * t) + (x * t) ** 3

    def residual(u: Tensor, points: Tensor) -> Tensor:
        u_xx, u_tt = _second_derivatives(u, points)
        inside = points.detach()
        x, t = inside[:, :1], inside[:, 1:]
        q = -(frequency**2) * x * torch.cos(frequency * t) + 6 * x**3 * t - 6 * x * t**3 + solution(inside) ** 3
        return u_tt - u_xx + u**3 - q

    def mismatch(left: Tensor, right: Tensor) -> Tensor:
        t = torch.linspace(0.0, 1.0, len(right)).to(right)[:, None]
        return torch.cat([left, right - torch.cos(frequency * t) - t**3])

    return DifferentialEquation(
        "Klein-Gordon, cubic, u = x cos(5πt) + (xt)³ in 0 ≤ x ≤ 1",
        (0.0, 1.0),
        residual,
        mismatch,
        solution,
        starts_at_rest=True,
    )


def wave(speed: float = 2.0) -> DifferentialEquation:
    """Return u_tt = speed² · u_xx on 0 ≤ x ≤ 1, zero at both ends, u(x, 0) = sin(πx) + sin(4πx) / 2, at rest.

    Source: Wang, Yu and Perdikaris 2022, J. Comput. Phys. 449, section 6.2.
    """

    def residual(u: Tensor, points: Tensor) -> Tensor:
        u_xx, u_tt = _second_derivatives(u, points)
        return u_tt - speed**2 * u_xx

    def solution(points: Tensor) -> Tensor:
        x, t = math.pi * points[:, :1], math.pi * speed * points[:, 1:]
        return torch.sin(x) * torch.cos(t) + 0.5 * torch.sin(4 * x) * torch.cos(4 * t)

    return DifferentialEquation(
        f"wave with speed {speed:g}, zero at x = 0 and 1, u(x, 0) = sin(πx) + sin(4πx) / 2",
        (0.0, 1.0),
        residual,
        lambda left, right: torch.cat([left, right]),
        solution,
        starts_at_rest=True,
    )


def allen_cahn(diffusion: float = 1e-4) -> DifferentialEquation:
    """Return u_t = diffusion · u_xx + 5 (u - u³) on -1 ≤ x ≤ 1, periodic, u(x, 0) = x² cos(πx).

    Source: Raissi et al. 2019, section 3.2. The solution has no closed form: it is integrated in Fourier modes when it
    is first asked for, which takes a second.
    """

    def residual(u: Tensor, points: Tensor) -> Tensor:
        gradient = _gradient(u, points)
        u_x, u_t = gradient[:, :1], gradient[:, 1:]
        return u_t - diffusion * _gradient(u_x, points)[:, :1] - 5 * (u - u**3)

    def solution(points: Tensor) -> Tensor:
        x, t = points.detach().cpu().double().numpy().T
        return torch.from_numpy(_allen_cahn_spline(diffusion).ev(x, t)[:, None]).to(points)

    return DifferentialEquation(
        f"Allen-Cahn with diffusion {diffusion:g}, periodic in -1 ≤ x ≤ 1, u(x, 0) = x² cos(πx)",
        (-1.0, 1.0),
        residual,
        lambda left, right: left - right,
        solution,
    )


@lru_cache(maxsize=4)
def _allen_cahn_spline(diffusion: float) -> Any:
    """Return u as a cubic spline of x and t.

    Strang's splitting of the reaction, whose flow is known, and of the diffusion, a factor for every Fourier mode. With
    half as many modes and times it is the same to 2e-4 in the kink at the ends, to 2e-5 elsewhere.
    """
    from scipy.interpolate import RectBivariateSpline

    x, times = np.linspace(-1.0, 1.0, _MODES, endpoint=False), np.linspace(0.0, 1.0, _TIMES)
    step = 1.0 / ((_TIMES - 1) * _STEPS)
    spread = np.exp(-diffusion * step * (np.pi * np.arange(_MODES // 2 + 1)) ** 2)

    def react(u: NDArray[np.float64], time: float) -> NDArray[np.float64]:
        reacted: NDArray[np.float64] = u / np.sqrt(u**2 + (1.0 - u**2) * np.exp(-10.0 * time))
        return reacted

    path = [x**2 * np.cos(np.pi * x)]
    for _ in times[1:]:
        u = react(path[-1], 0.5 * step)
        for _ in range(_STEPS):
            u = react(np.fft.irfft(spread * np.fft.rfft(u), _MODES), step)
        path.append(react(u, -0.5 * step))
    values = np.array(path).T
    return RectBivariateSpline(np.append(x, 1.0), times, np.vstack([values, values[:1]]))


def _second_derivatives(u: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the second derivatives by the first and by the second coordinate, (N, 1) each."""
    first, second = _gradient(u, points).split(1, dim=1)
    return _gradient(first, points)[:, :1], _gradient(second, points)[:, 1:]


def _gradient(u: Tensor, points: Tensor) -> Tensor:
    """Return (u_x, u_t) of every row, (N, 2), which can be differentiated again."""
    return torch.autograd.grad(u.sum(), points, create_graph=True)[0]

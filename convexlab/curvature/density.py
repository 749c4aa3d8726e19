"""Spectral density by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017, doi 10.1137/16M1104974, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.intervals import Interval, share_interval, student_interval
from convexlab.curvature.lanczos import Lanczos, random_run
from convexlab.curvature.quadrature import share_below
from convexlab.errors import MisuseError
from convexlab.linalg.operators import MatrixVectorProduct

__all__ = ["SpectralDensity", "density_of", "spectral_density"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SpectralDensity:
    """A discrete estimate of the density of eigenvalues, from several random probes."""

    nodes: Tensor
    """(probes, steps) Ritz values, float64, on the CPU."""
    weights: Tensor
    """(probes, steps) squares of the first components of T's eigenvectors, over the number of probes; sum 1."""
    size: int
    """n, the number of eigenvalues."""
    zero_width: float
    """Half the width of the interval around 0 in which rounding leaves the sign of an eigenvalue open."""
    effort: Effort
    recurrences: tuple[tuple[Array, Array], ...] = field(repr=False, compare=False)
    """For each probe the diagonal and the off-diagonal (k,) of T; the last entry is 0 where the space is invariant."""

    @property
    def negative_mass(self) -> float:
        """Estimated fraction of the eigenvalues below -``zero_width``."""
        return self.mass_below(-self.zero_width)[0]

    @property
    def standard_error(self) -> float:
        """Standard error of `negative_mass` over the random starts; quadrature's own error is in `interval` alone."""
        return self.mass_below(-self.zero_width)[1]

    def interval(self, level: float = 0.95) -> Interval:
        """Return an interval that holds the fraction of the eigenvalues below -``zero_width``; see `mass_interval`."""
        return self.mass_interval(-self.zero_width, level)

    def mass_below(self, threshold: float) -> tuple[float, float]:
        """Return the estimated fraction of the eigenvalues below a threshold and its standard error over the starts.

        After few steps a node stands for a whole cluster. The node of the bulk at zero lies a little to one side of it.
        That error is not in the standard error; `mass_interval` bounds it.
        """
        mass = float((self.weights * (self.nodes < threshold)).sum())
        least, most = self._bracket(threshold)
        mass = min(max(mass, least), most)
        # The variance of the Beta distribution of `share_interval`.
        return mass, math.sqrt(max(mass * (1 - mass), 0.0) / (len(self.nodes) * (self.size / 2 + 1)))

    def mass_interval(self, threshold: float, level: float = 0.95) -> Interval:
        """Return an interval for the fraction of the eigenvalues below a threshold.

        It has two parts. One is the uncertainty from the distribution of the starts (`intervals.share_interval`). The
        other is the range of each start's share by Gauss-Radau quadrature (`quadrature.share_below`), which is certain.
        Where quadrature leaves more open than chance, the interval holds more often than the level says.

        Args:
            threshold: on the eigenvalue axis.
            level: probability over the random starts with which it holds, at least.

        Raises:
            MisuseError: a level that is no probability.
        """
        least, most = self._bracket(threshold)
        return share_interval(least, most, size=self.size, probes=len(self.nodes), level=level)

    def moment(self, power: int) -> tuple[float, float]:
        """Return the estimate of trace(A^power) and its standard error over the random starts.

        For v uniform on the sphere the variance of n vᵀBv is 2 (n tr B² - (tr B)²) / (n + 2). It is estimated from the
        moments of the same runs, without a second probe. NaN where a run is too short for quadrature to be exact.
        """
        value, error, _ = self._moment(power)
        return value, error

    def moment_interval(self, power: int, level: float = 0.95) -> Interval:
        """Return an interval for trace(A^power), by Student's t.

        The degrees of freedom are those of the estimated variance by Satterthwaite (1946, doi 10.2307/3002019). Its own
        relative variance is 2 tr A^4p / (m (tr A^2p)²) with m probes, which the runs estimate too. Quadrature of k
        steps is exact up to the power 2k - 1; with 4 ``power`` beyond that both ends are NaN.

        Raises:
            MisuseError: a level that is no probability.
        """
        value, error, degrees = self._moment(power)
        if math.isnan(error):
            return math.nan, math.nan
        return student_interval(value, error, degrees, level)

    def _moment(self, power: int) -> tuple[float, float, float]:
        """Return an estimate, its standard error, and the degrees of freedom of that; NaN for what is not exact."""
        first, second, fourth = (self._exact_mean(multiple * power) for multiple in (1, 2, 4))
        if power == 0:
            return float(self.size), 0.0, math.inf
        probes, size = len(self.nodes), self.size
        variance = 2 * size**2 * max(second - first**2, 0.0) / (probes * (size + 2))
        # No matrix has fewer degrees than one with a single eigenvalue that is not zero.
        degrees = probes * max(size * second**2 / fourth, 1.0) if fourth else math.inf  # NaN stays NaN in this order.
        value = size * float((self.weights * self.nodes**power).sum())
        return value, math.sqrt(variance) if math.isfinite(variance) else math.nan, degrees

    def _exact_mean(self, power: int) -> float:
        """Return the mean of vᵀA^power v over the starts v; NaN where quadrature is not exact."""
        runs = [(len(diagonal), couplings[-1]) for diagonal, couplings in self.recurrences]
        if any(coupling and power > 2 * steps - 1 for steps, coupling in runs):
            return math.nan
        return float((self.weights * self.nodes**power).sum())

    def _bracket(self, threshold: float) -> tuple[float, float]:
        """Return the means over the probes of the least and the most that may lie below a threshold."""
        bounds = np.array([share_below(*recurrence, threshold) for recurrence in self.recurrences])
        least, most = bounds.mean(axis=0).tolist()
        return least, most

    def density(self, grid: Tensor, width: float | None = None) -> Tensor:
        """Return the density at ``grid`` (m,), every node widened to a Gaussian.

        Args:
            grid: points on the eigenvalue axis.
            width: the Gaussian's standard deviation; None is 1/100 of the nodes' range.

        Raises:
            MisuseError: the width is not positive.
        """
        if width is None:
            width = float(self.nodes.max() - self.nodes.min()) / 100 or 1.0
        if not width > 0:
            raise MisuseError(f"expected a positive width, got {width!r}.")
        points = grid.to(device="cpu", dtype=torch.float64)
        scaled = (points[:, None] - self.nodes.reshape(1, -1)) / width
        bells = torch.exp(-0.5 * scaled**2) / (width * math.sqrt(2 * math.pi))
        return bells @ self.weights.reshape(-1)


def spectral_density(
    operator: MatrixVectorProduct, *, probes: int = 8, steps: int = 64, seed: int = 0
) -> SpectralDensity:
    """Estimate the spectral density of a symmetric operator by ``probes`` Krylov runs of ``steps`` products each.

    It is stochastic Lanczos quadrature. See `SpectralDensity` for its errors.

    Args:
        operator: anything with ``matvec``, ``shape``, ``dtype`` and ``device``.
        probes: Krylov runs from independent random starts. More reduce the error over the starts.
        steps: products of each run. More reduce the error of the quadrature.
        seed: of the random starts.

    Raises:
        MisuseError: fewer than one probe or step.
        FailureError: a run does not fit into memory, see `forecast_memory`; or a product is not finite.
    """
    if probes < 1 or steps < 1:
        raise MisuseError(f"expected at least one probe and one step, got probes={probes!r} and steps={steps!r}.")
    generator = torch.Generator().manual_seed(seed)
    with Meter(operator) as meter:
        return density_of((random_run(operator, generator, steps) for _ in range(probes)), meter)


def density_of(processes: Iterable[Lanczos], meter: Meter) -> SpectralDensity:
    """Return the density seen by Krylov runs from independent random starts, each of any number of steps.

    They are taken in turn, so that a generator of runs needs the memory of a single basis.
    """
    runs, recurrences, products, plan = [], [], 0, ""
    for process in processes:
        ritz_values, vectors = process.ritz()
        recurrences.append(_recurrence(process))
        runs.append((torch.from_numpy(ritz_values), torch.from_numpy(vectors[0] ** 2)))
        operator, products, plan = process.operator, products + process.products, plan or process.plan
        del process  # Its basis has to be gone before the next one is made.
    nodes = torch.zeros((len(runs), max(len(values) for values, _ in runs)), dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for row, (values, squares) in enumerate(runs):
        # A shorter run is filled with nodes of no weight, inside the range.
        nodes[row] = values[0]
        nodes[row, : len(values)] = values
        weights[row, : len(values)] = squares / len(runs)
    rounding = math.sqrt(operator.shape[0]) * torch.finfo(operator.dtype).eps * float(nodes.abs().max())
    effort = meter.effort(products, plan)
    return SpectralDensity(
        nodes, weights, operator.shape[0], zero_width=rounding, effort=effort, recurrences=tuple(recurrences)
    )


def _recurrence(process: Lanczos) -> tuple[Array, Array]:
    diagonal, off_diagonal = process.coefficients()
    if process.invariant or process.steps == process.operator.shape[0]:
        off_diagonal[-1] = 0.0  # What is left of it is rounding.
    return diagonal, off_diagonal

"""Spectral density by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017, doi 10.1137/16M1104974, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.lanczos import Lanczos, random_run
from convexlab.errors import MisuseError
from convexlab.linalg.operators import MatrixVectorProduct

__all__ = ["SpectralDensity", "density_of", "spectral_density"]


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

    @property
    def negative_mass(self) -> float:
        """Estimated fraction of the eigenvalues below -``zero_width``."""
        return self.mass_below(-self.zero_width)[0]

    @property
    def standard_error(self) -> float:
        """Standard error of `negative_mass` over the probes; NaN with a single one."""
        return self.mass_below(-self.zero_width)[1]

    def mass_below(self, threshold: float) -> tuple[float, float]:
        """Return the estimated fraction of the eigenvalues below a threshold and its standard error over the probes.

        After few steps a node stands for a whole cluster, and the node of the bulk at zero lies a little to one side
        of it. Only with a threshold clear of the bulk is the share the same after more steps.
        """
        masses = (self.weights * (self.nodes < threshold)).sum(dim=1) * len(self.nodes)
        return float(masses.mean()), standard_error(masses)

    def moment(self, power: int) -> tuple[float, float]:
        """Return the estimate of trace(A^power) and its standard error over the probes (NaN with a single one)."""
        moments = self.size * len(self.nodes) * (self.weights * self.nodes**power).sum(dim=1)
        return float(moments.mean()), standard_error(moments)

    def density(self, grid: Tensor, width: float | None = None) -> Tensor:
        """Return the density at ``grid`` (m,), every node widened to a Gaussian.

        Args:
            grid: points on the eigenvalue axis.
            width: the Gaussian's standard deviation; None is 1/100 of the nodes' range.
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
    runs, products, plan = [], 0, ""
    for process in processes:
        ritz_values, vectors = process.ritz()
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
    return SpectralDensity(nodes, weights, size=operator.shape[0], zero_width=rounding, effort=effort)


def standard_error(samples: Tensor) -> float:
    """Return the standard error of the mean of independent samples (m,); NaN for fewer than two."""
    if len(samples) < 2:
        return math.nan
    return float(samples.std() / math.sqrt(len(samples)))

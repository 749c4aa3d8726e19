"""Sampling error of curvature along given directions: what one sample of the data says about another."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.intervals import student_reach
from convexlab.errors import MisuseError
from convexlab.linalg.vectors import dot, unit_columns
from convexlab.objective import Objective
from convexlab.objective.batches import rows_of
from convexlab.objective.cost import Cost
from convexlab.objective.products import HessianOperator

__all__ = ["SampledCurvature", "sampled_curvature"]


@dataclass(frozen=True)
class SampledCurvature:
    """Rayleigh quotients of one direction, or of k at once, over the batches of a sample; on the CPU, in float64."""

    value: Tensor
    """() or (k,), vᵀHv / vᵀv for the Hessian H of the whole objective: the weighted mean of ``quotients``."""
    standard_error: Tensor
    """() or (k,), of ``value`` as an estimate for the population; NaN with fewer than two batches."""
    quotients: Tensor
    """(B,) or (B, k), vᵀH_b v / vᵀv of every batch b."""
    weights: Tensor
    """(B,), of the batches in the mean: their examples, unless the criterion counts otherwise."""
    examples: int
    """Rows of the batches; a batch without tensors counts as one."""
    effort: Effort

    @property
    def batches(self) -> int:
        """B."""
        return len(self.weights)

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the standard error, (Σ w)² / Σ w² - 1: B - 1 for batches of one size.

        That is Satterthwaite's (1946, doi 10.2307/3002019) for residuals whose variance falls as 1 / w; 0 for a batch.
        """
        return float(self.weights.sum() ** 2 / self.weights.square().sum()) - 1 if self.batches > 1 else 0.0

    def interval(self, level: float = 0.95) -> Tensor:
        """Return an interval for the population's curvature along each vector, (2,) or (2, k), by Student's t.

        Args:
            level: probability over the sample with which it holds, for vectors that were not chosen on it. NaN with
                fewer than two batches.

        Raises:
            MisuseError: a level that is no probability.
        """
        reach = student_reach(self.degrees, level) * self.standard_error
        return torch.stack([self.value - reach, self.value + reach])


def sampled_curvature(objective: Objective, vectors: Tensor, *, population: int | None = None) -> SampledCurvature:
    """Return the curvature of the loss along given directions with its sampling error.

    With weights w_b, W their sum, the mean is q = Σ w_b q_b / W. Its standard error is that of a ratio, √((1 - f) B /
    (B - 1) Σ w_b² (q_b - q)²) / W. Source: Cochran 1977, "Sampling Techniques", 3rd ed., section 2.11. For equal
    weights and f = 0 it is s / √B. The sampled fraction f is examples / ``population`` (section 2.6).

    **Which examples.** An eigenvector found on a sample was *chosen* for its curvature there. On the same sample the
    smallest is biased low and the largest high, by more than this error (Tatzel, Mucsányi, Hackel & Hennig 2025, arXiv
    2410.14325). Examples that the vectors were not chosen on show what holds for the full loss: pass an objective of
    the same model over those.

    **Which batches.** The micro-batches of ``objective``. The error is right where they are random parts of the data:
    shuffle data that are sorted. With few of them the error itself is uncertain; `SampledCurvature.interval` allows for
    that.

    Args:
        objective: over the sample; its data may be other than those that ``vectors`` were found on.
        vectors: (n,) or (n, k), directions of any length.
        population: number of examples in the full data set, from which the objective's are drawn without replacement.
            None is an infinite population.

    Raises:
        MisuseError: vectors of another shape, a vector that is zero or not finite, or a population smaller than the
            sample.
    """
    directions = _directions(objective, vectors)
    if population is not None and population < 1:
        raise MisuseError(f"expected a population of at least 1, got {population!r}.")
    with Meter(objective) as meter:
        begin = time.perf_counter()
        with objective.evaluating(), sdpa_kernel(SDPBackend.MATH):
            rows, weights, sizes = zip(*_quotients(objective, directions), strict=True)
        quotients = objective.ranks.added(torch.stack(rows)).cpu().double()
        objective.spend(Cost(hessian_products=len(directions), seconds=time.perf_counter() - begin))
        effort = meter.effort(len(directions))
    value, error = _ratio(quotients, quotients.new_tensor(weights), _fraction(sum(sizes), population))
    shape = vectors.shape[1:]
    return SampledCurvature(
        value=value.reshape(shape),
        standard_error=error.reshape(shape),
        quotients=quotients.reshape(-1, *shape),
        weights=quotients.new_tensor(weights),
        examples=sum(sizes),
        effort=effort,
    )


def _directions(objective: Objective, vectors: Tensor) -> Tensor:
    """Return the vectors as rows (k, n), in the dtype and on the device of the objective."""
    if vectors.numel() == 0:
        raise MisuseError(f"expected at least one vector of shape ({objective.size},), got {tuple(vectors.shape)}.")
    return unit_columns(vectors, objective.size, objective.device).T.to(objective.dtype).contiguous()


def _quotients(objective: Objective, directions: Tensor) -> Iterator[tuple[Tensor, float, int]]:
    """Yield the quotients (k,), the weight and the examples of every micro-batch.

    Of several ranks each takes micro-batches in turn, those of one process; quotients of the others' are zeros.
    """
    alone, ranks = objective.alone(), objective.ranks
    operator = HessianOperator(alone, keep_graphs=False)
    squares = torch.stack([dot(row, row) for row in directions])
    for number, (batch, weight) in enumerate(alone.parts()):
        if number % ranks.size != ranks.rank:
            yield torch.zeros_like(squares), weight, _examples(batch)
            continue
        products = operator.times(batch, directions.T, number)
        along = torch.stack([dot(row, product) for row, product in zip(directions, products, strict=True)])
        yield along / squares, weight, _examples(batch)


def _examples(batch: Any) -> int:
    try:
        return rows_of(batch)
    except MisuseError:  # A batch may be anything where the objective has a weight= to count it by.
        return 1


def _ratio(quotients: Tensor, weights: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return the weighted mean (k,) of quotients (B, k) and its standard error (k,)."""
    count, total = len(weights), weights.sum()
    value = (weights[:, None] * quotients).sum(dim=0) / total
    if count < 2:
        return value, torch.full_like(value, math.nan)
    residuals = weights[:, None] * (quotients - value)
    variance = (1 - fraction) * count / (count - 1) * residuals.square().sum(dim=0)
    return value, variance.sqrt() / total


def _fraction(examples: int, population: int | None) -> float:
    if population is None:
        return 0.0
    if examples > population:
        raise MisuseError(
            f"expected a population of at least the {examples} examples of the objective, got {population}. "
            "Pass the number of examples of the full data set."
        )
    return examples / population

"""What the curvature of a sample says about the loss of all training examples.

An eigenvector found on a sample was chosen for its curvature there. Only other examples can show
whether the full loss has that curvature too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from convexlab.curvature.intervals import LEVEL, student_reach
from convexlab.curvature.sampling import SampledCurvature, sampled_curvature
from convexlab.curvature.verdict import Verdict
from convexlab.objective.cost import Cost
from convexlab.problems import ImageProblem
from convexlab.runs.rows import Sampling

__all__ = ["sampling_error"]


def sampling_error(problem: ImageProblem, verdict: Verdict | None) -> Sampling:
    """Multiply both extreme eigenvectors anew, batch by batch, with the Hessian of the sample and of fresh examples.

    There are at most as many fresh examples as the sample has, so that it costs at most 8 gradient equivalents. Without
    a verdict, and so without eigenvectors, only how many examples there are is known.
    """
    if verdict is None:
        return Sampling(population=problem.population)
    extremes = verdict.extremes
    vectors = torch.stack([extremes.smallest_vector, extremes.largest_vector], dim=1)
    sample, fresh = _measure(problem, vectors)
    known = fresh.value.new_tensor([extremes.smallest, extremes.largest])
    full, full_error = _of_all(problem, known, sample, fresh)
    reach = student_reach(fresh.degrees, LEVEL)
    # An error of 0 is one that is known, by however many batches.
    full_reach = torch.where(full_error == 0, 0.0, reach * full_error)
    fresh_reach = reach * fresh.standard_error
    columns = {
        "standard_error": sample.standard_error,
        "fresh": fresh.value,
        "fresh_standard_error": fresh.standard_error,
        "fresh_low": fresh.value - fresh_reach,
        "fresh_high": fresh.value + fresh_reach,
        "full": full,
        "full_standard_error": full_error,
        "full_low": full - full_reach,
        "full_high": full + full_reach,
    }
    ends = zip(*(column.tolist() for column in columns.values()), strict=True)
    named = {
        f"{end}_{name}": value
        for end, values in zip(("smallest", "largest"), ends, strict=True)
        for name, value in zip(columns, values, strict=True)
    }
    return Sampling(
        population=problem.population,
        fresh_examples=fresh.examples,
        **named,
    )


def _measure(problem: ImageProblem, vectors: Tensor) -> tuple[SampledCurvature, SampledCurvature]:
    """Return what the sample and the fresh examples say, charged to the problem's objective as parts of its data."""
    results = []
    for objective in (problem.sample(), problem.fresh()):
        result = sampled_curvature(objective, vectors)
        products = objective.cost.hessian_products * result.examples / problem.dataset.train_size
        problem.objective.spend(Cost(hessian_products=products, seconds=objective.cost.seconds))
        results.append(result)
    return results[0], results[1]


def _of_all(
    problem: ImageProblem, known: Tensor, sample: SampledCurvature, fresh: SampledCurvature
) -> tuple[Tensor, Tensor]:
    """Return the curvature (2,) on all training examples and its standard error; NaN where no fresh one is of them."""
    others = problem.population - problem.dataset.train_size
    if not others:
        return known, torch.zeros_like(known)
    if problem.dataset.fresh is None:
        return torch.full_like(known, math.nan), torch.full_like(known, math.nan)
    ours, theirs = float(sample.weights.sum()), float(fresh.weights.sum()) * others / fresh.examples
    share = theirs / (ours + theirs)
    left = math.sqrt(1 - fresh.examples / others)  # A finite population: where all of it is known, there is no error.
    error = share * left * fresh.standard_error if left else torch.zeros_like(known)
    return (1 - share) * known + share * fresh.value, error

"""What the curvature of a sample says about the loss of all training examples.

An eigenvector found on a sample was chosen for its curvature there. Whether that is the full loss's, only examples that
it was not chosen on can tell.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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
    columns = (sample.standard_error, fresh.value, fresh.standard_error, *_of_all(problem, known, sample, fresh))
    smallest, largest = torch.stack(columns, dim=1).tolist()
    return Sampling(
        population=problem.population,
        fresh_examples=fresh.examples,
        smallest_standard_error=smallest[0],
        smallest_fresh=smallest[1],
        smallest_fresh_standard_error=smallest[2],
        smallest_full=smallest[3],
        smallest_full_standard_error=smallest[4],
        largest_standard_error=largest[0],
        largest_fresh=largest[1],
        largest_fresh_standard_error=largest[2],
        largest_full=largest[3],
        largest_full_standard_error=largest[4],
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
    left = math.sqrt(1 - fresh.examples / others)  # Finite population: with all of them no chance is left.
    error = share * left * fresh.standard_error if left else torch.zeros_like(known)
    return (1 - share) * known + share * fresh.value, error

"""What is trained and probed, by name: a model with its training loss, mini-batches and validation."""

from __future__ import annotations

from convexlab.problems.images import ImageProblem, build_problem
from convexlab.problems.minibatches import RandomRows
from convexlab.problems.objectives import build_objective, objective_names, physics_informed
from convexlab.problems.problem import Problem
from convexlab.problems.regression import friedman
from convexlab.problems.setting import Setting, setting_of

__all__ = [
    "ImageProblem",
    "Problem",
    "RandomRows",
    "Setting",
    "build_objective",
    "build_problem",
    "friedman",
    "objective_names",
    "physics_informed",
    "setting_of",
]

"""Optimisers for phase two: torch optimisers with ``step(closure)`` that search along one direction a step."""

from __future__ import annotations

from convexlab.optim.betas import beta_names
from convexlab.optim.flat import StepReport
from convexlab.optim.lbfgs import LBFGS
from convexlab.optim.line_search import line_search_names
from convexlab.optim.nonlinear_cg import NonlinearCG
from convexlab.optim.preconditioners import DiagonalPreconditioner, adam_preconditioner

__all__ = [
    "LBFGS",
    "DiagonalPreconditioner",
    "NonlinearCG",
    "StepReport",
    "adam_preconditioner",
    "beta_names",
    "line_search_names",
]

"""Optimisers for phase two: torch optimisers with ``step(closure)`` that search along one direction a step."""

from __future__ import annotations

from convexlab.optim.betas import beta_names
from convexlab.optim.gauss_newton import GaussNewtonCG
from convexlab.optim.lbfgs import LBFGS
from convexlab.optim.levenberg_marquardt import LevenbergMarquardt
from convexlab.optim.line_search import line_search_names
from convexlab.optim.newton_cg import NewtonCG
from convexlab.optim.nonlinear_cg import NonlinearCG
from convexlab.optim.preconditioners import (
    DiagonalPreconditioner,
    LowRankPreconditioner,
    adam_preconditioner,
    hessian_diagonal_preconditioner,
    low_rank_preconditioner,
    split_operator,
)
from convexlab.optim.progressive import ProgressiveLBFGS, SampleClosure
from convexlab.optim.self_scaled_broyden import SelfScaledBroyden, self_scaled_update_names
from convexlab.optim.steps import StepReport, StepState

__all__ = [
    "LBFGS",
    "DiagonalPreconditioner",
    "GaussNewtonCG",
    "LevenbergMarquardt",
    "LowRankPreconditioner",
    "NewtonCG",
    "NonlinearCG",
    "ProgressiveLBFGS",
    "SampleClosure",
    "SelfScaledBroyden",
    "StepReport",
    "StepState",
    "adam_preconditioner",
    "beta_names",
    "hessian_diagonal_preconditioner",
    "line_search_names",
    "low_rank_preconditioner",
    "self_scaled_update_names",
    "split_operator",
]

"""Optimisers for phase two: torch optimisers with ``step(closure)`` that search along one direction a step."""

from __future__ import annotations

from convexlab.optim.betas import beta_names
from convexlab.optim.flat import StepReport
from convexlab.optim.line_search import line_search_names
from convexlab.optim.nonlinear_cg import NonlinearCG

__all__ = ["NonlinearCG", "StepReport", "beta_names", "line_search_names"]

"""What is trained and probed, by name."""

from __future__ import annotations

from convexlab.problems.objectives import build_objective
from convexlab.problems.problem import Problem, build_problem
from convexlab.problems.setting import Setting, setting_of

__all__ = ["Problem", "Setting", "build_objective", "build_problem", "setting_of"]

"""The loss of a model as a function of a flat vector, and products of its Hessian."""

from __future__ import annotations

from convexlab.objective.batched_loss import BatchedLoss, BatchLoss, Point
from convexlab.objective.least_squares import LeastSquares
from convexlab.objective.objective import PRODUCTS, Objective, Products

__all__ = ["PRODUCTS", "BatchLoss", "BatchedLoss", "LeastSquares", "Objective", "Point", "Products"]

"""What was spent, in arithmetic (the same on every machine) and in seconds (recorded; nothing is decided by them)."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Cost"]

# Arithmetic relative to one value-and-gradient, whose backward pass costs twice its forward pass (Griewank & Walther,
# "Evaluating Derivatives", 2nd ed., section 4.6). A Hessian product differentiates the gradient once more; a
# Gauss-Newton product is a forward pass with tangents (2/3) and a backward pass (2/3).
_VALUE = 1 / 3
_HESSIAN_PRODUCT = 2.0
_GAUSS_NEWTON_PRODUCT = 4 / 3


@dataclass(frozen=True)
class Cost:
    """Counts of evaluations over the whole data set; fractions are parts of the data set. Costs add and subtract."""

    values: float = 0.0
    """Forward passes."""
    gradients: float = 0.0
    """Values with gradients."""
    hessian_products: float = 0.0
    """Products of the Hessian with one vector."""
    gauss_newton_products: float = 0.0
    """Products of the generalised Gauss-Newton matrix with one vector."""
    jacobians: float = 0.0
    """Residuals with their Jacobian, each as the gradient equivalents that it is charged (`LeastSquares`)."""
    seconds: float = 0.0
    """Wall-clock time of these evaluations."""

    @property
    def gradient_equivalents(self) -> float:
        """The total in units of one value-and-gradient over the whole data set."""
        return (
            self.gradients
            + _VALUE * self.values
            + _HESSIAN_PRODUCT * self.hessian_products
            + _GAUSS_NEWTON_PRODUCT * self.gauss_newton_products
            + self.jacobians
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, field.name) - getattr(other, field.name) for field in fields(self)))

    def __mul__(self, factor: float) -> Cost:
        return Cost(*(factor * getattr(self, field.name) for field in fields(self)))

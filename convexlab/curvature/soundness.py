"""Checks of an operator before any statement on its spectrum."""

from __future__ import annotations

from convexlab.errors import MisuseError
from convexlab.linalg.operators import MatrixVectorProduct
from convexlab.objective import Objective
from convexlab.objective.products import ObjectiveOperator

__all__ = ["require_operator", "require_sound"]


def require_operator(operator: MatrixVectorProduct) -> None:
    """Raise a MisuseError unless this has what `MatrixVectorProduct` asks for."""
    missing = [name for name in ("matvec", "shape", "dtype", "device") if not hasattr(operator, name)]
    if missing:
        advice = " Pass objective.hessian()." if isinstance(operator, Objective) else ""
        raise MisuseError(
            "expected a symmetric operator with matvec, shape, dtype and device, got "
            f"{type(operator).__name__} without {', '.join(missing)}.{advice}"
        )


def require_sound(operator: MatrixVectorProduct) -> None:
    """Check the products of an objective's operator, see `ObjectiveOperator.prove`; others are taken at their word.

    Raises:
        MisuseError: this is no operator.
        FailureError: the products are not those of a function's derivatives.
    """
    require_operator(operator)
    if isinstance(operator, ObjectiveOperator):
        operator.prove()

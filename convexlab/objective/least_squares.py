"""A loss that is a sum of squares: its residuals one by one, and their Jacobian.

In general a row of the Jacobian takes a backward pass through the whole batch. Where every residual comes from rows of
the network's calls that no other residual takes, as in regression and in physics-informed networks, each row is given
its own copy of the parameters, and one backward pass makes the rows of all residuals. Whether that is so is found out,
and the result compared with a product of the other kind, before it is relied on.

Notation: r residuals (m,), J their Jacobian (m, n).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from convexlab.errors import FailureError, MisuseError
from convexlab.linalg.least_squares import dense_bytes, jacobian_by_products
from convexlab.linalg.vectors import accumulation_dtype, dot, flatten, norm
from convexlab.machine.memory import require_room
from convexlab.objective.batched_loss import BatchedLoss, Point
from convexlab.objective.cost import Cost
from convexlab.objective.differentiation import differentiate

__all__ = ["LeastSquares"]

# By how many ε the sum of squares may differ from the loss, and a product with J from the same by autograd.
_SAME_VALUE, _SAME_PRODUCT = 100, 10_000


class LeastSquares:
    """The residuals of a loss at the model's present parameters, r with rᵀr the loss, and their Jacobian.

    Args:
        loss: one whose residuals are known. They are compared with it here, once.

    Raises:
        MisuseError: they are not known, their squares do not sum to the loss, or J and the normal equations do not fit
            into the memory that is free.
    """

    def __init__(self, loss: BatchedLoss) -> None:
        """Compare residuals and loss, and find out how a Jacobian is made: six gradients at most, charged as such."""
        self._loss = loss
        self._parameters = loss.parameters_by_name
        point = loss.point()
        self.count = self._checked_count(point)
        """m."""
        size = loss.size
        what = f"the Jacobian of {self.count:,} residuals in {size:,} parameters, with its normal equations,"
        require_room(dense_bytes(self.count, size), loss.device, what)
        self._plans = self._planned(point)
        self._unit = self._unit_cost()

    @property
    def row_by_row(self) -> bool:
        """Whether a backward pass makes the rows of all residuals, not one."""
        return self._plans is not None

    @property
    def price(self) -> float:
        """Gradient equivalents of r with J."""
        return self._unit.gradient_equivalents

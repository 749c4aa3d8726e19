"""A loss that is a sum of squares: its residuals one by one, and their Jacobian.

In general a row of the Jacobian takes a backward pass through the batch. In regression and in physics-informed
networks, every residual comes from rows of the network's calls that no other residual takes. Then each of these rows is
given its own copy of the parameters, and one backward pass makes all rows of the Jacobian.

Notation: r residuals (m,), J their Jacobian (m, n).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import FailureError, MisuseError
from convexlab.linalg.least_squares import dense_bytes, dense_words, jacobian_by_products
from convexlab.linalg.vectors import accumulation_dtype, dot
from convexlab.machine.memory import LiveTensors, require_room
from convexlab.objective.batched_loss import BatchedLoss, Point
from convexlab.objective.cost import Cost
from convexlab.objective.row_wise import RowWise, row_wise

__all__ = ["LeastSquares"]

# By how many ε the sum of squares may differ from the loss.
_SAME_VALUE = 100
# Gradient equivalents: residuals alone, and a product with the transposed Jacobian, a gradient without its value.
_VALUE, _PRODUCT = 1 / 3, 2 / 3
# Row by row a Jacobian is charged this many times the bytes of tensors that it makes, in those of a gradient. In
# processor seconds it took 0.6 to 1.6 times these (1,981 to 7,851 parameters, 1,000 points, float32 and float64).
_MARGIN = 2.0


class LeastSquares:
    """The residuals r of a loss, rᵀr, at the model's present parameters, and their Jacobian.

    Making this compares the residuals with the loss once, and chooses how Jacobians are made. A Jacobian by products
    costs 1/3 + 2m/3 gradient equivalents. Row by row it is bound by memory, not by arithmetic. It is then charged twice
    the ratio of the bytes of the tensors that it makes to those that a gradient makes. So is `setup`.

    Args:
        loss: one that has declared its residuals.

    Raises:
        MisuseError: the loss has declared no residuals, their squares do not sum to it, or several ranks share it. Also
            where J and the normal equations do not fit into free memory.
    """

    def __init__(self, loss: BatchedLoss) -> None:
        """See the class."""
        loss.require_residuals()
        if loss.ranks.shared:
            raise MisuseError(
                "residuals are those of one process: expected an objective without a group of ranks. Leave out group=, "
                "or choose another second phase."
            )
        self._loss = loss
        begin, before, point = time.perf_counter(), loss.cost, loss.point()
        with LiveTensors() as whole:
            with LiveTensors() as of_gradient:
                value = float(loss.value_and_gradient_at(point)[0])
            by_products = self._check(point, value)
            self._row_wise = self._found(point)
        itself = 8 * self.count * loss.size
        counted = _MARGIN * (itself + sum(plan.made for plan in self._row_wise or ())) / of_gradient.made
        if counted > by_products:
            self._row_wise = None
        self.price = counted if self._row_wise else by_products
        """Gradient equivalents of r with J."""
        self.setup = max(1.0, _MARGIN * whole.made / of_gradient.made)
        """Gradient equivalents of making this."""
        rest = self.setup - (loss.cost - before).gradient_equivalents
        loss.spend(Cost(jacobians=max(0.0, rest), seconds=time.perf_counter() - begin))

    @property
    def row_by_row(self) -> bool:
        """Whether one backward pass makes the rows of all residuals."""
        return self._row_wise is not None

    def residuals(self) -> Tensor:
        """Return r (m,), in the dtype of sums."""
        begin = time.perf_counter()
        residuals = self._scaled(self._residuals_of_parts(self._loss.point(requires_grad=False)))
        self._loss.spend(Cost(values=1, seconds=time.perf_counter() - begin))
        return residuals

    def jacobian(self) -> tuple[Tensor, Tensor]:
        """Return r (m,) and J (m, n), in the dtype of sums and the order of the flat parameters."""
        begin = time.perf_counter()
        result = self._jacobian(self._loss.point())
        self._loss.spend(Cost(jacobians=self.price, seconds=time.perf_counter() - begin))
        return result

    def closure(self, *, jacobian: Sequence[Tensor] | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Evaluate as a closure of `LevenbergMarquardt`.

        Args:
            jacobian: the optimiser's parameters; None asks for the residuals alone.

        Returns:
            r (m,), and with ``jacobian`` J in these parameters, zero in one that the loss is no function of.
        """
        if jacobian is None:
            return self.residuals()
        residuals, whole = self.jacobian()
        ours = self._loss.selected_parameters
        if [id(parameter) for parameter in ours] == [id(parameter) for parameter in jacobian]:
            return residuals, whole
        columns = whole.split([parameter.numel() for parameter in ours], dim=1)
        blocks = {id(parameter): block for parameter, block in zip(ours, columns, strict=True)}
        zero = whole.new_zeros(1, 1)
        return residuals, torch.cat([blocks.get(id(p), zero.expand(self.count, p.numel())) for p in jacobian], dim=1)

    def _check(self, point: Point, loss: float) -> float:
        """Compare the residuals with the loss, and their size with memory; return the price of J by products."""
        parts = self._residuals_of_parts(point)
        sizes = [(len(residuals), weight) for residuals, weight in parts]
        self.count = sum(size for size, _ in sizes)
        """m."""
        self._weight = sum(weight for _, weight in sizes)
        residuals = self._scaled(parts)
        squares = dot(residuals, residuals).item()
        allowed = _SAME_VALUE * torch.finfo(self._loss.dtype).eps * max(abs(squares), abs(loss))
        if math.isfinite(loss) and not abs(squares - loss) <= allowed:
            raise MisuseError(
                f"the squares of the residuals sum to {squares:.8g}, expected the loss, {loss:.8g}. Scale them: for a "
                "mean of N squares divide by the square root of N; leave no term of the loss out."
            )
        size = self._loss.size
        require_room(dense_bytes(self.count, size), self._loss.device, dense_words(self.count, size))
        return sum((_VALUE + _PRODUCT * size) * weight / self._weight for size, weight in sizes)

    def _residuals_of_parts(self, point: Point) -> list[tuple[Tensor, float]]:
        """Return the residuals of each micro-batch, in the dtype of sums, with its weight in the mean."""
        loss, wide = self._loss, accumulation_dtype(self._loss.device)
        with loss.evaluating():
            return [(_joined(loss.batch_residuals(point, batch)).to(wide), weight) for batch, weight in loss.parts()]

    def _scaled(self, parts: Sequence[tuple[Tensor, float]]) -> Tensor:
        """Return r (m,), and scale the parts for it."""
        return torch.cat([residuals.mul_(math.sqrt(weight / self._weight)) for residuals, weight in parts])

    def _jacobian(self, point: Point) -> tuple[Tensor, Tensor]:
        loss, wide = self._loss, accumulation_dtype(self._loss.device)
        jacobian = torch.empty(self.count, loss.size, dtype=wide, device=loss.device)
        residuals, start = [], 0
        with loss.evaluating():
            for number, (batch, weight) in enumerate(loss.parts()):
                parts = self._write(number, point, batch, jacobian[start:])
                scale = math.sqrt(weight / self._weight)
                residuals.append(_joined(parts).to(wide).mul_(scale))
                rows = slice(start, start + len(residuals[-1]))
                if scale != 1.0:
                    jacobian[rows].mul_(scale)
                start = rows.stop
        return torch.cat(residuals), jacobian

    def _write(self, number: int, point: Point, batch: Any, out: Tensor) -> list[Tensor]:
        """Write the Jacobian of a batch to the top of ``out``, and return the parts of its residuals."""
        if self._row_wise is None:
            parts = self._loss.batch_residuals(point, batch)
            joined = torch.cat([part.reshape(-1) for part in parts])
            jacobian_by_products(joined, point.leaves, out[: len(joined)])
            return parts
        written = self._row_wise[number].write(self._loss, point, batch, out)
        if written is None:
            found = row_wise(self._loss, point, batch)
            written = None if found is None else found.write(self._loss, point, batch, out)
            if found is None or written is None:
                raise FailureError(
                    "the residuals depend on other rows of the network's calls than before, so that their Jacobian "
                    "cannot be made row by row. Choose another second phase."
                )
            self._row_wise[number] = found
        return written

    def _found(self, point: Point) -> list[RowWise] | None:
        with self._loss.evaluating():
            plans = [row_wise(self._loss, point, batch) for batch, _ in self._loss.parts()]
        known = [plan for plan in plans if plan is not None]
        return known if len(known) == len(plans) else None


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Return all residuals (m,), without their graph."""
    return torch.cat([part.detach().reshape(-1) for part in parts])

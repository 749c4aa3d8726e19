"""The Jacobian of residuals that come from rows of a network's calls, no row from two of them: all in one pass.

Every row of every call of the network is given its own copy of the parameters (by `torch.func.vmap`). The derivative of
the sum of all residuals in a copy is then the derivative of the one residual that takes this row. Derivatives of
weighted sums identify this residual, if there is only one. The resulting Jacobian is compared with a product by
autograd.

Notation: K residuals in a column, J their Jacobian (K, n).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from convexlab.linalg.vectors import accumulation_dtype, flatten, norm
from convexlab.machine.memory import LiveTensors
from convexlab.objective.batched_loss import BatchedLoss, Point
from convexlab.objective.differentiation import differentiate

__all__ = ["RowWise", "row_wise"]

# Weights of two residuals differ by 1/B in one of two sums; less than this share of it is rounding.
_APART = 0.1
# Of the parameters one in so many says which rows a residual comes from.
_FEW = 8
# By how many ε a product with J may differ from the same by autograd, as two gradients of one function may.
_SAME_PRODUCT = 10_000


class _Copies:
    """Stands in for a model: each row of a call has its own copy of the parameters."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> None:
        self._model = model
        self._parameters = parameters
        self._rest = dict(rest)
        self.calls: list[list[Tensor]] = []
        """The copies of each call, (rows, *shape) a parameter."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        rows = len(inputs[0])
        copies = {
            name: parameter.detach().expand(rows, *parameter.shape).requires_grad_()
            for name, parameter in self._parameters.items()
        }
        self.calls.append(list(copies.values()))

        def of_row(copy: dict[str, Tensor], *row: Tensor) -> Tensor:
            output: Tensor = functional_call(self._model, copy | self._rest, tuple(item[None] for item in row))
            return output.squeeze(0)

        result: Tensor = vmap(of_row)(copies, *inputs)
        return result


@dataclass(frozen=True)
class _Use:
    """Which rows of a call the residuals of a column come from."""

    call: int
    rows: Tensor
    """(k,), of the call."""
    places: Tensor
    """(k,): the residual of each."""
    others: Tensor
    """The call's other rows, which no residual of the column takes."""
    span: slice | None
    """The rows, where they are consecutive and those of all residuals in their order."""

    def add(self, derivatives: Sequence[Tensor | None], copies: Sequence[Tensor], target: Tensor) -> bool:
        """Add to J (K, n) the derivatives (rows, *shape) in the copies; return whether the other rows have none."""
        start, clean = 0, True
        for derivative, copy in zip(derivatives, copies, strict=True):
            size = copy[0].numel()
            if derivative is not None:
                flat, columns = derivative.reshape(len(copy), size), target[:, start : start + size]
                if self.span is not None:
                    columns.add_(flat[self.span])
                else:
                    columns.index_add_(0, self.places, flat[self.rows].to(target.dtype))
                clean = clean and not (len(self.others) and bool(flat[self.others].any()))
            start += size
        return clean


@dataclass(frozen=True)
class RowWise:
    """How the rows of calls belong to the residuals of a batch."""

    columns: tuple[tuple[_Use, ...], ...]
    """How rows are used, for each column of each part."""
    made: int = 0
    """Bytes of the tensors that are made on the way to a Jacobian."""

    def write(self, loss: BatchedLoss, point: Point, batch: Any, out: Tensor) -> list[Tensor] | None:
        """Write J of a batch into ``out`` (m, n), and return the parts of its residuals.

        None where a row that had no residual has one now: then `row_wise` has to identify the rows again.
        """
        network, parts = _evaluated(loss, point, batch)
        out.zero_()
        for (column, target), uses in zip(_columns(parts, out), self.columns, strict=True):
            for use in uses:
                copies = network.calls[use.call]
                if not use.add(_derivatives(column, copies, torch.ones_like(column)), copies, target):
                    return None
        return parts


def row_wise(loss: BatchedLoss, point: Point, batch: Any) -> RowWise | None:
    """Return how rows of calls belong to the residuals of a batch, at a point; None where a row belongs to two.

    None also where the network cannot be called row by row, or where the result is not the Jacobian. It costs a
    Jacobian, and some backward passes through the network's smallest parameters, mostly its biases.
    """
    try:
        return _right(_found(loss, point, batch), loss, point, batch)
    except Exception:  # noqa: BLE001 - whatever a network or its residuals raise; products remain
        return None


def _evaluated(loss: BatchedLoss, point: Point, batch: Any) -> tuple[_Copies, list[Tensor]]:
    network = _Copies(loss.model, *loss.state_of(point))
    return network, loss.residuals_with(network, batch)


def _columns(parts: Sequence[Tensor], out: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return the columns (K,) of all parts, seen as matrices, each with the rows (K, n) of ``out`` that are its."""
    pairs, start = [], 0
    for part in parts:
        matrix = part.reshape(len(part), -1) if part.ndim else part.reshape(1, 1)
        rows = out[start : start + matrix.numel()]
        pairs += [(column, rows[place :: matrix.shape[1]]) for place, column in enumerate(matrix.unbind(1))]
        start += matrix.numel()
    return pairs


def _derivatives(column: Tensor, copies: Sequence[Tensor], weights: Tensor) -> list[Tensor | None]:
    """Return the derivatives of a weighted sum in the copies of a call, (rows, *shape) a parameter."""
    if not column.requires_grad:
        return [None] * len(copies)
    return list(torch.autograd.grad(column, copies, weights, retain_graph=True, allow_unused=True))


def _found(loss: BatchedLoss, point: Point, batch: Any) -> RowWise | None:
    network, parts = _evaluated(loss, point, batch)
    nothing = parts[0].new_empty(sum(part.numel() for part in parts), 0)
    columns, few = [], _smallest(point.leaves)
    for column, _ in _columns(parts, nothing):
        uses = []
        for number, call in enumerate(network.calls):
            copies = [call[place] for place in few]
            plain = _derivatives(column, copies, torch.ones_like(column))
            if all(derivative is None for derivative in plain):
                continue
            use = _use(column, number, copies, plain)
            if use is None:
                return None
            uses.append(use)
        columns.append(tuple(uses))
    return RowWise(tuple(columns))


def _smallest(leaves: Sequence[Tensor]) -> list[int]:
    """Return the places of the smallest parameters, of one in `_FEW` numbers together, or of the smallest alone."""
    places, size = sorted(range(len(leaves)), key=lambda place: leaves[place].numel()), 0
    most = sum(leaf.numel() for leaf in leaves) // _FEW
    for count, place in enumerate(places):
        size += leaves[place].numel()
        if size > most:
            return places[: max(1, count)]
    return places


def _use(column: Tensor, call: int, copies: Sequence[Tensor], plain: Sequence[Tensor | None]) -> _Use | None:
    """Return which residual of a column each row of a call belongs to; None where one belongs to two.

    Residual k = k₁B + k₀ is weighted by 1 + k₀/B in one sum, by 1 + k₁/B in another. A row that it alone takes has
    derivatives of just these multiples of that of the plain sum.
    """
    count = len(column)
    base = max(1, math.ceil(math.sqrt(count)))
    index = torch.arange(count, device=column.device)
    wide = accumulation_dtype(column.device)
    squares = _row_products(plain, plain, wide)
    used = squares > 0
    scale, places = squares[used], torch.zeros_like(index).new_zeros(int(used.sum()))
    for digit, factor in ((index % base, 1), (index // base, base)):
        weighted = _derivatives(column, copies, 1.0 + digit.to(column.dtype) / base)
        mixed, own = (_row_products(weighted, other, wide)[used] for other in (plain, weighted))
        multiple = mixed / scale
        value = (multiple - 1.0) * base
        nearest = value.round()
        aside = own - multiple * mixed  # Of the square, what is not that multiple.
        if bool(((value - nearest).abs() > _APART).any()) or bool((aside > (_APART / base) ** 2 * scale).any()):
            return None
        places += nearest.long() * factor
    if bool(((places < 0) | (places >= count)).any()):
        return None
    rows = used.nonzero()[:, 0]
    return _Use(call, rows, places, (~used).nonzero()[:, 0], _span(rows, places, index))


def _row_products(a: Sequence[Tensor | None], b: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
    """Return the inner product (rows,) of two sets of derivatives, row by row."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return torch.stack([(x.to(dtype) * y.to(dtype)).reshape(len(x), -1).sum(dim=1) for x, y in pairs]).sum(dim=0)


def _span(rows: Tensor, places: Tensor, index: Tensor) -> slice | None:
    if len(rows) != len(index) or not torch.equal(places, index) or not torch.equal(rows - rows[0], index):
        return None
    first = int(rows[0])
    return slice(first, first + len(index))


def _right(found: RowWise | None, loss: BatchedLoss, point: Point, batch: Any) -> RowWise | None:
    """Return it if a product with its J is that by autograd."""
    if found is None:
        return None
    residuals = torch.cat([part.reshape(-1) for part in loss.batch_residuals(point, batch)])
    u = torch.randn(len(residuals), dtype=residuals.dtype, device=residuals.device)
    expected = flatten(differentiate([residuals], point.leaves, [u]))
    jacobian = u.new_empty(len(u), expected.numel())
    with LiveTensors() as live:
        if found.write(loss, point, batch, jacobian) is None:
            return None
    difference, length = norm(jacobian.T @ u - expected), norm(expected)
    right = bool(difference <= _SAME_PRODUCT * torch.finfo(u.dtype).eps * length)
    return replace(found, made=live.made) if right else None

"""Products of the Hessian and of the Gauss-Newton matrix of an objective with vectors.

Both are differentiated in reverse twice. The objective does not move between the products of one Krylov run, so the
gradient graph of a micro-batch is built once and kept, as many of them as the memory budget holds; the rest are built
anew for every product.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from convexlab.cost import Cost
from convexlab.operators import SymmetricOperator
from convexlab.parameters import accumulation_dtype, flatten, unflatten

if TYPE_CHECKING:
    from convexlab.objective import Objective

__all__ = ["GaussNewtonOperator", "HessianOperator", "Parts", "saved_bytes"]

Parts = Iterator[tuple[Any, float]]
"""(micro-batch, weight) pairs."""


def saved_bytes(build: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Return the bytes of distinct storage that the graph made by ``build`` holds for a backward pass.

    The graph is thrown away: one built under these hooks would call them again at every product.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in without}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        build()
    return sum(sizes.values())


class _ObjectiveOperator(SymmetricOperator):
    """A weighted mean over micro-batches of matrices that are known by products."""

    _unit: Cost

    def __init__(self, objective: Objective, *, keep_graphs: bool = True) -> None:
        """Take the objective at its model's present parameters."""
        super().__init__(objective.size, dtype=objective.dtype, device=objective.device)
        self._objective = objective
        self._leaves = [leaf.detach().clone().requires_grad_() for leaf in objective.leaves()]
        self._room: int | None = None if keep_graphs else 0
        self._kept: list[Any] = []
        self._complete = False

    def _linearise(self, batch: Any) -> Any:
        raise NotImplementedError

    def _product(self, linearised: Any, parts: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError

    def _multiply(self, v: Tensor) -> Tensor:
        start = time.perf_counter()
        columns = [unflatten(column.contiguous(), self._leaves) for column in v.unbind(dim=1)]
        result = torch.zeros((len(columns), self.shape[0]), dtype=accumulation_dtype(v.device), device=v.device)
        weights = 0.0
        with self._objective.evaluating(), sdpa_kernel(SDPBackend.MATH):
            for linearised, weight in self._linearised_parts():
                for row, column in zip(result, columns, strict=True):
                    row.add_(flatten(self._product(linearised, column)), alpha=weight)
                weights += weight
        self._objective.spend(self._unit * len(columns) + Cost(seconds=time.perf_counter() - start))
        return (result / weights).to(self.dtype).T

    def _linearised_parts(self) -> Iterator[tuple[Any, float]]:
        yield from self._kept
        if self._complete:
            return
        known, number = len(self._kept), 0
        for number, (batch, weight) in enumerate(self._objective.parts(), start=1):
            if number <= known:
                continue
            if self._room is None:
                self._room = self._count_room(batch)
            linearised = self._linearise(batch)
            if len(self._kept) < self._room:
                self._kept.append((linearised, weight))
            yield linearised, weight
        self._complete = len(self._kept) == number

    def _count_room(self, batch: Any) -> int:
        """Return how many graphs like that of this first micro-batch, the largest, the budget holds."""
        needed = saved_bytes(lambda: self._linearise(batch), without=self._leaves)
        return _memory_budget(self._objective) // max(1, needed)


class HessianOperator(_ObjectiveOperator):
    """The Hessian of an objective at one point, by reverse mode over reverse mode (Pearlmutter 1994)."""

    _unit = Cost(hessian_products=1)

    def _linearise(self, batch: Any) -> list[Tensor]:
        loss = self._objective.batch_loss(self._leaves, batch)
        return list(
            torch.autograd.grad(loss, self._leaves, create_graph=True, allow_unused=True, materialize_grads=True)
        )

    def _product(self, linearised: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
        return _differentiate(linearised, self._leaves, parts)


class GaussNewtonOperator(_ObjectiveOperator):
    """The generalised Gauss-Newton matrix JᵀH_LJ (Schraudolph 2002, doi 10.1162/08997660260028683).

    J is the Jacobian of the model's output, H_L the Hessian of the criterion in the output. J v is the derivative of
    Jᵀu in u (u is a dummy), so that only reverse mode is needed and the graph can be kept.
    """

    _unit = Cost(gauss_newton_products=1)

    def _linearise(self, batch: Any) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
        output = self._objective.batch_output(self._leaves, batch)
        dummy = torch.zeros_like(output, requires_grad=True)
        transposed = torch.autograd.grad(
            output, self._leaves, dummy, create_graph=True, allow_unused=True, materialize_grads=True
        )
        point = output.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self._objective.criterion(point, batch), point, create_graph=True)
        return output, dummy, list(transposed), point, slope

    def _product(self, linearised: Any, parts: list[Tensor]) -> list[Tensor]:
        output, dummy, transposed, point, slope = linearised
        (jacobian_product,) = _differentiate(transposed, [dummy], parts)
        (curved,) = _differentiate([slope], [point], [jacobian_product])
        return _differentiate([output], self._leaves, [curved])


def _differentiate(outputs: list[Tensor], inputs: list[Tensor], directions: list[Tensor]) -> list[Tensor]:
    """Return the transposed Jacobian of ``outputs`` in ``inputs`` times ``directions``, keeping the graph."""
    pairs = [(output, part) for output, part in zip(outputs, directions, strict=True) if output.requires_grad]
    if not pairs:
        return [torch.zeros_like(leaf) for leaf in inputs]
    return list(
        torch.autograd.grad(
            [output for output, _ in pairs],
            inputs,
            [part for _, part in pairs],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )


def _memory_budget(objective: Objective) -> int:
    """Return the bytes that kept graphs may take: the given budget, or half of what is free now."""
    if objective.memory_budget is not None:
        return objective.memory_budget
    if objective.device.type == "cuda":
        return int(torch.cuda.mem_get_info(objective.device)[0]) // 2
    if objective.device.type == "cpu" and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 0

"""The memory that a Krylov run will need, before its first step, and how to make the run where there is less.

The forecast is in bytes of tensors, as an accelerator's allocator counts them. On the CPU the resident set of the
process rises by up to a fifth more: the C library does not return freed memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from convexlab.errors import FailureError, MisuseError
from convexlab.linalg.operators import MatrixVectorProduct
from convexlab.linalg.vectors import accumulation_dtype
from convexlab.machine.memory import available_memory
from convexlab.machine.ranks import ranks_of
from convexlab.objective.differences import GradientDifferences
from convexlab.objective.footprint import Footprint
from convexlab.objective.products import ObjectiveOperator
from convexlab.wording.numbers import byte_size

__all__ = ["MemoryForecast", "Plan", "forecast_memory", "plan_run"]

_HOST = torch.device("cpu")
# Float64 vectors beside the basis while the ends of a spectrum are multiplied again: both ends, both products.
_VECTORS = 4
# A product never takes more than this many times its graph and the vectors. Where that much fits, nothing is measured.
_AMPLE = 4


@dataclass(frozen=True)
class MemoryForecast:
    """The most bytes of tensors that a Krylov run will hold at one time."""

    basis: int
    """The basis of the Krylov space, in float64; of several ranks the part of this one."""
    graphs: int
    """The gradient graphs kept between products."""
    work: int
    """A product, and vectors."""
    available: int | None
    """Bytes that are free on the operator's device now; None where that is not known."""

    @property
    def total(self) -> int:
        """The sum of the first three."""
        return self.basis + self.graphs + self.work

    def summary(self) -> str:
        """Return one sentence."""
        basis, graphs, work = map(byte_size, (self.basis, self.graphs, self.work))
        parts = f"{basis} basis, {graphs} gradient graphs, {work} for a product"
        known = "" if self.available is None else f"; {byte_size(self.available)} are available"
        return f"The run needs {byte_size(self.total)} of memory ({parts}){known}."


@dataclass(frozen=True)
class Plan:
    """How a Krylov run keeps its basis."""

    dtype: torch.dtype
    device: torch.device
    summary: str = ""
    """The changes that save memory, in words; empty if there are none."""


def forecast_memory(operator: MatrixVectorProduct, steps: int) -> MemoryForecast:
    """Return the memory that a Krylov run of ``steps`` steps and the ends of its spectrum will need.

    The operator of an objective builds the gradient graph of its first micro-batch, and makes products with that alone.
    The sizes of the other graphs follow from their examples. Of any other operator only the vectors are known.

    Args:
        operator: the operator of the run, before its first product.
        steps: the length of the run. A run that ends earlier needs less.

    Raises:
        MisuseError: fewer than one step.
    """
    if steps < 1:
        raise MisuseError(f"expected at least one step, got {steps!r}.")
    footprint = _footprint(operator)
    return MemoryForecast(
        basis=_basis_bytes(operator, steps, accumulation_dtype(operator.device)),
        graphs=footprint.graphs,
        work=footprint.product + _vector_bytes(operator),
        available=available_memory(operator.device),
    )


def plan_run(operator: MatrixVectorProduct, steps: int) -> Plan:
    """Return how a Krylov run of ``steps`` steps fits into memory; an objective's operator may keep fewer graphs then.

    What is tried, in this order: fewer graphs, the basis on the host, the basis in float32 if the operator is. Products
    are measured, which costs some, only where memory is short.

    Raises:
        FailureError: it does not fit in any of these ways.
    """
    usual = Plan(accumulation_dtype(operator.device), operator.device)
    ranks, available = ranks_of(operator), available_memory(operator.device)
    if available is None or steps < 1:
        return usual
    available = int(ranks.least(available))
    try:
        if isinstance(operator, ObjectiveOperator) and not ranks.any(not _surely_fits(operator, steps, available)):
            return usual
        footprint = ranks.alike(lambda: _footprint(operator))
    except torch.OutOfMemoryError as error:
        raise FailureError(
            "a product with the operator does not fit into memory, even with one micro-batch alone. Pass a smaller "
            "micro_batch or fewer parameters by `params`."
        ) from error
    least = footprint.product + _vector_bytes(operator)
    for plan in _plans(operator):
        basis = _basis_bytes(operator, steps, plan.dtype)
        spare = available - least - (basis if plan.device == operator.device else 0)
        if not ranks.any(spare < 0 or not _host_has(basis, plan, operator)):
            # Beside the graphs there is room for a product in double precision, which recomputes a curvature.
            return _keep_graphs_that_fit(operator, footprint, plan, max(0, spare - 2 * least))
    raise FailureError(_refusal(operator, steps, least, available))


def _plans(operator: MatrixVectorProduct) -> Iterator[Plan]:
    full = accumulation_dtype(operator.device)
    for dtype in (full, torch.float32) if operator.dtype.itemsize < full.itemsize else (full,):
        for device in (operator.device,) if operator.device.type == "cpu" else (operator.device, _HOST):
            words = [" on the host"] if device != operator.device else []
            words += [f" in {dtype}".replace("torch.", "")] if dtype != full else []
            yield Plan(dtype, device, f"Krylov basis{''.join(words)}" if words else "")


def _keep_graphs_that_fit(operator: MatrixVectorProduct, footprint: Footprint, plan: Plan, room: int) -> Plan:
    """Let the operator keep no more graphs than there is room for, and return the plan, which says so."""
    if not isinstance(operator, ObjectiveOperator) or operator.graphs_to_come() <= room:
        return plan
    operator.keep_at_most(room)
    if footprint.graphs - footprint.kept <= room:  # All of them fit.
        return plan
    return replace(plan, summary=", ".join(filter(None, [plan.summary, "fewer gradient graphs kept"])))


def _host_has(basis: int, plan: Plan, operator: MatrixVectorProduct) -> bool:
    if plan.device == operator.device:
        return True
    available = available_memory(plan.device)
    return available is None or basis <= available


def _refusal(operator: MatrixVectorProduct, steps: int, least: int, available: int) -> str:
    basis = min(_basis_bytes(operator, steps, plan.dtype) for plan in _plans(operator))
    narrower = ", evaluate in float32" if operator.dtype == torch.float64 else ""
    fitting = max(_steps_that_fit(operator, plan, available - least) for plan in _plans(operator))
    fewer = f"At most {fitting} steps fit now: set max_steps (--max-steps) to that or less. " if fitting > 0 else ""
    return (
        f"a Krylov run of up to {steps} steps does not fit into memory. Its basis takes {byte_size(basis)} at least, "
        f"and products {byte_size(least)}, but {byte_size(available)} are available. "
        f"{fewer}{'Or take' if fewer else 'Take'} a larger tolerance or floor{narrower}, or select fewer parameters by "
        "`params`."
    )


def _steps_that_fit(operator: MatrixVectorProduct, plan: Plan, beside_products: int) -> int:
    """Return the length of the longest run whose basis fits, with a tenth to spare: what is free changes."""
    room = beside_products if plan.device == operator.device else available_memory(plan.device) or 0
    return int(0.9 * room) // _basis_bytes(operator, 0, plan.dtype) - 1


def _surely_fits(operator: ObjectiveOperator, steps: int, available: int) -> bool:
    basis = _basis_bytes(operator, steps, accumulation_dtype(operator.device))
    if basis > available:
        return False
    ample = _AMPLE * (operator.graph_bytes() + _vector_bytes(operator))
    return basis + operator.graphs_to_come() + ample <= available


def _footprint(operator: MatrixVectorProduct) -> Footprint:
    if isinstance(operator, ObjectiveOperator | GradientDifferences):
        return operator.footprint()
    return Footprint(graphs=0, kept=0, product=operator.shape[0] * operator.dtype.itemsize)


def _basis_bytes(operator: MatrixVectorProduct, steps: int, dtype: torch.dtype) -> int:
    size = operator.shape[0]
    return (min(steps, size) + 1) * -(-size // ranks_of(operator).size) * dtype.itemsize


def _vector_bytes(operator: MatrixVectorProduct) -> int:
    full = accumulation_dtype(operator.device)
    return operator.shape[0] * (_VECTORS * full.itemsize + operator.dtype.itemsize)

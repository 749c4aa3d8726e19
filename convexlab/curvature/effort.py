"""What a measurement of curvature costs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch

from convexlab.machine.memory import PeakMemory, release_freed_memory
from convexlab.objective.cost import Cost

__all__ = ["Effort", "Meter"]


@dataclass(frozen=True)
class Effort:
    """The cost of a result. Two are equal if their counts are equal; seconds and memory differ from run to run."""

    products: int
    """Products of the matrix with a vector, exact or not."""
    gradient_equivalents: float | None
    """Gradient equivalents over the objective's data; None where the operator is not an objective's."""
    seconds: float = field(compare=False)
    """Wall-clock time."""
    peak_memory: int | None = field(compare=False)
    """Bytes by which the memory in use rose at most; None where that is not known.

    On an accelerator, what torch allocated; on the CPU, the resident set, with some of what was freed.
    """
    plan: str = ""
    """Measures to save memory, such as "Krylov basis in float32", and the kind of products if not exact."""


class _Measured(Protocol):
    @property
    def device(self) -> torch.device: ...


class Meter:
    """A context manager that measures what is done within its block with an operator, or with an objective."""

    def __init__(self, operator: _Measured) -> None:
        """Start with the block."""
        self._operator = operator
        self._memory = PeakMemory(operator.device)

    def __enter__(self) -> Self:
        if self._operator.device.type == "cpu":
            release_freed_memory()  # If the block used it again, the resident set would not rise.
        self._memory.__enter__()
        self._cost, self._begin = self._spent(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._memory.__exit__(*error)

    def effort(self, products: int, plan: str = "") -> Effort:
        """Return what has been spent so far, on this many products."""
        before, now = self._cost, self._spent()
        return Effort(
            products=products,
            gradient_equivalents=None if before is None or now is None else (now - before).gradient_equivalents,
            seconds=time.perf_counter() - self._begin,
            peak_memory=self._memory.rise(),
            plan=plan,
        )

    def _spent(self) -> Cost | None:
        cost = getattr(self._operator, "cost", None)
        return cost if isinstance(cost, Cost) else None

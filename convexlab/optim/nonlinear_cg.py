"""Nonlinear conjugate gradients, preconditioned or not, as a torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.vectors import dot
from convexlab.optim.betas import DIVIDE_BY_CURVATURE, Products, beta_formula
from convexlab.optim.evaluation import Evaluation
from convexlab.optim.flat import FlatOptimizer
from convexlab.optim.line_search import LineSearch
from convexlab.optim.memory import Memory
from convexlab.optim.preconditioners import Preconditioner, precondition
from convexlab.optim.steps import Direction

__all__ = ["ConjugateMemory", "NonlinearCG"]

_RESTART_FACTOR = 6  # Restart after this many times n steps (CG_DESCENT's restart_fac).


@dataclass
class ConjugateMemory(Memory):
    """What a conjugate direction is made from, all of where the last step began."""

    gradient: Tensor | None = None
    """g, (n,); None before the first step."""
    g_z: float = 0.0
    """gᵀPg."""
    d_d: float = 0.0
    """dᵀP⁻¹d."""
    age: int = 0
    """Steps since the last restart, that step included."""

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """See `Memory`."""
        return super().shapes(size) | {"gradient": (size,)}


class NonlinearCG(FlatOptimizer):
    """Nonlinear conjugate gradients: d₊ = -Pg₊ + βd, then a line search.

    It restarts from d = -Pg where d would not descend and after 6n steps. It restarts where β is 0 or undefined (dᵀy ≤
    0 in a formula that divides by it). It also restarts by Powell's test (1977, Math. Programming 12): successive
    gradients far from orthogonal, |g₊ᵀPg| ≥ ``powell`` g₊ᵀPg₊. Where the search along d fails, it tries -Pg within the
    same step. Where that fails too, the weights stay, `report` says why, and the next step starts afresh.

    Closures, parameters, limits and reuse: see `FlatOptimizer`. The paper's second phase is
    ``NonlinearCG(params, beta="polak-ribiere+", line_search="golden-section")``.

    Args:
        params: parameters, or one group of them.
        beta: a name from `beta_names`.
        line_search: a name from `line_search_names`, or a `LineSearch`.
        preconditioner: P ≈ H⁻¹, symmetric positive definite and fixed between calls of `restart`. It takes a flat
            gradient (n,), which it leaves as it is, and returns a flat vector (n,). Like the closure, it is not part of
            `state_dict`.
        max_evaluations: limit on the closure calls of a step's searches.
        powell: the ratio at which Powell's test restarts; None switches it off. Powell has 0.2, which on networks
            restarts so often that twice the loss remains at equal cost. 0.8 restarts only Fletcher-Reeves and Dai-Yuan
            when they stall.
        reuse: whether the closure is the same function at every step.

    Raises:
        MisuseError: parameters or settings other than these.
    """

    def __init__(
        self,
        params: Any,
        *,
        beta: str = "polak-ribiere+",
        line_search: str | LineSearch = "hager-zhang",
        preconditioner: Preconditioner | None = None,
        max_evaluations: int | None = None,
        powell: float | None = 0.8,
        reuse: bool = True,
    ) -> None:
        if powell is not None and not powell > 0.0:
            raise MisuseError(f"powell must be None or positive, got {powell!r}. Smaller restarts more often.")
        beta_formula(beta)  # Refuses an unknown name now, not at the second step.
        self.beta = beta
        self.powell = powell
        super().__init__(
            params,
            line_search=line_search,
            preconditioner=preconditioner,
            max_evaluations=max_evaluations,
            reuse=reuse,
        )

    @property
    def _memory(self) -> ConjugateMemory:
        return self._remembered(ConjugateMemory)

    def _directions(self, start: Evaluation) -> Iterator[Direction]:
        gradient, memory = start.gradient, self._memory
        z = precondition(self.preconditioner, gradient)
        d, old = memory.direction, memory.gradient
        if d is None or old is None:
            products, g_z = None, dot(gradient, z).item()
        else:
            products = self._products(gradient, z, d, gradient - old)
            g_z = products.new_g_z
        if not 0.0 < g_z < math.inf:
            reason = f"the preconditioner is not positive definite here (gᵀPg = {g_z:.3g}), so it was left out"
            forgetting = replace(memory, gradient=gradient, direction=None)
            yield Direction(-gradient, -start.squared_norm, restarted=reason, memory=forgetting)
            return
        if d is None or products is None:
            yield self._steepest(gradient, z, g_z, memory.restarted)
            return
        previous = memory.step_size, memory.slope
        beta = self._beta_or_reason(products, gradient.numel())
        if isinstance(beta, str):
            yield self._steepest(gradient, z, g_z, beta, previous)
        else:
            yield self._conjugate(gradient, z, d, beta, products)
        yield self._steepest(gradient, z, g_z, "the search along the first direction failed")

    def _products(self, gradient: Tensor, z: Tensor, d: Tensor, y: Tensor) -> Products:
        """Return all inner products, fetched from the device at once."""
        memory = self._memory
        # Only Hager and Zhang's formula asks for yᵀPy; the others are not charged for it.
        p_y = precondition(self.preconditioner, y) if self.beta == "hager-zhang" else y
        pairs = (gradient, z), (y, z), (y, p_y), (d, y), (d, gradient)
        new_g_z, y_new_z, y_z, d_y, d_new_g = torch.stack([dot(u, v) for u, v in pairs]).tolist()
        return Products(memory.g_z, new_g_z, y_new_z, y_z, d_y, d_new_g, memory.slope, memory.d_d)

    def _beta_or_reason(self, p: Products, size: int) -> float | str:
        """Return β, or why to restart instead."""
        if self._memory.age >= _RESTART_FACTOR * size:
            return f"{_RESTART_FACTOR}n steps since the last restart"
        if self.beta in DIVIDE_BY_CURVATURE and not p.d_y > 0.0:
            return "the slope did not rise along the last direction (dᵀy ≤ 0)"
        if self.powell is not None and abs(p.new_g_z - p.y_new_z) >= self.powell * p.new_g_z:
            return "successive gradients are far from orthogonal (Powell's test)"
        beta = beta_formula(self.beta)(p)
        if beta == 0.0 or not math.isfinite(beta):
            return f"{self.beta} gave β = {beta:g}"
        if not beta * p.d_new_g < p.new_g_z:
            return "the conjugate direction does not descend"
        return beta

    def _steepest(
        self, gradient: Tensor, z: Tensor, g_z: float, reason: str | None, previous: tuple[float, float] | None = None
    ) -> Direction:
        vector = -z
        memory = replace(self._memory, gradient=gradient, direction=vector, g_z=g_z, d_d=g_z, age=1)
        return Direction(vector, -g_z, previous=previous, restarted=reason, memory=memory)

    def _conjugate(self, gradient: Tensor, z: Tensor, d: Tensor, beta: float, p: Products) -> Direction:
        memory, vector = self._memory, torch.sub(d * beta, z)
        slope = beta * p.d_new_g - p.new_g_z
        # dᵀP⁻¹d by recursion, since P⁻¹ is not at hand; Cauchy and Schwarz bound it from below against rounding.
        length = max(p.new_g_z - 2.0 * beta * p.d_new_g + beta**2 * p.d_d, slope**2 / p.new_g_z)
        age = memory.age + 1
        kept = replace(memory, gradient=gradient, direction=vector, g_z=p.new_g_z, d_d=length, age=age)
        return Direction(vector, slope, previous=(memory.step_size, memory.slope), memory=kept)

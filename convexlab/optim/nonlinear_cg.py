"""Nonlinear conjugate gradients, preconditioned or not, as a torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.optim.betas import DIVIDE_BY_CURVATURE, Products, beta_formula
from convexlab.optim.evaluation import Evaluation
from convexlab.optim.flat import Direction, FlatOptimizer
from convexlab.optim.line_search import LineSearch
from convexlab.parameters import dot

__all__ = ["NonlinearCG"]


class NonlinearCG(FlatOptimizer):
    """Nonlinear conjugate gradients: d₊ = -Pg₊ + βd, then a line search.

    It restarts from d = -Pg where d would not descend, where β says nothing (dᵀy ≤ 0 in a formula that divides by it,
    or β = 0), and by Powell's test (1977, Math. Programming 12): successive gradients far from orthogonal,
    |g₊ᵀPg| ≥ ``powell`` g₊ᵀPg₊. Where the search along d fails, it tries -Pg within the same step; where that fails
    too, the weights stay, `report` says why, and the next step starts afresh.

    Closures, parameters, limits and reuse: see `FlatOptimizer`. The paper's second phase is
    ``NonlinearCG(params, beta="polak-ribiere+", line_search="golden-section")``.

    Args:
        params: parameters, or one group of them.
        beta: a name from `beta_names`.
        line_search: a name from `line_search_names`, or a `LineSearch`.
        preconditioner: P ≈ H⁻¹, symmetric positive definite and fixed between restarts: takes a flat gradient (n,) and
            returns a new flat vector (n,). Like the closure, it is not part of `state_dict`.
        max_evaluations: limit on the closure calls of a step's searches.
        powell: the ratio at which Powell's test restarts; None switches it off.
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
        preconditioner: Callable[[Tensor], Tensor] | None = None,
        max_evaluations: int | None = None,
        powell: float | None = 0.2,
        reuse: bool = True,
    ) -> None:
        if powell is not None and not powell > 0.0:
            raise MisuseError(f"powell must be None or positive, got {powell!r}. 0.2 is Powell's own choice.")
        self.beta = beta
        self.powell = powell
        self.preconditioner = preconditioner
        self._beta_formula = beta_formula(beta)
        super().__init__(params, line_search=line_search, max_evaluations=max_evaluations, reuse=reuse)

    def _directions(self, start: Evaluation) -> Iterator[Direction]:
        gradient, memory = start.gradient, self._memory
        z = self._precondition(gradient)
        pairs = [(gradient, z)]
        d: Tensor | None = memory.get("direction")
        if d is not None:
            y = gradient - memory["gradient"]
            pairs += [(y, z), (y, self._preconditioned_change(y)), (d, y), (d, gradient)]
        previous = None if d is None else (memory["step_size"], memory["slope"])
        g_z, *rest = torch.stack([dot(u, v) for u, v in pairs]).tolist()
        if not 0.0 < g_z < math.inf:
            reason = f"the preconditioner is not positive definite here (gᵀPg = {g_z:.3g}), so it was left out"
            yield _steepest(gradient, gradient, start.squared_norm, previous, reason, remember=False)
            return
        if d is None or previous is None:
            yield _steepest(gradient, z, g_z, None, memory.get("restarted"))
            return
        products = Products(memory["g_z"], g_z, *rest, memory["slope"], memory["d_d"])
        beta = self._beta_or_reason(products)
        if isinstance(beta, str):
            yield _steepest(gradient, z, g_z, previous, beta)
        else:
            yield _conjugate(gradient, z, d, beta, products, previous)
        yield _steepest(gradient, z, g_z, None, "the search along the first direction failed")

    def _precondition(self, gradient: Tensor) -> Tensor:
        if self.preconditioner is None:
            return gradient
        z = self.preconditioner(gradient)
        if not isinstance(z, Tensor) or z.shape != gradient.shape:
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise MisuseError(
                f"the preconditioner must return a flat vector of shape {tuple(gradient.shape)}, got {got}."
            )
        return z.to(gradient)

    def _preconditioned_change(self, y: Tensor) -> Tensor:
        # Only Hager and Zhang's formula asks for yᵀPy; the others are not charged for it.
        return self._precondition(y) if self.beta == "hager-zhang" else y

    def _beta_or_reason(self, p: Products) -> float | str:
        """Return β, or why to restart instead."""
        if self.beta in DIVIDE_BY_CURVATURE and not p.d_y > 0.0:
            return "the slope did not rise along the last direction (dᵀy ≤ 0)"
        if self.powell is not None and abs(p.new_g_z - p.y_new_z) >= self.powell * p.new_g_z:
            return "successive gradients are far from orthogonal (Powell's test)"
        beta = self._beta_formula(p)
        if beta == 0.0 or not math.isfinite(beta):
            return f"{self.beta} gave β = {beta:g}"
        if not beta * p.d_new_g < p.new_g_z:
            return "the conjugate direction does not descend"
        return beta


def _steepest(
    gradient: Tensor,
    z: Tensor,
    g_z: float,
    previous: tuple[float, float] | None,
    reason: str | None,
    *,
    remember: bool = True,
) -> Direction:
    vector = -z
    kept = {"gradient": gradient, "direction": vector if remember else None, "g_z": g_z, "d_d": g_z}
    return Direction(vector, -g_z, previous=previous, restarted=reason, remember=kept)


def _conjugate(
    gradient: Tensor, z: Tensor, d: Tensor, beta: float, p: Products, previous: tuple[float, float]
) -> Direction:
    vector = torch.sub(d * beta, z)
    slope = beta * p.d_new_g - p.new_g_z
    # dᵀP⁻¹d by recursion, since P⁻¹ is not at hand; Cauchy and Schwarz bound it from below against rounding.
    length = p.new_g_z - 2.0 * beta * p.d_new_g + beta**2 * p.d_d
    kept = {"gradient": gradient, "direction": vector, "g_z": p.new_g_z, "d_d": max(length, slope**2 / p.new_g_z)}
    return Direction(vector, slope, previous=previous, remember=kept)

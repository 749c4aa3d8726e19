"""Truncated Newton-CG, preconditioned or not, as a torch optimiser.

Notation: g gradient, H Hessian, p direction; P ≈ H⁻¹ symmetric positive definite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import MisuseError
from convexlab.linalg.operators import MatrixVectorProduct
from convexlab.linalg.vectors import dot, norm
from convexlab.optim.evaluation import CountedClosure, Evaluation
from convexlab.optim.flat import FlatOptimizer
from convexlab.optim.line_search import LineSearch
from convexlab.optim.linear_cg import Truncated, truncated_cg
from convexlab.optim.memory import Memory
from convexlab.optim.preconditioners import Preconditioner, precondition
from convexlab.optim.steps import Direction

__all__ = ["Curvature", "NewtonCG"]

Curvature = Callable[[], MatrixVectorProduct]
"""Returns the curvature matrix at the present weights, such as the method ``hessian`` or ``ggn`` of an `Objective`."""

_RESERVE = 3  # Evaluations of a limit that the inner iteration leaves to the line search.


class NewtonCG(FlatOptimizer):
    """Truncated Newton: p ≈ -H⁻¹g by linear conjugate gradients, then a line search along p, with first trial 1.

    Source: Nocedal and Wright, Numerical Optimization, 2nd ed. 2006, algorithm 7.1, preconditioned. The inner iteration
    (`truncated_cg`) ends where more of it lowers the quadratic little, and follows negative curvature where it meets
    it. So it leaves a saddle along directions of negative curvature in which g has a component. Where g has none, it
    does not see them.

    Without ``operator`` a product is a difference of gradients, Hv ≈ (g(x + hv) - g(x)) / h with h‖v‖ = √ε max(1, root
    mean square of x). It takes one evaluation of the closure, which counts in `report` and towards ``max_evaluations``
    like any other. On smooth networks its error is some √ε. An exact product costs twice as much.

    It was compared with L-BFGS at equal cost on a regression, a vision transformer and a physics-informed network
    (``benchmarks/second_phase_choices.py``). With Adam's moments as the preconditioner of both, it ended at 4.6, 3.6
    and 37 times the loss of L-BFGS. Without a preconditioner it ended at 4.1, 2.5 and 2.1 times, and with exact
    products at 7.8, 4.8 and 57 times. On an ill-conditioned system the inner iteration takes hundreds of products, for
    which L-BFGS makes as many steps. It is for saddles, and for comparisons.

    Where the search along p fails, it tries -Pg within the same step. Closures, parameters, limits and reuse: see
    `FlatOptimizer`.

    Args:
        params: parameters, or one group of them.
        operator: called once a step, returns the Hessian at the present weights, such as ``objective.hessian``; its
            products are not counted in `report` (``objective.cost`` has them).
        preconditioner: P, as in `NonlinearCG`, and linear.
        tolerance: of the inner iteration; less solves more exactly.
        max_products: limit on the products of a step.
        line_search: a name from `line_search_names`, or a `LineSearch`. It should be one that uses slopes.
        max_evaluations: limit on the closure calls of a step, those of products included.
        reuse: whether the closure is the same function at every step.

    Raises:
        MisuseError: parameters or settings other than these.
    """

    def __init__(
        self,
        params: Any,
        *,
        operator: Curvature | None = None,
        preconditioner: Preconditioner | None = None,
        tolerance: float = 0.5,
        max_products: int = 100,
        line_search: str | LineSearch = "hager-zhang",
        max_evaluations: int | None = None,
        reuse: bool = True,
    ) -> None:
        if operator is not None and not callable(operator):
            raise MisuseError(
                f"operator must be None or a function that returns one, got {type(operator).__name__}. Pass "
                "objective.hessian itself, not what it returns: the weights move."
            )
        if not 0.0 < tolerance <= 1.0:
            raise MisuseError(f"tolerance must lie above 0 and be at most 1, got {tolerance!r}.")
        if not isinstance(max_products, int) or max_products < 1:
            raise MisuseError(f"max_products must be an integer of at least 1, got {max_products!r}.")
        self.operator = operator
        self.tolerance = tolerance
        self.max_products = max_products
        super().__init__(
            params,
            line_search=line_search,
            preconditioner=preconditioner,
            max_evaluations=max_evaluations,
            reuse=reuse,
        )

    def _propose(
        self, call: CountedClosure, weights: Tensor, start: Evaluation, limit: int | None
    ) -> Iterator[Direction]:
        gradient, restarted = start.gradient, self._memory.restarted
        g_z = dot(gradient, precondition(self.preconditioner, gradient)).item()
        room = self.max_products
        if self.operator is None and limit is not None:
            room = min(room, limit - _RESERVE)
        if 0.0 < g_z < math.inf and room > 0:
            inner = self._solve(call, weights, start, room)
            slope = dot(gradient, inner.vector).item()
            reason = f"conjugate gradients found no direction of descent (gᵀp = {slope:.3g})"
            if -math.inf < slope < 0.0:
                kept = self._kept(inner, start)
                yield Direction(inner.vector, slope, initial_step=1.0, restarted=restarted, memory=kept)
                reason = "the search along the first direction failed"
            restarted = reason
        for direction in self._directions(start):
            yield replace(direction, restarted=direction.restarted or restarted)

    def _directions(self, start: Evaluation) -> Iterator[Direction]:
        """Yield what is left to try: -Pg."""
        z = precondition(self.preconditioner, start.gradient)
        g_z = dot(start.gradient, z).item()
        kept = self._kept(None, start)
        if 0.0 < g_z < math.inf:
            yield Direction(-z, -g_z, memory=kept)
        else:
            reason = f"the preconditioner is not positive definite here (gᵀPg = {g_z:.3g}), so it was left out"
            yield Direction(-start.gradient, -start.squared_norm, restarted=reason, memory=kept)

    def _kept(self, inner: Truncated | None, start: Evaluation) -> Memory:
        """Return the memory after a step along what the inner iteration found, or along -Pg."""
        return self._memory

    def _damping(self, quotient: float) -> float:
        """Return λ, given the curvature along the first direction over its dᵀP⁻¹d."""
        return 0.0

    def _solve(self, call: CountedClosure, weights: Tensor, start: Evaluation, room: int) -> Truncated:
        epsilon = torch.finfo(weights.dtype).eps
        product, error = self._differences(call, weights, start), math.sqrt(epsilon)
        if self.operator is not None:
            with torch.enable_grad():
                product, error = torch.enable_grad()(self.operator().matvec), epsilon
        return truncated_cg(
            product,
            start.gradient,
            self.preconditioner,
            tolerance=self.tolerance,
            max_products=room,
            error=error,
            damping=self._damping,
        )

    def _differences(self, call: CountedClosure, weights: Tensor, start: Evaluation) -> Callable[[Tensor], Tensor]:
        size = (norm(weights) / math.sqrt(weights.numel())).clamp_min(1.0)
        length = size * math.sqrt(torch.finfo(weights.dtype).eps)

        def product(v: Tensor) -> Tensor:
            scale = (length / norm(v)).to(v)
            self._write(weights + v * scale)
            return (call.evaluate()[0].gradient - start.gradient) / scale

        return product

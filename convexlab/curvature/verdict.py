"""What a Krylov run allows to be said about convexity: three outcomes, never "convex"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from convexlab.curvature.bounds import check_confidence, steps_for
from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.extremes import (
    Ends,
    ExtremeEigenvalues,
    ends_of,
    error_of_products,
    extremes_of,
    margins_of,
    stages,
    start_confidence_of,
)
from convexlab.curvature.inexact import Inexact
from convexlab.curvature.lanczos import Lanczos, random_unit_vector
from convexlab.errors import MisuseError
from convexlab.linalg.operators import MatrixVectorProduct
from convexlab.machine.precision import Precision
from convexlab.objective import Objective, Products
from convexlab.objective.differences import CentralDifferences
from convexlab.objective.products import HessianOperator, ObjectiveOperator
from convexlab.wording.verdict import verdict_sentence

__all__ = ["Verdict", "convexity_verdict", "judge", "steps_to_resolve"]

Kind = Literal["non-convex", "no-negative-curvature", "unresolved"]

# An asymmetry |uᵀHv - vᵀHu| is a draw of a difference of two rounding errors. A normal error of the same variance is
# more than four times the largest of three draws less than once in 10,000.
_SAFETY = 4.0
# Times that the curvature along the small end is recomputed. Each time, a rounding error that was chosen for its sign
# comes out the same to a quarter with a chance of about 0.1.
_RECOMPUTATIONS = 5
# Share of the floor that is left to rounding.
_ROUNDING_SHARE = 0.1


@dataclass(frozen=True)
class Verdict:
    """The verdict on the convexity of a loss at a point, with its evidence."""

    kind: Kind
    curvature: float
    """vᵀHv of the unit vector v with the smallest value found, recomputed by a fresh product."""
    witness: Tensor | None
    """v (n,), if it proves the loss non-convex here: curvature + rounding_floor < 0. That can be checked
    independently."""
    second_difference: float | None
    """(L(θ + h v) - 2 L(θ) + L(θ - h v)) / h² along the witness: the same without derivatives.

    None without a witness, or where the rounding of the loss is too large for it. Kinks of the loss within h of θ add
    to it, so it may differ from ``curvature`` even in sign.
    """
    lower_bound: float
    """No eigenvalue is below, with probability ``confidence`` over the random start; allows for rounding."""
    largest: float
    """Largest Ritz value, the scale of ``floor``."""
    rounding_floor: float
    """Estimated error of a curvature in this precision; no sign is stated within it."""
    floor: float
    """Resolution asked for, relative to ``largest``."""
    confidence: float
    steps: int
    """Dimension of the Krylov space."""
    extremes: ExtremeEigenvalues
    """Both ends, from the same Krylov run."""
    effort: Effort

    def summary(self) -> str:
        """Return one sentence, the same as in a report."""
        return verdict_sentence(
            self.kind,
            smallest=self.extremes.smallest,
            smallest_lower_bound=self.extremes.smallest_lower_bound,
            largest=self.largest,
            rounding_floor=self.rounding_floor,
            confidence=self.confidence,
            steps=self.steps,
            second_difference=self.second_difference,
        )

    @property
    def scale(self) -> float:
        """The largest absolute Ritz value; 1 for a zero Hessian."""
        return max(abs(self.extremes.smallest), abs(self.extremes.largest)) or 1.0


def convexity_verdict(
    objective: Objective,
    *,
    floor: float = 1e-3,
    confidence: float = 0.999,
    max_steps: int | None = None,
    products: Products = "auto",
    precision: Precision = "full",
    seed: int = 0,
) -> Verdict:
    """Judge the convexity of the loss at the model's present parameters, from a Krylov run.

    Args:
        objective: the loss.
        floor: the smallest negative curvature that is searched for, as a fraction of the largest curvature.
        confidence: of the lower bound, over the random start.
        max_steps: products at most; None is what ``floor`` and ``confidence`` need. Fewer are made when negative
            curvature shows earlier.
        products: how the Hessian multiplies, see `Objective.hessian`.
        precision: the precision of the products, see `Objective.hessian`; the lower bound allows for its error.
        seed: of the random start.

    Raises:
        MisuseError: a floor or confidence out of range.
        FailureError: the run does not fit into memory, see `forecast_memory`; or a product is not finite.
    """
    operator = objective.hessian(products, precision)
    steps = steps_to_resolve(operator.shape[0], floor, confidence)
    steps = steps if max_steps is None else min(steps, max_steps)
    with Meter(operator) as meter:
        process = Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(seed)), steps)
        return judge(process, floor=floor, confidence=confidence, meter=meter)


def steps_to_resolve(size: int, floor: float, confidence: float) -> int:
    """Return the steps after which a bound resolves ``floor``, relative to the largest curvature.

    Raises:
        MisuseError: a floor or confidence out of range.
    """
    if not 0 < floor < 1:
        raise MisuseError(f"expected a floor between 0 and 1, got {floor!r}.")
    check_confidence(confidence)
    return steps_for(size, (1 - _ROUNDING_SHARE) * floor, confidence)


def judge(
    process: Lanczos,
    *,
    floor: float,
    confidence: float,
    meter: Meter,
    tolerance: float | None = None,
    watch: Callable[[Lanczos], None] | None = None,
) -> Verdict:
    """Extend a Krylov run until it allows a verdict, and return that.

    Args:
        process: from a start uniform on the sphere; its ``max_steps`` is the limit.
        floor: see `convexity_verdict`.
        confidence: see `convexity_verdict`.
        meter: of the effort.
        tolerance: extend the run, even if the verdict is clear before, until both ends are known to this share of the
            range of the spectrum.
        watch: called with the run now and then.
    """
    verdict, next_look = None, 0.0
    for steps in stages(process.steps + 1, process.max_steps):
        process.extend(steps - process.steps)
        if watch is not None:
            watch(process)
        known, resolved = _outlook(process, floor, confidence, tolerance)
        # An assessment makes several products: after one without a verdict, the next is half as many steps later.
        promising = resolved or process.ritz()[0][0] < 0
        if process.exhausted or (known and promising and steps >= next_look):
            verdict = _assess(process, floor=floor, confidence=confidence, meter=meter)
            if verdict.kind != "unresolved" or process.exhausted:
                break
            next_look = 1.5 * steps
    assert verdict is not None
    return verdict


def _outlook(process: Lanczos, floor: float, confidence: float, tolerance: float | None) -> tuple[bool, bool]:
    """Return whether both ends are known to the tolerance, and whether the bound will resolve the floor."""
    values, _ = process.ritz()
    below, above = margins_of(process, confidence)
    known = tolerance is None or max(below, above) <= tolerance * (values[-1] - values[0])
    return known, values[0] - below >= -(1 - _ROUNDING_SHARE) * floor * max(abs(values[0]), abs(values[-1]))


def _assess(process: Lanczos, *, floor: float, confidence: float, meter: Meter) -> Verdict:
    error, at_start, operator = 0.0, confidence, process.operator
    if isinstance(operator, Inexact):
        error, at_start = error_of_products(process, confidence), start_confidence_of(confidence)
    ends = ends_of(process)
    extremes = extremes_of(process, ends, tolerance=floor, confidence=at_start, meter=meter, deviation=error)
    extremes = replace(extremes, confidence=confidence)
    curvature, rounding = _curvature_and_rounding(process, ends)
    rounding = max(rounding, _disagreement(process, ends, operator))
    scale = max(abs(extremes.smallest), abs(extremes.largest))
    bound = min(extremes.smallest_lower_bound, curvature)
    if process.exhausted or _kind(curvature, bound, rounding, floor * scale) != "unresolved":
        rounding = max(rounding, _SAFETY * _change_on_recomputing(process, ends.vectors[0], curvature))
    kind, lower = _kind(curvature, bound, rounding, floor * scale), bound - rounding
    witness = extremes.smallest_vector if kind == "non-convex" else None
    second_difference = _second_difference(process.operator, witness)
    process.operator = operator  # The run may go on.
    return Verdict(
        kind=kind,
        curvature=curvature,
        witness=witness,
        second_difference=second_difference,
        lower_bound=lower,
        largest=extremes.largest,
        rounding_floor=rounding,
        floor=floor,
        confidence=confidence,
        steps=process.steps,
        extremes=extremes,
        effort=meter.effort(process.products, process.plan),
    )


def _disagreement(process: Lanczos, ends: Ends, operator: MatrixVectorProduct) -> float:
    """Return by how much vᵀHv at the small end differs between differences with two steps; 0 for exact products."""
    if not isinstance(operator, CentralDifferences):
        return 0.0
    process.products += 1
    product = operator.matvec(ends.vectors[0].to(operator.dtype)).to(ends.vectors)
    return _SAFETY * abs(float(ends.vectors[0] @ product) - ends.values[0])


def _second_difference(operator: MatrixVectorProduct, witness: Tensor | None) -> float | None:
    if witness is None or not isinstance(operator, HessianOperator):
        return None
    return operator.second_difference(witness)


def _kind(curvature: float, bound: float, rounding: float, floor: float) -> Kind:
    if curvature + rounding < 0:
        return "non-convex"
    return "no-negative-curvature" if bound - rounding >= -floor else "unresolved"


def _change_on_recomputing(process: Lanczos, vector: Tensor, curvature: float) -> float:
    """Return by how much vᵀHv changes with other rounding errors; 0 for an operator that cannot recompute it.

    The vector was chosen for the least curvature, errors included. Errors can look like curvature: symmetric, and the
    same every time.
    """
    operator = process.operator
    if not isinstance(operator, ObjectiveOperator):
        return 0.0
    products = []
    for seed in range(_RECOMPUTATIONS):
        product = operator.recomputed(vector, seed=seed)
        products.append(product.to(vector))
        process.products += 1
        if product.dtype != operator.dtype:
            break  # In a higher precision the difference is the error itself, and not a draw of it.
    return float((torch.stack(products) @ vector - curvature).abs().max())


def _curvature_and_rounding(process: Lanczos, ends: Ends) -> tuple[float, float]:
    """Return vᵀHv at the small end and an estimate of its error from the asymmetry of three products."""
    operator = process.operator
    random = random_unit_vector(operator, torch.Generator().manual_seed(1))[None]
    vectors, products = [*ends.vectors, *random], [*ends.products, *process.multiply(random)]
    quotients = torch.stack([vector @ product for vector in vectors for product in products]).reshape(3, 3).cpu()
    asymmetry = float((quotients - quotients.T).abs().max())
    scale = max(abs(value) for value in ends.values)
    # Rounding the vector itself to the operator's precision moves vᵀHv by at most about ε times the scale.
    return float(quotients[0, 0]), _SAFETY * max(asymmetry, torch.finfo(operator.dtype).eps * scale)

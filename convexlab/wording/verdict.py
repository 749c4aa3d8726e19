"""The sentence that a verdict on convexity is: never that a loss is convex."""

from __future__ import annotations

import math

from convexlab.wording.numbers import lower_bound, number, percent, signed

__all__ = ["verdict_sentence"]


def verdict_sentence(
    kind: str,
    *,
    smallest: float,
    smallest_lower_bound: float | None,
    largest: float | None,
    rounding_floor: float,
    confidence: float | None,
    steps: int | None,
    second_difference: float | None,
) -> str:
    """Return one sentence on a verdict; what is None, or not finite, is left out of it.

    Args:
        kind: ``non-convex``, ``no-negative-curvature`` or ``unresolved``.
        smallest: vᵀHv of the unit vector v found with the least.
        smallest_lower_bound: no eigenvalue is below it by more than ``rounding_floor``.
        largest: the largest curvature.
        rounding_floor: error of a curvature by rounding.
        confidence: of the lower bound, from 0 to 1.
        steps: dimension of the Krylov space.
        second_difference: curvature along v from values of the loss alone.
    """
    rounding = f"rounding error below {number(rounding_floor, 1)}" if rounding_floor else ""
    scale = "" if largest is None else f"largest curvature {number(largest)}"
    if kind == "non-convex":
        values = "" if second_difference is None else f"{number(second_difference)} from values of the loss alone"
        curvature = signed(smallest, rounding_floor)
        return f"Non-convex here: a direction of curvature {curvature} was found{_brackets(rounding, values, scale)}."
    chance = "" if confidence is None else f" with confidence {percent(confidence)} over the random start"
    bound = smallest_lower_bound if smallest_lower_bound is None or math.isfinite(smallest_lower_bound) else None
    below = lower_bound(bound, rounding_floor)
    if kind == "no-negative-curvature":
        what = "curvature" if bound is not None and bound > rounding_floor else "negative curvature"
        range_ = " was found" if bound is None else f" below {below}"
        return f"No {what}{range_}{chance}{_brackets(_share(bound, smallest, largest))}."
    searched = "" if steps is None else f" in {steps} steps"
    rest = ", and the steps are too few for a lower bound"
    if bound is not None:
        rest = f", but curvature down to {below} cannot be ruled out{chance}"
    return f"Unresolved: no direction of negative curvature was found{searched}{rest}{_brackets(scale, rounding)}."


def _share(bound: float | None, smallest: float, largest: float | None) -> str:
    """How large a bound is beside the largest absolute curvature."""
    if bound is None or largest is None:
        return ""
    share = abs(bound) / (max(abs(smallest), abs(largest)) or 1.0)
    return f"{number(share, 1)} of the largest curvature, {number(largest)}"


def _brackets(*parts: str) -> str:
    known = "; ".join(part for part in parts if part)
    return f" ({known})" if known else ""

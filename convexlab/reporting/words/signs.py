"""Four signs of a change in curvature: their values along training, and the claim that each supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from convexlab.reporting.facts.norm import FEWEST, norm_peak
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.run import place
from convexlab.runs.rows import Curve, ProbedCheckpoint
from convexlab.wording.numbers import count, number, signed

__all__ = ["Signal", "signals"]


@dataclass(frozen=True)
class Signal:
    """One line of the table of signs."""

    name: str
    observed: str
    supports: str


def signals(facts: RunFacts) -> list[Signal]:
    """Return the values of each sign along the run; signs that were not measured are left out."""
    shown = []
    if facts.curve is not None and np.isfinite(facts.curve.norm).any():
        shown.append(_norm_signal(facts.curve))
    rows: list[tuple[str, Callable[[Sequence[ProbedCheckpoint]], str], str]] = [
        (
            "Curvature along the gradient, gᵀHg / gᵀg",
            _gradient_curvature,
            "One direction of many: negative proves non-convex there, positive proves nothing about the rest.",
        ),
        (
            "Smallest eigenvalue",
            _smallest,
            "Found negative: non-convex there, and the direction is saved. Not found: only what its lower bound says.",
        ),
        (
            "Negative spectral mass",
            _negative_mass,
            "How much of the spectrum lies below zero by more than the verdict's floor, estimated; "
            "one small negative eigenvalue may escape it.",
        ),
    ]
    for name, observe, supports in rows:
        text = observe(facts.probe)
        if text:
            shown.append(Signal(name, text, supports))
    return shown


def _norm_signal(curve: Curve) -> Signal:
    largest = int(np.nanargmax(curve.norm))
    observed = f"Largest at epoch {count(curve.epoch[largest])} ({number(curve.norm[largest])})."
    known = np.flatnonzero(np.isfinite(curve.norm) & np.isfinite(curve.epoch))
    place = norm_peak(curve.norm[known].tolist())
    if place is None and known.size >= FEWEST:
        observed += " No peak after its first trough."
    elif place is not None and known[place] != largest:
        peak = known[place]
        observed += f" Peak after its first trough: epoch {count(curve.epoch[peak])} ({number(curve.norm[peak])})."
    return Signal(
        "Peak of the gradient norm",
        observed,
        "Under gradient flow, that curvature along the gradient changed sign: needed for convexity, not enough. "
        "Under Adam or mini-batches not even that.",
    )


def _gradient_curvature(probe: Sequence[ProbedCheckpoint]) -> str:
    known = [checkpoint for checkpoint in probe if checkpoint.gradient_curvature is not None]
    if not known:
        return ""
    negative = [c for c in known if (c.gradient_curvature or 0.0) < -c.rounding_floor]
    last = known[-1]
    end = f"{signed(last.gradient_curvature, last.rounding_floor)} at the last, {place(last)}."
    if not negative:
        return f"Negative at none of {len(known)} checkpoints; {end}"
    return f"Negative at {len(negative)} of {len(known)} checkpoints, last at {place(negative[-1])}; {end}"


def _smallest(probe: Sequence[ProbedCheckpoint]) -> str:
    known = [checkpoint for checkpoint in probe if checkpoint.smallest is not None]
    if not known:
        return ""
    negative = [c for c in known if (c.smallest or 0.0) < -c.rounding_floor]
    if not negative:
        return f"Negative at none of {len(known)} checkpoints."
    lowest = min(negative, key=lambda c: c.smallest or 0.0)
    return (
        f"Negative at {len(negative)} of {len(known)} checkpoints, last at {place(negative[-1])}; "
        f"lowest {number(lowest.smallest)} at {place(lowest)}."
    )


def _negative_mass(probe: Sequence[ProbedCheckpoint]) -> str:
    known = [checkpoint for checkpoint in probe if checkpoint.negative_mass is not None]
    if not known:
        return ""
    first, last = known[0], known[-1]
    if first is last:
        return f"{number(first.negative_mass)} at {place(first)}."
    return f"From {number(first.negative_mass)} at {place(first)} to {number(last.negative_mass)} at {place(last)}."

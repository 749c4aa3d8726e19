"""Strong Wolfe conditions: Moré and Thuente, Line Search Algorithms with Guaranteed Sufficient Decrease, ACM TOMS 1994.

The search of ``dcsrch`` and ``dcstep`` (MINPACK-2), doi 10.1145/192115.192132; numbers below are theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from convexlab.errors import MisuseError
from convexlab.optim.line_search.interface import (
    RETREAT,
    SAME_POINT,
    Line,
    LineSearch,
    SearchStopped,
    Trial,
    before_barrier,
)

__all__ = ["StrongWolfe"]

_XTRAPL, _XTRAPU = 1.1, 4.0  # Least and largest extrapolation from the last move, while there is no bracket.
_SHRINK = 0.66  # A bracket that two moves have not shrunk to this is bisected.


@dataclass(frozen=True, kw_only=True)
class StrongWolfe(LineSearch):
    """φ(α) ≤ φ(0) + c₁ α φ'(0) and |φ'(α)| ≤ c₂ |φ'(0)|, by safeguarded cubic and quadratic interpolation.

    It compares values, so near the floor of float32 it fails where `HagerZhang` does not.

    There are two departures from ``dcsrch``. The step has no absolute limits. A value that is not finite shortens the
    step to 0.1 of its distance from the best point.
    """

    decrease: float = 1e-4
    """c₁ (``ftol``)."""
    curvature: float = 0.1
    """c₂ (``gtol``); conjugate gradients want it well below 1/2 (Nocedal and Wright 2006, section 5.2)."""

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            MisuseError: not 0 < c₁ ≤ c₂ < 1, which makes sure that such a step exists.
        """
        super().__post_init__()
        if not 0.0 < self.decrease <= self.curvature < 1.0:
            raise MisuseError(
                "strong Wolfe needs 0 < decrease <= curvature < 1, "
                f"got decrease={self.decrease!r} and curvature={self.curvature!r}."
            )

    def _search(self, line: Line, initial_step: float) -> Trial:
        tilt = self.decrease * line.start.slope
        best = other = line.start  # The interval's ends: MINPACK-2's stx and sty.
        bracketed, modified = False, True
        width = previous_width = barrier = math.inf
        low, high, step = 0.0, (1.0 + _XTRAPU) * initial_step, initial_step
        while True:
            trial = line.value_and_slope(step)
            if trial.value == math.inf:
                barrier, step = step, best.step + RETREAT * (step - best.step)
                _check_progress(line, step, *sorted((best.step, barrier)))
                continue
            limit = line.start.value + step * tilt
            if trial.value <= limit and abs(trial.slope) <= -self.curvature * line.start.slope:
                return trial
            if modified and trial.value <= limit and trial.slope >= 0.0:
                modified = False
            # Until a step has sufficient decrease and a slope >= 0, ψ(α) = φ(α) - φ(0) - c₁ α φ'(0) takes φ's place.
            shift = tilt if modified and limit < trial.value <= best.value else 0.0
            ends = _tilt(best, -shift), _tilt(other, -shift), _tilt(trial, -shift)
            best, other, step, bracketed = _update(*ends, bracketed, low, high)
            best, other = _tilt(best, shift), _tilt(other, shift)
            if bracketed:
                if abs(other.step - best.step) >= _SHRINK * previous_width:
                    step = best.step + 0.5 * (other.step - best.step)
                previous_width, width = width, abs(other.step - best.step)
                low, high = sorted((best.step, other.step))
                _check_progress(line, step, low, high)
            else:
                step = before_barrier(best, step, barrier)
                high = min(step + _XTRAPU * (step - best.step), barrier)
                low = min(step + _XTRAPL * (step - best.step), barrier)


def _check_progress(line: Line, step: float, low: float, high: float) -> None:
    width, (_, value, slope) = high - low, line.start
    if line.invisible(width):
        raise SearchStopped(SAME_POINT)
    if not low < step < high or width <= line.resolution * high or -slope * width <= line.resolution * abs(value):
        raise SearchStopped("the loss no longer changes by more than its rounding within the bracket")


def _tilt(trial: Trial, slope: float) -> Trial:
    return Trial(trial.step, trial.value + slope * trial.step, trial.slope + slope)


def _update(
    best: Trial, other: Trial, trial: Trial, bracketed: bool, low: float, high: float
) -> tuple[Trial, Trial, float, bool]:
    """Return the new ends of the interval, the next step, and whether a minimum is bracketed (``dcstep``)."""
    opposite = trial.slope * math.copysign(1.0, best.slope) < 0.0
    if trial.value > best.value:  # Case 1: higher. A minimum is bracketed.
        cubic, quadratic = _cubic(best, trial), _quadratic(best, trial)
        near = abs(cubic - best.step) < abs(quadratic - best.step)
        step = cubic if near else cubic + 0.5 * (quadratic - cubic)
        return best, trial, step, True
    if opposite:  # Case 2: lower, slopes of opposite sign. A minimum is bracketed.
        cubic, secant = _cubic(trial, best), _secant(trial, best)
        step = cubic if abs(cubic - trial.step) > abs(secant - trial.step) else secant
        return trial, best, step, True
    if abs(trial.slope) < abs(best.slope):  # Case 3: lower, same sign, flatter.
        step = _flatter(best, other, trial, bracketed, low, high)
    elif bracketed:  # Case 4: lower, same sign, not flatter.
        step = _cubic(trial, other)
    else:
        step = high if trial.step > best.step else low
    return trial, other, step, bracketed


def _flatter(best: Trial, other: Trial, trial: Trial, bracketed: bool, low: float, high: float) -> float:
    theta, gamma = _theta_gamma(trial, best)
    ratio = _ratio(gamma - trial.slope + theta, gamma + (best.slope - trial.slope) + gamma)
    if ratio < 0.0 and gamma != 0.0:
        cubic = trial.step + ratio * (best.step - trial.step)
    else:  # The cubic does not fall to a minimum beyond the trial.
        cubic = high if trial.step > best.step else low
    secant = _secant(trial, best)
    lead = abs(cubic - trial.step) - abs(secant - trial.step)
    if not bracketed:
        return min(max(cubic if lead > 0.0 else secant, low), high)
    step = cubic if lead < 0.0 else secant
    bound = trial.step + _SHRINK * (other.step - trial.step)
    return min(bound, step) if trial.step > best.step else max(bound, step)


def _theta_gamma(a: Trial, b: Trial) -> tuple[float, float]:
    """Return θ and γ of the cubic through both values and slopes, scaled against overflow; γ < 0 to the left of a."""
    theta = 3.0 * (a.value - b.value) / (b.step - a.step) + a.slope + b.slope
    scale = max(abs(theta), abs(a.slope), abs(b.slope))
    if scale == 0.0:
        return 0.0, 0.0
    square = (theta / scale) ** 2 - (a.slope / scale) * (b.slope / scale)
    return theta, math.copysign(scale * math.sqrt(max(0.0, square)), b.step - a.step)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator != 0.0 else 0.0


def _cubic(a: Trial, b: Trial) -> float:
    """Return the minimum of the cubic through both values and slopes, reckoned from a."""
    theta, gamma = _theta_gamma(a, b)
    return a.step + _ratio(gamma - a.slope + theta, gamma - a.slope + gamma + b.slope) * (b.step - a.step)


def _quadratic(a: Trial, b: Trial) -> float:
    """Return the minimum of the parabola through both values and a's slope."""
    secant_slope = (a.value - b.value) / (b.step - a.step)
    return a.step + a.slope / (secant_slope + a.slope) / 2.0 * (b.step - a.step)


def _secant(a: Trial, b: Trial) -> float:
    """Return the zero of the line through both slopes."""
    return a.step + a.slope / (a.slope - b.slope) * (b.step - a.step)

"""The line search of CG_DESCENT: Hager and Zhang, SIAM J. Optim. 16 (2005) and ACM TOMS 32 (2006).

Doi 10.1137/030601880 and 10.1145/1132973.1132979. Steps are labelled as there (I0-I2, B1-B3, U0-U3, S1-S4, L0-L3).
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
    usable,
)

__all__ = ["HagerZhang"]

_NOISIEST = 1e-2  # Relative rounding of a loss beyond which no step is taken on its slopes alone.
_TRUSTED = 8.0  # The parabola's curvature must exceed this many roundings of the loss: known to some 20 per cent.


class _Accepted(Exception):  # noqa: N818 - not an error: a trial inside nested updates met the conditions.
    def __init__(self, trial: Trial) -> None:
        self.trial = trial


class _Noisy(Exception):  # noqa: N818 - not an error: the search begins again, knowing more.
    pass


@dataclass(frozen=True, kw_only=True)
class HagerZhang(LineSearch):
    """Wolfe or approximate Wolfe conditions, by secant steps on the slope.

    Wolfe (T1): φ(α) ≤ φ(0) + δ α φ'(0) and φ'(α) ≥ σ φ'(0).
    Approximate Wolfe (T2): (2δ - 1) φ'(0) ≥ φ'(α) ≥ σ φ'(0) and φ(α) ≤ φ(0) + ε |φ(0)|.

    T2 requires of the values only that they do not rise by more than their rounding. It resolves a minimum to the
    rounding of the slope; values resolve it only to the root of theirs. So it still works where float32 losses no
    longer differ.

    Where the loss rises at once although the slope hardly changes, its values are less exact than ε. The cause is
    cancellation, as in the residuals of physics-informed networks. Then `Line.resolution` is set to the observed error,
    and the search begins again.
    """

    delta: float = 0.1
    """δ, sufficient decrease, below 1/2."""
    sigma: float = 0.9
    """σ, curvature, in [δ, 1)."""
    epsilon: float = 1e-6
    """ε, relative rise of the loss that counts as rounding (at least 8 units of the floating-point type are used)."""
    theta: float = 0.5
    """θ, where an interval is cut in U3."""
    gamma: float = 0.66
    """γ, an interval that a double secant step has not shrunk to this is bisected."""
    rho: float = 5.0
    """ρ, growth of the step while bracketing."""
    psi_1: float = 0.1
    """ψ₁ of I1: the parabola's point, as a share of the previous step."""
    psi_2: float = 2.0
    """ψ₂ of I2: growth of the previous step where the parabola cannot be used."""
    quadratic_step: bool = True
    """Whether the first trial is the minimum of a parabola (I1), at the cost of one value."""

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            MisuseError: a setting is outside its range.
        """
        super().__post_init__()
        ranges = {
            "0 < delta < 0.5": 0.0 < self.delta < 0.5,
            "delta <= sigma < 1": self.delta <= self.sigma < 1.0,
            "epsilon >= 0": self.epsilon >= 0.0,
            "0 < theta < 1": 0.0 < self.theta < 1.0,
            "0 < gamma < 1": 0.0 < self.gamma < 1.0,
            "rho > 1": self.rho > 1.0,
            "0 < psi_1 < 1": 0.0 < self.psi_1 < 1.0,
            "psi_2 > 1": self.psi_2 > 1.0,
        }
        if broken := [text for text, holds in ranges.items() if not holds]:
            raise MisuseError(f"Hager-Zhang needs {' and '.join(broken)}, got {self}.")

    def next_step(self, line: Line, previous_step: float, previous_slope: float) -> float:
        """Return the first trial after an accepted step (I1, I2).

        There are two departures. A parabola's point above φ(0) is used too; its minimum is then nearer still. Where the
        parabola's curvature is below the rounding of the values, the ratio of the slopes gives the step. ψ₂ would step
        over a minimum that slopes can still resolve.
        """
        if not self.quadratic_step:
            return super().next_step(line, previous_step, previous_slope)
        try:
            near = line.value(self.psi_1 * previous_step)
        except SearchStopped:
            return previous_step
        if near.value == math.inf:
            return RETREAT * near.step
        curvature, error = _curvature(line, near)
        if curvature > error:
            return usable(-line.start.slope / curvature, previous_step)
        if curvature < -error:
            return usable(self.psi_2 * previous_step, previous_step)
        return super().next_step(line, previous_step, previous_slope)

    def _search(self, line: Line, initial_step: float) -> Trial:
        try:
            return self._search_once(line, initial_step)
        except _Noisy:
            return self._search_once(line, initial_step, learns=False)

    def _search_once(self, line: Line, initial_step: float, *, learns: bool = True) -> Trial:
        search = _Search(self, line, learns=learns)
        try:
            a, b = search.bracket(initial_step)
            while True:
                search.check_visible(a, b)
                _check_progress(line, a, b)
                width = b.step - a.step
                a, b = search.double_secant(a, b)
                if b.step - a.step > self.gamma * width:
                    a, b = search.update(a, b, 0.5 * (a.step + b.step))
        except _Accepted as accepted:
            return accepted.trial


class _Search:
    """The nested procedures; every trial that meets T1 or T2 ends them all at once, as the paper has it."""

    def __init__(self, rule: HagerZhang, line: Line, *, learns: bool) -> None:
        self.rule = rule
        self.line = line
        self.learns = learns
        epsilon = max(rule.epsilon, 8.0 * line.resolution)
        self.limit = line.start.value + epsilon * abs(line.start.value)

    def trial(self, step: float) -> Trial:
        trial = self.line.value_and_slope(step)
        start, rule = self.line.start, self.rule
        if trial.slope >= rule.sigma * start.slope:
            decrease = trial.value - start.value <= rule.delta * trial.step * start.slope
            flat = trial.value <= self.limit and trial.slope <= (2.0 * rule.delta - 1.0) * start.slope
            if decrease or flat:
                raise _Accepted(trial)
        return trial

    def bracket(self, step: float) -> tuple[Trial, Trial]:
        a, barrier = self.line.start, math.inf
        while True:
            c = self.trial(step)
            if c.slope >= 0.0:
                return a, c  # B1.
            if c.value == math.inf:
                barrier = c.step
                step = a.step + RETREAT * (barrier - a.step)
                self.check_credible(a, c)
            elif c.value > self.limit:
                return self.cut(self.line.start, c)  # B2.
            else:
                a, step = c, before_barrier(c, self.rule.rho * c.step, barrier)  # B3.

    def update(self, a: Trial, b: Trial, step: float) -> tuple[Trial, Trial]:
        if not a.step < step < b.step:
            return a, b  # U0.
        return self.place(a, b, self.trial(step))

    def place(self, a: Trial, b: Trial, c: Trial) -> tuple[Trial, Trial]:
        if c.slope >= 0.0:
            return a, c  # U1.
        if c.value <= self.limit:
            return c, b  # U2.
        return self.cut(a, c)  # U3.

    def cut(self, a: Trial, b: Trial) -> tuple[Trial, Trial]:
        while True:
            self.check_credible(a, b)
            share = RETREAT if b.value == math.inf else self.rule.theta
            d = self.trial((1.0 - share) * a.step + share * b.step)
            if d.slope >= 0.0:
                return a, d  # U3a.
            a, b = (d, b) if d.value <= self.limit else (a, d)  # U3b, U3c.

    def check_credible(self, a: Trial, b: Trial) -> None:
        """Stop where the loss is too high at b but not at a, so near by that φ'(0) predicts no visible change."""
        self.check_visible(a, b)
        _check_progress(self.line, a, b)
        if -self.line.start.slope * (b.step - a.step) <= self.line.resolution * abs(self.line.start.value):
            self.learn(b)
            raise SearchStopped("the loss rises at once where its slope says that it falls")

    def check_visible(self, a: Trial, b: Trial) -> None:
        """Stop where the weights at a and b are equal up to their rounding."""
        if self.line.invisible(b.step - a.step):
            self.learn(b)
            raise SearchStopped(SAME_POINT)

    def learn(self, b: Trial) -> None:
        """Begin again if the loss at b is too high by no more than its rounding may be, where the slope is as at 0."""
        start = self.line.start
        # Twice the rise is allowed for then.
        resolution = (b.value - start.value) / (4.0 * abs(start.value)) if start.value != 0.0 else math.inf
        steady = abs(b.slope - start.slope) <= 0.5 * -start.slope
        if self.learns and steady and self.line.resolution < resolution <= _NOISIEST / 8.0:
            self.line.resolution = resolution
            raise _Noisy

    def double_secant(self, a: Trial, b: Trial) -> tuple[Trial, Trial]:
        c = _secant(a, b)  # S1.
        if not a.step < c < b.step:
            return a, b
        new_a, new_b = self.update(a, b, c)
        if c == new_b.step:
            return self.update(new_a, new_b, _secant(b, new_b))  # S2, S4.
        if c == new_a.step:
            return self.update(new_a, new_b, _secant(a, new_a))  # S3, S4.
        return new_a, new_b


def _curvature(line: Line, near: Trial) -> tuple[float, float]:
    """Return φ'' of the parabola through φ(0), φ'(0) and a point, and how large it must be to be trusted."""
    start = line.start
    if not math.isnan(near.slope):  # The closure gave a slope unasked; it is the better witness.
        return (near.slope - start.slope) / near.step, 0.0
    error = _TRUSTED * line.resolution * abs(start.value)
    excess = near.value - start.value - near.step * start.slope
    return 2.0 * excess / near.step**2, 2.0 * error / near.step**2


def _secant(a: Trial, b: Trial) -> float:
    difference = b.slope - a.slope
    return (a.step * b.slope - b.step * a.slope) / difference if difference != 0.0 else math.nan


def _check_progress(line: Line, a: Trial, b: Trial) -> None:
    if b.step - a.step <= line.resolution * b.step:
        raise SearchStopped("the slope changes sign between neighbouring steps")

"""Functions of one step with their derivatives, to search along: Moré and Thuente (1994), section 5, and more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from convexlab.optim.line_search import Line


@dataclass(frozen=True)
class Function:
    name: str
    value: Callable[[float], float]
    slope: Callable[[float], float]

    def line(self, **options: object) -> Line:
        def evaluate(step: float, needs_slope: bool) -> tuple[float, float | None]:
            return self.value(step), self.slope(step) if needs_slope else None

        return Line(evaluate, self.value(0.0), self.slope(0.0), **options)


def _rational(beta: float = 2.0) -> Function:
    return Function(
        "5.1",
        lambda a: -a / (a**2 + beta),
        lambda a: (a**2 - beta) / (a**2 + beta) ** 2,
    )


def _quintic(beta: float = 0.004) -> Function:
    return Function(
        "5.2",
        lambda a: (a + beta) ** 5 - 2.0 * (a + beta) ** 4,
        lambda a: 5.0 * (a + beta) ** 4 - 8.0 * (a + beta) ** 3,
    )


def _wiggly(beta: float = 0.01, waves: float = 39.0) -> Function:
    def base(a: float) -> float:
        return (
            1.0 - a if a <= 1.0 - beta else a - 1.0 if a >= 1.0 + beta else (a - 1.0) ** 2 / (2.0 * beta) + beta / 2.0
        )

    def base_slope(a: float) -> float:
        return -1.0 if a <= 1.0 - beta else 1.0 if a >= 1.0 + beta else (a - 1.0) / beta

    frequency = waves * math.pi / 2.0
    return Function(
        "5.3",
        lambda a: base(a) + (1.0 - beta) / frequency * math.sin(frequency * a),
        lambda a: base_slope(a) + (1.0 - beta) * math.cos(frequency * a),
    )


def _yanai(name: str, beta_1: float, beta_2: float) -> Function:
    def gamma(beta: float) -> float:
        return math.sqrt(1.0 + beta**2) - beta

    g_1, g_2 = gamma(beta_1), gamma(beta_2)
    return Function(
        name,
        lambda a: g_1 * math.sqrt((1.0 - a) ** 2 + beta_2**2) + g_2 * math.sqrt(a**2 + beta_1**2),
        lambda a: g_1 * (a - 1.0) / math.sqrt((1.0 - a) ** 2 + beta_2**2) + g_2 * a / math.sqrt(a**2 + beta_1**2),
    )


def power(minimum: float, exponent: float, scale: float = 1.0, floor: float = 0.0) -> Function:
    """Return floor + scale |a/minimum - 1|^exponent."""
    return Function(
        f"power {exponent} at {minimum}",
        lambda a: floor + scale * abs(a / minimum - 1.0) ** exponent,
        lambda a: (
            scale * exponent / minimum * math.copysign(abs(a / minimum - 1.0) ** (exponent - 1.0), a / minimum - 1.0)
        ),
    )


MORE_THUENTE = (
    _rational(),
    _quintic(),
    _wiggly(),
    _yanai("5.4", 0.001, 0.001),
    _yanai("5.5", 0.01, 0.001),
    _yanai("5.6", 0.001, 0.01),
)
CUBIC = Function("cubic", lambda a: a**3 - 3.0 * a, lambda a: 3.0 * a**2 - 3.0)
BARRIER = Function(
    "barrier at 2",
    lambda a: -math.log(2.0 - a) - 3.0 * a if a < 2.0 else math.nan,
    lambda a: 1.0 / (2.0 - a) - 3.0 if a < 2.0 else math.nan,
)
DOWNHILL = Function("downhill for ever", lambda a: -a, lambda a: -1.0)
UPHILL = Function("a slope that lies", lambda a: 1.0 + a, lambda a: -1.0)
NOWHERE = Function("not a number beyond the start", lambda a: 1.0 if a == 0.0 else math.nan, lambda a: -1.0)

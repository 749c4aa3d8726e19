"""How numbers are printed for people: three significant digits, and no sign inside the rounding floor."""

from __future__ import annotations

import math
import re

__all__ = [
    "accuracy",
    "count",
    "lower_bound",
    "number",
    "percent",
    "plain_number",
    "plus_minus",
    "power_of_ten",
    "signed",
]

MISSING = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FROM_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
# What `number` and `count` print.
_PRINTED = re.compile(r"([−-]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?:×10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?")


def power_of_ten(exponent: int) -> str:
    """Return 10 to a power, as in ``10⁻³``."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with ``digits`` significant digits, in powers of ten where it is very small or large."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{abs(value):.{digits - 1}e}".split("e")
    power = int(exponent)
    if -3 <= power < digits:
        text = f"{abs(value):.{digits - 1 - power}f}"
    elif digits <= power < 6:
        text = f"{abs(value):,.0f}"
    else:
        text = f"{mantissa}×{power_of_ten(power)}"
    return ("−" if value < 0 else "") + text


def count(value: float | None) -> str:
    """Return a count or a cost: thousands grouped, one decimal only where it is not whole."""
    if value is None or not math.isfinite(value):
        return MISSING
    rounded = round(value, 1)
    return f"{rounded:,.0f}" if rounded == int(rounded) else f"{rounded:,.1f}"


def plain_number(text: str) -> str:
    """Return a printed number as programs read it, ``-1.4e-4`` for ``−1.40×10⁻⁴``; any other text as it is.

    What is missing becomes empty.
    """
    if text == MISSING:
        return ""
    found = _PRINTED.fullmatch(text)
    if found is None:
        return text
    sign, whole, fraction, power = found.groups()
    exponent = f"e{power.translate(_FROM_SUPERSCRIPTS)}" if power else ""
    return f"{'-' if sign else ''}{whole.replace(',', '')}{fraction or ''}{exponent}"


def accuracy(value: float | None) -> str:
    """Return a share between 0 and 1 with three decimals, as the paper's Table 1 does."""
    return MISSING if value is None else f"{value:.3f}"


def percent(value: float) -> str:
    """Return a share in per cent without trailing zeros: 0.999 is ``99.9 %``."""
    return f"{round(100 * value, 6):g}\N{NO-BREAK SPACE}%"


def signed(value: float | None, floor: float) -> str:
    """Return a number whose sign carries a claim; inside ±``floor`` it is printed as zero, give or take the floor."""
    if value is not None and abs(value) <= floor:
        return f"0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{number(floor, 2)}"
    return number(value)


def lower_bound(value: float | None, floor: float) -> str:
    """Return a lower bound on an eigenvalue, widened to the rounding floor where it claims to be sharper."""
    if value is not None and abs(value) <= floor:
        return number(-floor, 2)
    return number(value)


def plus_minus(value: float | None, error: float | None, floor: float = 0.0) -> str:
    """Return a value with its residual or standard error."""
    if value is None:
        return MISSING
    if abs(value) <= floor:
        return signed(0.0, max(floor, error or 0.0))
    return number(value) if error is None else f"{number(value)}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{number(error, 2)}"

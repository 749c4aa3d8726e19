"""How numbers are printed for people, here alone: no sign inside the rounding floor, and a true minus."""

from __future__ import annotations

import math
import re

__all__ = [
    "MISSING",
    "accuracy",
    "byte_size",
    "change",
    "count",
    "decade",
    "decimals",
    "duration",
    "lower_bound",
    "number",
    "percent",
    "plain_number",
    "plus_minus",
    "power_of_ten",
    "short",
    "signed",
    "typeset",
    "with_interval",
]

MISSING = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_FROM_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
# What Python prints within a sentence: not within a word, nor after a bracket, where a hyphen is no sign.
_IN_TEXT = re.compile(r"(?<![\w.,)−-])(-?)(\d+(?:\.\d+)?)(?:e([+-]\d+))?(?![\w])")
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
    return _sign(value) + text


def _sign(value: float) -> str:
    return "−" if value < 0 else ""


def short(value: float | None) -> str:
    """Return a number that people chose, a setting or a tick, with as few digits as it has."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return _sign(value) + f"{abs(value):,g}"
    mantissa, exponent = f"{abs(value):e}".split("e")
    return f"{_sign(value)}{float(mantissa):g}×{power_of_ten(int(exponent))}"


def decade(value: float) -> str:
    """Return zero or a power of ten, with its sign, as such: ``−10⁻²``."""
    return "0" if value == 0 else _sign(value) + power_of_ten(round(math.log10(abs(value))))


def count(value: float | None) -> str:
    """Return a count or a cost: thousands grouped, one decimal only where it is not whole."""
    if value is None or not math.isfinite(value):
        return MISSING
    rounded = round(value, 1)
    return _sign(rounded) + (f"{abs(rounded):,.0f}" if rounded == int(rounded) else f"{abs(rounded):,.1f}")


def change(value: float) -> str:
    """Return a difference in whole units, with its sign either way."""
    return ("+" if round(value) >= 0 else "−") + f"{abs(round(value)):,}"


def decimals(value: float | None, places: int) -> str:
    """Return a number with so many digits behind the point."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{abs(value):.{places}f}"
    return (_sign(value) if float(text) else "") + text


def duration(seconds: float) -> str:
    """Return a time as people say it, to about a tenth: ``0.4 s``, ``12 s``, ``3.5 min``, ``2 h``."""
    space = "\N{NO-BREAK SPACE}"
    if seconds < 90:
        return f"{seconds:.2g}{space}s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.2g}{space}min"
    return f"{number(seconds / 3600, 2)}{space}h"


def byte_size(size: int) -> str:
    """Return a number of bytes in the unit that leaves it below 1,000, to three digits: ``8.03 GB``, ``120 GB``."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        share = size / unit
        if share >= 0.9995:  # What rounds to one of this unit is not 1,000 of the next.
            return f"{share:,.0f} {name}" if share >= 100 else f"{share:.3g} {name}"
    return f"{size} B"


def plain_number(text: str) -> str:
    """Return a printed number as programs read it, ``-1.4e-4`` for ``−1.40×10⁻⁴``; any other text as it is.

    What is missing becomes empty.
    """
    if text == MISSING:
        return ""
    printed = _PRINTED.fullmatch(text)
    if printed is None:
        return text
    sign, whole, fraction, power = printed.groups()
    exponent = f"e{power.translate(_FROM_SUPERSCRIPTS)}" if power else ""
    return f"{'-' if sign else ''}{whole.replace(',', '')}{fraction or ''}{exponent}"


def accuracy(value: float | None) -> str:
    """Return a share between 0 and 1 with three decimals, as the paper's Table 1 does."""
    return decimals(value, 3)


def percent(share: float, places: int = 6) -> str:
    """Return a share in per cent with at most so many decimals and no trailing zeros: 0.999 is ``99.9 %``."""
    value = round(100 * share, places)
    return f"{_sign(value)}{abs(value):g}\N{NO-BREAK SPACE}%"


def typeset(sentence: str) -> str:
    """Return a sentence that a run has stored with the numbers in it as the page prints its own."""
    return _IN_TEXT.sub(_typeset, sentence)


def _typeset(match: re.Match[str]) -> str:
    hyphen, mantissa, exponent = match.groups()
    if exponent is None:
        return ("−" if hyphen else "") + mantissa
    return number(float(match[0]), len(mantissa.replace(".", "")))


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
    """Return a value with its residual, or without where it has no sign: then as it is printed everywhere."""
    if value is None or error is None or abs(value) <= floor:
        return signed(value, floor)
    return f"{number(value)}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{number(error, 2)}"


def with_interval(
    value: float | None, low: float | None, high: float | None, floor: float = 0.0, level: float | None = None
) -> str:
    """Return an estimate with the ends of its interval, or alone where they are not known or are the estimate."""
    if value is None or low is None or high is None:
        return signed(value, floor)
    if abs(value) <= floor:
        return signed(0.0, max(floor, -low, high))
    confidence = "" if level is None else f" with {percent(level)} confidence"
    return number(value) if low == value == high else f"{number(value)} ({number(low)} to {number(high)}{confidence})"

"""How numbers are printed on a page: as everywhere, see `convexlab.wording.numbers`."""

from __future__ import annotations

from convexlab.wording.numbers import (
    MISSING,
    accuracy,
    count,
    lower_bound,
    number,
    percent,
    plain_number,
    plus_minus,
    power_of_ten,
    signed,
)

__all__ = [
    "MISSING",
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

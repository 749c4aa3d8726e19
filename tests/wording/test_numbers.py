from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convexlab import reporting, wording
from convexlab.wording.numbers import (
    accuracy,
    byte_size,
    change,
    count,
    decade,
    decimals,
    lower_bound,
    number,
    percent,
    plain_number,
    plus_minus,
    short,
    signed,
    typeset,
    with_interval,
)

_DIGITS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")


def read_back(text: str) -> float:
    """The number that a reader takes from the page."""
    mantissa, _, power = text.partition("×10")
    exponent = int(power.translate(_DIGITS)) if power else 0
    return float(mantissa.translate(_DIGITS).replace(",", "")) * 10.0**exponent


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_500, "1.5 kB"),
        (999_400, "999 kB"),
        (999_500, "1 MB"),
        (8_030_000_000, "8.03 GB"),
        (123_456_789_012, "123 GB"),
        (4_100_000_000_000, "4.1 TB"),
        (5_400_000_000_000_000, "5,400 TB"),
    ],
)
def test_bytes_are_never_a_power_of_ten(size: int, text: str) -> None:
    assert byte_size(size) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (0.0, "0"),
        (1.404e-4, "1.40×10⁻⁴"),
        (-0.1333, "−0.133"),
        (0.00123, "0.00123"),
        (0.000999, "9.99×10⁻⁴"),
        # Rounds up across the border of a notation.
        (0.0009999, "0.00100"),
        (999.9, "1,000"),
        (1.0, "1.00"),
        (12345.0, "12,345"),
        (1.5e9, "1.50×10⁹"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats(min_value=1e-30, max_value=1e30), st.sampled_from([-1.0, 1.0]))
def test_a_reader_gets_the_number_back(size: float, sign: float) -> None:
    # Three significant digits: off by at most half of the last, which is 0.5 % of the smallest mantissa, 1.00.
    assert read_back(number(sign * size)) == pytest.approx(sign * size, rel=0.005 * (1 + 1e-9))


@given(st.floats(min_value=-1, max_value=1), st.floats(min_value=1e-12, max_value=1))
def test_no_sign_inside_the_rounding_floor(value: float, floor: float) -> None:
    text = signed(value, floor)
    if abs(value) <= floor:
        assert text == f"0\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{number(floor, 2)}"
    else:
        assert math.copysign(1, read_back(text)) == math.copysign(1, value)


@given(st.floats(min_value=-1, max_value=1), st.floats(min_value=1e-12, max_value=1))
def test_a_lower_bound_is_no_sharper_than_rounding(value: float, floor: float) -> None:
    printed = read_back(lower_bound(value, floor))
    # In print two digits of the floor are off by at most 5 %, three of a bound beyond it by 0.5 %.
    expected, rounding = (-floor, 0.05) if abs(value) <= floor else (value, 0.005)
    assert printed == pytest.approx(expected, rel=rounding * (1 + 1e-9))


def test_with_interval() -> None:
    space = "\N{NO-BREAK SPACE}"
    assert with_interval(None, 1.0, 2.0) == "–"
    assert with_interval(3.0, None, None) == "3.00"
    assert with_interval(3.0, 3.0, 3.0) == "3.00"
    assert with_interval(3.0, -1.5, 4.25) == "3.00 (−1.50 to 4.25)"
    assert with_interval(3.0, 2.0, 4.0, 0.1, 0.95) == f"3.00 (2.00 to 4.00 with 95{space}% confidence)"
    assert with_interval(-1e-8, -2e-4, 1e-4, 1e-7) == f"0{space}±{space}2.0×10⁻⁴"
    assert with_interval(-1e-8, None, None, 1e-7) == f"0{space}±{space}1.0×10⁻⁷"


def test_plus_minus() -> None:
    space = "\N{NO-BREAK SPACE}"
    assert plus_minus(None, 1.0) == "–"
    assert plus_minus(3.0, None) == "3.00"
    assert plus_minus(3.0, 0.012) == f"3.00{space}±{space}0.012"
    # As `signed` has it: one eigenvalue is printed alike with and without its residual.
    assert plus_minus(-1e-8, 2e-4, 1e-7) == signed(-1e-8, 1e-7) == f"0{space}±{space}1.0×10⁻⁷"


def test_counts_shares_and_accuracies() -> None:
    assert [count(value) for value in (None, 40.0, 13.333, 1437, 119.99999999)] == ["–", "40", "13.3", "1,437", "120"]
    assert [percent(0.999), percent(-0.0123, 1)] == ["99.9\N{NO-BREAK SPACE}%", "−1.2\N{NO-BREAK SPACE}%"]
    assert [accuracy(None), accuracy(1.0), accuracy(0.99449)] == ["–", "1.000", "0.994"]


def test_every_negative_number_has_a_true_minus() -> None:
    assert [count(-13.33), count(-0.04), change(-1234.4), change(2.0), change(-0.2)] == [
        "−13.3",
        "0",
        "−1,234",
        "+2",
        "+0",
    ]
    assert [decimals(-0.00123, 4), decimals(-0.00001, 4), decade(-0.01), decade(0.0)] == [
        "−0.0012",
        "0.0000",
        "−10⁻²",
        "0",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (3e-4, "0.0003"),
        (-2.5, "−2.5"),
        (1e-5, "1×10⁻⁵"),
        (25000, "25,000"),
        (-2.5e7, "−2.5×10⁷"),
    ],
)
def test_a_number_that_people_chose_has_the_digits_it_was_given(value: float | None, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("stored", "printed"),
    [
        ("it is -0.0108 (-0.011), the largest 1.23e+03", "it is −0.0108 (−0.011), the largest 1,230"),
        ("fell to 1.4e-05 of 1e-3.", "fell to 1.4×10⁻⁵ of 0.001."),
        ("switch-epoch 40, 20-80, 1,437 of adam-2 v1e-5", "switch-epoch 40, 20-80, 1,437 of adam-2 v1e-5"),
    ],
)
def test_a_stored_sentence_is_printed_like_the_page_s_own(stored: str, printed: str) -> None:
    assert typeset(stored) == printed


@given(st.floats(min_value=-1e12, max_value=1e12))
def test_a_stored_number_keeps_its_value(value: float) -> None:
    assert read_back(typeset(f"{value:.3g}")) == pytest.approx(float(f"{value:.3g}"), rel=1e-12)


ROOT = Path(__file__).parents[2]


def test_no_other_module_formats_a_number() -> None:
    """A format within an f-string, or a minus put in by hand; those of SVG's coordinates are no words."""
    rooms = [Path(reporting.__file__).parent, Path(wording.__file__).parent, ROOT / "analyses" / "paper" / "pages"]
    pages = [path for room in rooms for path in room.rglob("*.py")]
    formats = []
    for path in pages:
        if path.name not in {"numbers.py", "svg.py", "values.py"}:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                formatted = isinstance(node, ast.FormattedValue) and node.format_spec is not None
                if formatted or (isinstance(node, ast.Constant) and node.value == "−"):
                    formats.append(f"{path.name}:{node.lineno}")
    assert len(pages) > 30
    assert formats == []


@settings(deadline=None)  # a busy machine is no fault
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_printed_number_is_written_for_programs_without_loss(value: float) -> None:
    assert float(plain_number(number(value))) == pytest.approx(read_back(number(value)), rel=1e-12)
    if abs(value) < 1e15:
        assert float(plain_number(count(value))) == pytest.approx(read_back(count(value)), rel=1e-12)


@pytest.mark.parametrize("text", ["", "yes", "1 ± 0.2", "0.1 to 0.2", "1,23", "12 %", "epoch 3", "10⁻³", "−", "2×10"])
def test_any_other_text_stays(text: str) -> None:
    assert plain_number(text) == text


def test_what_is_missing_is_empty_for_programs() -> None:
    assert plain_number(number(None)) == ""

from __future__ import annotations

import pytest

from convexlab.wording.terminal import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with ümläuts, 图 and 🙂\n\tsecond line", "plain, with ümläuts, 图 and 🙂\n\tsecond line"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[31mred\x9b0m", r"\x1b[31mred\x9b0m"),
        ("a\rb\x08c\x00", r"a\rb\x08c\x00"),
        ("\u202etxt.exe\u2028", r"\u202etxt.exe\u2028"),
        ("\ud800", r"\ud800"),
    ],
)
def test_a_terminal_gets_no_commands(text: str, shown: str) -> None:
    assert printable(text) == shown

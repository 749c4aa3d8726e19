"""Text for a terminal, which takes some characters for commands."""

from __future__ import annotations

import unicodedata

__all__ = ["printable"]

# Control and format characters (escape sequences, reversed writing), surrogates, and line ends of other kinds.
_COMMANDS = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """Return a text with every character that a terminal would act on written as in Python's sources."""
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in _COMMANDS
        else character.encode("unicode_escape").decode()
        for character in text
    )

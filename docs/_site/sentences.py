"""Lists the long sentences of the pages and of the command line's help: ``python docs/_site/sentences.py``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST = 25
"""Words that a sentence may have."""

_CODE = re.compile(r"^ *```.*?^ *```$|<!--.*?-->", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_INLINE = re.compile(r"`[^`]*`")
_ITEM = re.compile(r"^\s*(?:[-*]|\d+\.)\s", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])[)*\"”]*\s+(?=[\"“*(\[‖−]*[A-Z0-9‖])|\n\s*\n")
_WORD = re.compile(r"\w[\w'’.,/%-]*")


def sentences(markdown: str) -> Iterator[str]:
    """Yield the sentences of a page: no code, a row of a table cell by cell, an item of a list by itself."""
    text = _CODE.sub("\n\n", markdown)
    text = _INLINE.sub("Code", _LINK.sub(r"\1", text))
    text = _ITEM.sub("\n\n", text)
    text = re.sub(r"^#.*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^\|(.*)\|$", lambda row: "\n\n" + row[1].replace("|", "\n\n") + "\n\n", text, flags=re.MULTILINE)
    for sentence in _END.split(text):
        if stripped := " ".join(sentence.split()):
            yield stripped


def too_long(markdown: str, most: int = MOST) -> list[str]:
    """Return the sentences with more words."""
    return [sentence for sentence in sentences(markdown) if len(_WORD.findall(sentence)) > most]


if __name__ == "__main__":
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]:
        for sentence in too_long(path.read_text(encoding="utf-8")):
            print(f"{path.relative_to(ROOT)} ({len(_WORD.findall(sentence))}): {sentence}\n")

"""What a published page says of itself: its question, its answer, and the commit that it was made at."""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from convexlab.errors import MisuseError

__all__ = ["COMMIT", "Published", "read_page"]

COMMIT = "convexlab-commit"
"""The name of the page's `meta` that has it."""


@dataclass(frozen=True)
class Published:
    """The head of a page that `write_study` or `write_report` made."""

    file: str
    title: str
    answer: tuple[str, ...]
    """Sentences; the first is the page's headline."""
    commit: str | None
    """None where it was made outside a git checkout, or before pages said it."""


def read_page(path: Path) -> Published:
    """Read the head of a page.

    Raises:
        MisuseError: the file cannot be read, or is no page of ours.
    """
    reader = _Reader()
    try:
        reader.feed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise MisuseError(f"cannot read {str(path)!r}: expected an HTML page ({error}).") from error
    if not reader.titles or not reader.answer:
        raise MisuseError(f"{str(path)!r} has no title or no answer: expected a page that ConvexLab wrote.")
    return Published(path.name, reader.titles[0], tuple(reader.answer), reader.commit)


class _Reader(HTMLParser):
    """Collects the texts of the title and of the paragraphs that answer."""

    def __init__(self) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.answer: list[str] = []
        self.commit: str | None = None
        self._open: tuple[str, list[str]] | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "meta" and named.get("name") == COMMIT:
            self.commit = named.get("content")
        elif tag == "h1":
            self._open, self._text = (tag, self.titles), ""
        elif tag == "p" and named.get("class") in {"lead", "follow"}:
            self._open, self._text = (tag, self.answer), ""

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        if self._open is not None and self._open[0] == tag:
            self._open[1].append(" ".join(self._text.split()))
            self._open = None

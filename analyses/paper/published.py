"""What a published page says of itself: its question, its answer, its charts, and the commit that it was made at."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from markupsafe import Markup

from convexlab.errors import MisuseError
from convexlab.reporting.charts.svg import Chart, declarations

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
    drawings: tuple[str, ...] = ()
    """Its charts as SVG, in order."""

    def chart(self, place: int, key: str) -> Chart | None:
        """Return one of its charts for another page, with ids that begin with ``key``; None where there is none."""
        if place >= len(self.drawings):
            return None
        root = ElementTree.fromstring(self.drawings[place])
        for element in root.iter():
            # Of older pages: the security policy of newer ones allows no style beside their sheet.
            element.attrib.update(declarations(element.attrib.pop("style", "")))
            for name, value in element.attrib.items():
                element.set(name, _with_prefix(name, value, key))
        title, description = (root.findtext(tag) or "" for tag in ("title", "desc"))
        return Chart(key, title, "", description, Markup(ElementTree.tostring(root, encoding="unicode")))


def read_page(path: Path) -> Published:
    """Read the head of a page.

    Raises:
        MisuseError: the file cannot be read, or is no page of ours.
    """
    reader = _Reader()
    try:
        source = path.read_text(encoding="utf-8")
        reader.feed(source)
    except (OSError, UnicodeDecodeError) as error:
        raise MisuseError(f"cannot read {str(path)!r}: expected an HTML page ({error}).") from error
    if not reader.titles or not reader.answer:
        raise MisuseError(f"{str(path)!r} has no title or no answer: expected a page that ConvexLab wrote.")
    drawings = tuple(re.findall(r"<svg\b.*?</svg>", source, re.DOTALL))
    return Published(path.name, reader.titles[0], tuple(reader.answer), reader.commit, drawings)


def _with_prefix(name: str, value: str, prefix: str) -> str:
    """Return an attribute's value with a prefix before each id that it is or names."""
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return f"#{prefix}-{value.removeprefix('#')}"
    if name == "aria-labelledby":
        return " ".join(f"{prefix}-{word}" for word in value.split())
    return value.replace("url(#", f"url(#{prefix}-")


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

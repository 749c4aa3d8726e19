"""A finished figure as inline SVG with a text alternative; the same data give the same bytes."""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

from markupsafe import Markup
from matplotlib.figure import Figure

from convexlab.reporting.charts.values import mark, name_artists

__all__ = ["Chart", "chart", "declarations"]


@dataclass(frozen=True)
class Chart:
    """A figure for the page."""

    key: str
    """Unique on the page; a valid HTML id."""
    title: str
    caption: str
    """What the figure shows; stands below it."""
    description: str
    """The numbers in words, for those who cannot see the figure."""
    svg: Markup
    figure: Figure | None = field(default=None, repr=False, compare=False)
    """The matplotlib figure that it was made from."""


def chart(
    figure: Figure, *, key: str, title: str, caption: str, description: str, values: tuple[str, str] | None = None
) -> Chart:
    """Return a finished figure as inline SVG of fluid width, with title and description for assistive technology.

    Args:
        figure: what was drawn.
        key: unique on the page.
        title: of the figure.
        caption: what to see.
        description: the numbers in words.
        values: names of x and y, for a page that shows the numbers under a pointer; None shows none.
    """
    file = io.BytesIO()
    if values is not None:
        name_artists(figure)
    with warnings.catch_warnings():
        # The browser sets the text and has the glyphs; only the measuring font lacks some of a user's names.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    if values is not None:
        mark(root, figure, values)
    _simplify(root, key)
    root.attrib.update({"role": "img", "aria-labelledby": f"{key}-title {key}-description", "class": "chart"})
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt"})
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, id=f"{key}-{'title' if tag == 'title' else 'description'}")
        element.text = text
        root.insert(position, element)
    svg = Markup(ElementTree.tostring(root, encoding="unicode"))
    return Chart(key, title, caption, description, svg, figure)


_REFERENCE = re.compile(r'(?:url\(|href=")#([\w-]+)')

_LONG_NUMBER = re.compile(r"-?\d+\.\d+")


def _shorten(match: re.Match[str]) -> str:
    """Return the number rounded to a hundredth of a point: below any screen's pixel, and far fewer bytes."""
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def declarations(style: str) -> dict[str, str]:
    """Return the properties of a style without the typeface, which the page sets for all charts."""
    pairs = (declaration.partition(":") for declaration in style.split(";") if declaration.strip())
    values = {name.strip(): value.strip() for name, _, value in pairs}
    values.pop("font-family", None)
    return values


def _simplify(root: ElementTree.Element, key: str) -> None:
    """Fit matplotlib's document into a page: no namespaces, no metadata, no global style, unique ids."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata") or child.tag.endswith("}style"):
                parent.remove(child)
    referenced = set(_REFERENCE.findall(ElementTree.tostring(root, encoding="unicode")))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.tail = None
        if element.text is not None and not element.text.strip():
            element.text = None
        for name in list(element.attrib):
            value = element.attrib.pop(name).replace("url(#", f"url(#{key}-")
            name = name.rpartition("}")[2]
            if name == "id":
                if value in referenced:
                    element.set("id", f"{key}-{value}")
            elif name == "href":
                element.set(name, f"#{key}-{value.removeprefix('#')}")
            elif name == "transform" and value.startswith("rotate(-0 "):
                continue
            elif name == "style":
                # As attributes: the page's security policy allows no style beside its one sheet.
                element.attrib.update(declarations(value))
            elif name in {"d", "x", "y", "transform"}:
                element.set(name, _LONG_NUMBER.sub(_shorten, " ".join(value.split())))
            else:
                element.set(name, value)
    for name in ("width", "height"):
        root.attrib.pop(name, None)

"""The first picture of a page as PNG, under its headline."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from convexlab.errors import MisuseError
from convexlab.reporting.charts.style import INK, MUTED, draw_blank
from convexlab.reporting.charts.svg import Chart
from convexlab.reporting.contents import first_picture
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.several import headline_of, title_of

__all__ = ["picture"]

_DPI = 200
_MARGIN = 0.15
"""Inches, around and between charts."""
_TITLE = 0.2
"""Inches from a chart's title to the chart."""
_LINE = 0.24
"""Inches from one line of the headline to the next."""
_CHARACTERS_PER_INCH = 11.5

Pixels = npt.NDArray[np.uint8]


def picture(runs: Sequence[RunFacts]) -> bytes:
    """Return a PNG of the loss over cost beside both ends of the spectrum, or of the runs side by side.

    Raises:
        MisuseError: nothing was recorded that could be drawn.
    """
    charts = [(chart.title, _pixels(chart)) for chart in first_picture(runs)]
    if not charts:
        raise MisuseError("expected runs with something to draw, got none: no epoch, checkpoint or baseline is stored.")
    width = sum(pixels.shape[1] for _, pixels in charts) / _DPI + _MARGIN * (len(charts) + 1)
    lines = textwrap.wrap(headline_of(runs)[0], int(width * _CHARACTERS_PER_INCH))
    head = 0.5 + _LINE * (len(lines) + 1)
    height = head + _TITLE + max(pixels.shape[0] for _, pixels in charts) / _DPI + _MARGIN
    with draw_blank(width, height) as figure:
        _say(figure, _MARGIN, 0.3, title_of(runs), weight="bold", size=13)
        for place, line in enumerate(lines):
            _say(figure, _MARGIN, 0.58 + _LINE * place, line, size=11)
        left = _MARGIN
        for title, pixels in charts:
            _say(figure, left + _MARGIN / 2, head + 0.1, title, weight="bold", size=10.5)
            figure.figimage(pixels, round(left * _DPI), round((height - head - _TITLE) * _DPI) - pixels.shape[0])
            left += pixels.shape[1] / _DPI + _MARGIN
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def _say(figure: Figure, left: float, down: float, text: str, **look: Any) -> None:
    """Write a line of text so many inches from the left and from above."""
    width, height = figure.get_size_inches()
    color = INK if look.get("weight") == "bold" else MUTED
    figure.text(left / width, 1 - down / height, text, color=color, va="baseline", **look)


def _pixels(chart: Chart) -> Pixels:
    """Return a chart's figure in pixels (height, width, 4)."""
    assert chart.figure is not None
    file = io.BytesIO()
    chart.figure.savefig(file, format="png", dpi=_DPI)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGBA"))

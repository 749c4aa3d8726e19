"""The page of a study: a claim, the answer first, then charts and tables, in the look of the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from convexlab.machine.atomic import write_atomically
from convexlab.machine.environment import describe_environment
from convexlab.reporting.charts.svg import Chart
from convexlab.reporting.downloads import LARGEST
from convexlab.reporting.tables import Table, pairs_table
from convexlab.reporting.templating import template

__all__ = ["Card", "Part", "Study", "write_study"]


@dataclass(frozen=True)
class Card:
    """A statement at a glance, with details behind it."""

    heading: str
    statement: str
    """What is tested."""
    verdict: str
    """A word or two."""
    tone: Literal["good", "bad", "open"]
    """Whether the verdict is for the statement, against it, or neither."""
    figure: str
    """The one number that the verdict rests on."""
    details: Sequence[str] = ()
    """Paragraphs."""
    link: str = ""
    """A file beside the page with the details; empty for none."""
    chart: Chart | None = None


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    heading: str
    paragraphs: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[Card] = ()


@dataclass(frozen=True)
class Study:
    """The contents of a study's page, see `write_study`; all text is escaped."""

    title: str
    """The question."""
    claim: str
    """What is tested."""
    answer: Sequence[str]
    """Sentences with the numbers; the first is set large."""
    command: str
    """The command that makes the page again."""
    parts: Sequence[Part]
    settings: Mapping[str, Any]
    """By name; numbers, texts and lists of them."""
    dtype: str = "float32"
    """The environment of the computation."""


def write_study(study: Study, out: str | Path) -> Path:
    """Write the page: one HTML file that needs no network, whole or not at all; see `write_report`.

    Returns:
        Its path.
    """
    environment = describe_environment(torch.device("cpu"), study.dtype)
    parts = {
        "study": study,
        "environment": environment,
        "commit": environment.get("commit"),
        "settings": [pairs_table("Settings", study.settings), pairs_table("Environment", environment)],
    }
    page = template("study.html.j2").render(parts, saved=True)
    if len(page.encode("utf-8", "replace")) > LARGEST:
        page = template("study.html.j2").render(parts, saved=False)
    path = Path(out)
    write_atomically(path, page.encode("utf-8", "replace"))
    return path

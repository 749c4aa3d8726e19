"""The report: run directories in, one self-contained HTML page out, or the same in another form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from convexlab.errors import MisuseError, unknown_name
from convexlab.machine.atomic import write_atomically
from convexlab.machine.environment import describe_source
from convexlab.reporting.contents import contents_of
from convexlab.reporting.downloads import LARGEST
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.facts.runs import read_runs
from convexlab.reporting.formats.facts import facts_text
from convexlab.reporting.formats.image import picture
from convexlab.reporting.formats.markdown import markdown_text
from convexlab.reporting.parts.downloads import run_downloads
from convexlab.reporting.templating import template
from convexlab.reporting.words.several import headline_of
from convexlab.runs import Run

__all__ = ["FORMATS", "render", "summary_lines", "write_report"]


def write_report(runs: Sequence[Run], out: Path | None = None, *, format: str | None = None) -> Path:
    """Write one HTML page about one run, or about several side by side, and return its path.

    The page needs no network and no other file. The file appears whole or not at all. Without its script the page lacks
    only the numbers under a pointer on charts.

    Args:
        runs: run directories; one over several seeds stands for its members.
        out: the file to write. Default: ``report.html`` in the first run's directory, or in the directory that
            holds all of the runs as its seeds.
        format: ``html``; ``md``, the page's sentences and tables in Markdown; ``json``, its facts as numbers; or
            ``png``, its first picture under the headline. Default: as ``out`` ends, ``html`` where it has no ending.

    Raises:
        MisuseError: no run is given, a directory is not a run's, a file in it cannot be read, the format is unknown,
            ``out`` ends like another format or like none, or is a folder, or there is nothing to draw for a picture.
    """
    form = _format_of(out, format)
    if out is not None and Path(out).is_dir():
        raise MisuseError(f"{str(out)!r} is a folder: expected a file to write. Name one in it.")
    made = FORMATS[form](read_runs(runs))
    path = _default_path(runs).with_suffix(f".{form}") if out is None else Path(out)
    # A file name may hold what UTF-8 cannot, such as a lone surrogate.
    write_atomically(path, made if isinstance(made, bytes) else made.encode("utf-8", "replace"))
    return path


def summary_lines(runs: Sequence[Run]) -> list[str]:
    """Return the sentences on top of the page that `write_report` writes, for a terminal.

    Raises:
        MisuseError: as `write_report` does.
    """
    return headline_of(read_runs(runs))


def _format_of(out: Path | None, asked: str | None) -> str:
    """Return the format that is asked for, or that the file's name ends like; the two may not contradict each other."""
    suffix = "" if out is None else Path(out).suffix.lower()
    ending = "html" if suffix == ".htm" else suffix.removeprefix(".")
    if asked is None:
        if suffix and ending not in FORMATS:
            raise MisuseError(
                f"no report is written as {suffix!r}: expected a file that ends in one of .{', .'.join(FORMATS)}, got "
                f"{str(out)!r}. Name another file, or choose the format by --format."
            )
        return ending or "html"
    if asked not in FORMATS:
        raise unknown_name("format", asked, FORMATS)
    if ending in FORMATS and ending != asked:
        raise MisuseError(
            f"expected a file that ends in .{asked} for the format {asked!r}, got {str(out)!r}. Name another file, or "
            "leave the format out."
        )
    return asked  # Also into a file like notes.txt, which ends like no format.


def _default_path(runs: Sequence[Run]) -> Path:
    first = runs[0]
    parent = Run(first.path.resolve().parent)
    siblings = {member.path.resolve() for member in parent.members}
    given = {run.path.resolve() for run in runs}
    return parent.report_path if first.path.resolve() in siblings <= given else first.report_path


def render(runs: Sequence[RunFacts]) -> str:
    """Return the page as HTML; everything that came from a run is escaped."""
    parts = {"contents": contents_of(runs), "commit": describe_source(Path(__file__).parent)}
    page = template("report.html.j2")
    # The data get the room that the rest of the page leaves; 200 bytes a link are its words.
    room = (LARGEST - len(page.render(parts, downloads=[]).encode("utf-8", "replace"))) // len(runs) - 200
    downloads = [(facts.label, run_downloads(facts, room)) for facts in runs]
    return page.render(parts, downloads=downloads)


FORMATS: Mapping[str, Callable[[Sequence[RunFacts]], str | bytes]] = MappingProxyType(
    {"html": lambda runs: render(runs), "md": markdown_text, "json": facts_text, "png": picture}
)
"""The formats of a report, by the ending of its file."""

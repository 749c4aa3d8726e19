"""The report: run directories in, one self-contained HTML page out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from convexlab.errors import MisuseError
from convexlab.machine.atomic import write_atomically
from convexlab.machine.environment import describe_source
from convexlab.reporting.charts.comparison import comparison_chart
from convexlab.reporting.charts.curvature import eigenvalue_chart, mass_chart
from convexlab.reporting.charts.density import density_chart
from convexlab.reporting.charts.plane import plane_chart
from convexlab.reporting.charts.slices import slice_chart
from convexlab.reporting.charts.svg import Chart
from convexlab.reporting.charts.training import cost_charts, norm_chart
from convexlab.reporting.downloads import LARGEST
from convexlab.reporting.facts.run import Digest, read_digest
from convexlab.reporting.hindsight_part import OraclePart, oracle_part
from convexlab.reporting.run_downloads import run_downloads
from convexlab.reporting.run_tables import (
    comparison_table,
    cost_table,
    curvature_table,
    environment_table,
    results_table,
    settings_tables,
)
from convexlab.reporting.tables import Table
from convexlab.reporting.templating import template
from convexlab.reporting.words.run import headline, judgement, place, verdict_name
from convexlab.reporting.words.several import joint_headline
from convexlab.reporting.words.signs import Signal, signals
from convexlab.reporting.words.tiles import joint_tiles, tiles
from convexlab.runs import Run

__all__ = ["render", "summary_lines", "write_report"]


def write_report(runs: Sequence[Run], out: Path | None = None) -> Path:
    """Write one HTML page about one run, or about several side by side, and return its path.

    The page needs no network, no script and no other file; it appears whole or not at all.

    Args:
        runs: run directories; one over several seeds stands for its members.
        out: the file to write. Default: ``report.html`` in the first run's directory, or in the directory that
            holds all of the runs as its seeds.

    Raises:
        MisuseError: no run is given, a directory is not a run's, or a file in it cannot be read.
    """
    page = render(_digests(runs))
    path = _default_path(runs) if out is None else Path(out)
    # A file name may hold what UTF-8 cannot, such as a lone surrogate.
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def summary_lines(runs: Sequence[Run]) -> list[str]:
    """Return the sentences on top of the page that `write_report` writes, for a terminal.

    Raises:
        MisuseError: as `write_report` does.
    """
    return _top(_digests(runs))


def _top(digests: Sequence[Digest]) -> list[str]:
    return headline(digests[0]) if len(digests) == 1 else joint_headline(digests)


def _digests(runs: Sequence[Run]) -> list[Digest]:
    if not runs:
        raise MisuseError("no run to report: expected at least one run directory.")
    members = _members(runs)
    return [read_digest(run, label) for run, label in zip(members, _labels(members), strict=True)]


def _members(runs: Sequence[Run]) -> list[Run]:
    """Return the single-seed runs in the order given, each once."""
    members = (Run.open(member.path) for run in runs for member in run.members)
    return list({member.path.resolve(): member for member in members}.values())


def _default_path(runs: Sequence[Run]) -> Path:
    first = runs[0]
    parent = Run(first.path.resolve().parent)
    siblings = {member.path.resolve() for member in parent.members}
    given = {run.path.resolve() for run in runs}
    return parent.report_path if first.path.resolve() in siblings <= given else first.report_path


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return the shortest names that tell runs apart: directory, with its parent, or numbered."""
    paths = [run.path.resolve() for run in runs]
    for depth in (1, 2, 3):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({index})" for index, name in enumerate(names, start=1)]


class Judgement(NamedTuple):
    """The verdict on one checkpoint."""

    where: str
    phase: str
    kind: str
    name: str
    sentence: str


@dataclass(frozen=True)
class Section:
    """All that the page says of one run."""

    anchor: str
    digest: Digest
    headline: list[str]
    oracle: OraclePart | None
    norm: Chart | None
    costs: list[Chart]
    eigenvalues: Chart | None
    mass: Chart | None
    density: Chart | None
    slices: Chart | None
    plane: Chart | None
    signals: list[Signal]
    results: Table | None
    verdicts: list[Judgement]
    curvature: Table | None
    cost: Table | None


# With more runs than this a section keeps its main charts only, so that the page stays below 2 MB.
MANY = 6


def _section(digest: Digest, anchor: str, *, compact: bool) -> Section:
    return Section(
        anchor=anchor,
        digest=digest,
        headline=headline(digest),
        oracle=oracle_part(digest, f"{anchor}-oracle", compact=compact),
        norm=norm_chart(digest, f"{anchor}-norm"),
        costs=cost_charts(digest, anchor)[: 1 if compact else None],
        eigenvalues=eigenvalue_chart(digest, f"{anchor}-eigenvalues"),
        mass=None if compact else mass_chart(digest, f"{anchor}-mass"),
        density=None if compact else density_chart(digest, f"{anchor}-density"),
        slices=None if compact else slice_chart(digest, f"{anchor}-slices"),
        plane=None if compact else plane_chart(digest, f"{anchor}-plane"),
        signals=signals(digest),
        results=results_table(digest),
        verdicts=[Judgement(place(c), c.phase, c.verdict, verdict_name(c.verdict), judgement(c)) for c in digest.probe],
        curvature=curvature_table(digest),
        cost=cost_table(digest),
    )


def _title(digests: Sequence[Digest]) -> str:
    subjects = Counter(digest.subject for digest in digests)
    subject = next(iter(subjects)) if len(subjects) == 1 else f"{len(digests)} runs"
    return subject if len(digests) == 1 or len(subjects) > 1 else f"{subject}, {len(digests)} runs"


def render(digests: Sequence[Digest]) -> str:
    """Return the page as HTML; everything that came from a run is escaped."""
    anchors = [f"run-{index}" for index in range(1, len(digests) + 1)]
    several, compact = len(digests) > 1, len(digests) > MANY
    comparison = comparison_table(digests, anchors) if several else None
    parts = {
        "title": _title(digests),
        "commit": describe_source(Path(__file__).parent),
        "several": several,
        "headline": _top(digests),
        "tiles": joint_tiles(digests) if several else tiles(digests[0]),
        "comparison": comparison,
        "comparison_chart": comparison_chart(digests, "comparison") if several else None,
        "compact": compact,
        "sections": [
            _section(digest, anchor, compact=compact) for digest, anchor in zip(digests, anchors, strict=True)
        ],
        "settings": settings_tables(digests),
        "environment": environment_table(digests),
    }
    page = template("report.html.j2")
    # The data get the room that the rest of the page leaves; 200 bytes a link are its words.
    room = (LARGEST - len(page.render(parts, downloads=[]).encode("utf-8", "replace"))) // len(digests) - 200
    downloads = [(digest.label, run_downloads(digest, room)) for digest in digests]
    return page.render(parts, downloads=downloads)

"""The report: run directories in, one self-contained HTML page out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from convexlab.machine.atomic import write_atomically
from convexlab.machine.environment import describe_source
from convexlab.reporting.charts.comparison import comparison_chart
from convexlab.reporting.charts.curvature import eigenvalue_chart, mass_chart
from convexlab.reporting.charts.density import density_chart
from convexlab.reporting.charts.measures import drawable_measures, measure_charts
from convexlab.reporting.charts.plane import plane_chart
from convexlab.reporting.charts.slices import slice_chart
from convexlab.reporting.charts.svg import Chart
from convexlab.reporting.charts.training import cost_charts, norm_chart
from convexlab.reporting.downloads import LARGEST
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.facts.runs import read_runs
from convexlab.reporting.parts.downloads import run_downloads
from convexlab.reporting.parts.hindsight import OraclePart, oracle_part
from convexlab.reporting.parts.tables import (
    comparison_table,
    cost_table,
    curvature_table,
    environment_table,
    measures_table,
    results_table,
    settings_tables,
    top_table,
)
from convexlab.reporting.tables import Table
from convexlab.reporting.templating import template
from convexlab.reporting.words.repeats import repeats_sentences
from convexlab.reporting.words.run import headline, judgement, place, verdict_name
from convexlab.reporting.words.several import headline_of
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
    page = render(read_runs(runs))
    path = _default_path(runs) if out is None else Path(out)
    # A file name may hold what UTF-8 cannot, such as a lone surrogate.
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def summary_lines(runs: Sequence[Run]) -> list[str]:
    """Return the sentences on top of the page that `write_report` writes, for a terminal.

    Raises:
        MisuseError: as `write_report` does.
    """
    return headline_of(read_runs(runs))


def _default_path(runs: Sequence[Run]) -> Path:
    first = runs[0]
    parent = Run(first.path.resolve().parent)
    siblings = {member.path.resolve() for member in parent.members}
    given = {run.path.resolve() for run in runs}
    return parent.report_path if first.path.resolve() in siblings <= given else first.report_path


class CheckpointVerdict(NamedTuple):
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
    facts: RunFacts
    headline: list[str]
    oracle: OraclePart | None
    norm: Chart | None
    costs: list[Chart]
    measures: list[Chart]
    undrawn: int
    """Measures that have no chart for want of room."""
    eigenvalues: Chart | None
    mass: Chart | None
    density: Chart | None
    slices: Chart | None
    plane: Chart | None
    signals: list[Signal]
    results: Table | None
    verdicts: list[CheckpointVerdict]
    curvature: Table | None
    top: Table | None
    cost: Table | None


# With more runs than this a section keeps its main charts only, so that the page stays below 2 MB.
MANY = 6
# A problem may have any number of measures; the tables and the data have them all.
MOST_MEASURES = 6


def _section(facts: RunFacts, anchor: str, *, compact: bool) -> Section:
    names, drawn = drawable_measures(facts), 0 if compact else MOST_MEASURES
    return Section(
        anchor=anchor,
        facts=facts,
        headline=headline(facts),
        oracle=oracle_part(facts, f"{anchor}-oracle", compact=compact),
        norm=norm_chart(facts, f"{anchor}-norm"),
        costs=cost_charts(facts, anchor)[: 1 if compact else None],
        measures=measure_charts(facts, names[:drawn], f"{anchor}-measure"),
        undrawn=len(names[drawn:]),
        eigenvalues=eigenvalue_chart(facts, f"{anchor}-eigenvalues"),
        mass=None if compact else mass_chart(facts, f"{anchor}-mass"),
        density=None if compact else density_chart(facts, f"{anchor}-density"),
        slices=None if compact else slice_chart(facts, f"{anchor}-slices"),
        plane=None if compact else plane_chart(facts, f"{anchor}-plane"),
        signals=signals(facts),
        results=results_table(facts),
        verdicts=[
            CheckpointVerdict(place(c), c.phase, c.verdict, verdict_name(c.verdict), judgement(c)) for c in facts.probe
        ],
        curvature=curvature_table(facts),
        top=top_table(facts),
        cost=cost_table(facts),
    )


def _title(runs: Sequence[RunFacts]) -> str:
    subjects = Counter(facts.subject for facts in runs)
    subject = next(iter(subjects)) if len(subjects) == 1 else f"{len(runs)} runs"
    return subject if len(runs) == 1 or len(subjects) > 1 else f"{subject}, {len(runs)} runs"


def render(runs: Sequence[RunFacts]) -> str:
    """Return the page as HTML; everything that came from a run is escaped."""
    anchors = [f"run-{index}" for index in range(1, len(runs) + 1)]
    several, compact = len(runs) > 1, len(runs) > MANY
    comparison = comparison_table(runs, anchors) if several else None
    measures = measures_table(runs, anchors) if several else None
    parts = {
        "title": _title(runs),
        "commit": describe_source(Path(__file__).parent),
        "several": several,
        "headline": headline_of(runs),
        "tiles": joint_tiles(runs) if several else tiles(runs[0]),
        "comparison": comparison,
        "measures": measures,
        "comparison_chart": comparison_chart(runs, "comparison") if several else None,
        "compact": compact,
        "sections": [_section(facts, anchor, compact=compact) for facts, anchor in zip(runs, anchors, strict=True)],
        "settings": settings_tables(runs),
        "environment": environment_table(runs),
        "repeats": repeats_sentences(runs),
    }
    page = template("report.html.j2")
    # The data get the room that the rest of the page leaves; 200 bytes a link are its words.
    room = (LARGEST - len(page.render(parts, downloads=[]).encode("utf-8", "replace"))) // len(runs) - 200
    downloads = [(facts.label, run_downloads(facts, room)) for facts in runs]
    return page.render(parts, downloads=downloads)

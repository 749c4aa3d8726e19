"""The report: run directories in, one self-contained HTML page out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from convexlab.errors import MisuseError
from convexlab.reporting.comparison import Comparison, compare
from convexlab.reporting.comparison_figure import comparison_chart
from convexlab.reporting.curvature_figures import eigenvalue_chart, mass_chart
from convexlab.reporting.density_figure import density_chart
from convexlab.reporting.digest import Digest, read_digest
from convexlab.reporting.numbers import count, number
from convexlab.reporting.signals import Signal, signals
from convexlab.reporting.svg import Chart
from convexlab.reporting.tables import (
    Table,
    comparison_table,
    cost_table,
    curvature_table,
    environment_table,
    results_table,
    settings_tables,
)
from convexlab.reporting.templating import template
from convexlab.reporting.training_figures import cost_charts, norm_chart
from convexlab.reporting.wording import (
    headline,
    joint_headline,
    judgement,
    place,
    verdict_name,
)
from convexlab.runs import Run, write_atomically

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


class Tile(NamedTuple):
    """A figure that answers at a glance."""

    label: str
    value: str
    note: str


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
    tiles: list[Tile]
    norm: Chart | None
    costs: list[Chart]
    eigenvalues: Chart | None
    mass: Chart | None
    density: Chart | None
    signals: list[Signal]
    results: Table | None
    verdicts: list[Judgement]
    curvature: Table | None
    cost: Table | None


# With more runs than this a section keeps its main charts only, so that the page stays below 2 MB.
MANY = 8


def _section(digest: Digest, anchor: str, *, compact: bool) -> Section:
    return Section(
        anchor=anchor,
        digest=digest,
        headline=headline(digest),
        tiles=_tiles(digest),
        norm=norm_chart(digest, f"{anchor}-norm"),
        costs=cost_charts(digest, anchor)[: 1 if compact else None],
        eigenvalues=eigenvalue_chart(digest, f"{anchor}-eigenvalues"),
        mass=None if compact else mass_chart(digest, f"{anchor}-mass"),
        density=None if compact else density_chart(digest, f"{anchor}-density"),
        signals=signals(digest),
        results=results_table(digest),
        verdicts=[Judgement(place(c), c.phase, c.verdict, verdict_name(c.verdict), judgement(c)) for c in digest.probe],
        curvature=curvature_table(digest),
        cost=cost_table(digest),
    )


def _tiles(digest: Digest) -> list[Tile]:
    tiles = []
    ours, comparison, switch = digest.two_phase, compare(digest), digest.switch
    if ours is not None:
        note = f"better Adam: {number(comparison.baseline_loss)}" if comparison else "no baseline"
        tiles.append(Tile("Training loss, two-phase", number(ours.train_loss), note))
    if comparison is not None:
        tiles.append(Tile("Against the better Adam", _against(comparison), comparison.cost_clause))
    if switch is not None:
        when = "never" if switch.epoch is None else f"epoch {count(switch.epoch)}"
        tiles.append(Tile("Switch", when, switch.detector))
    if digest.probe:
        last = digest.probe[-1]
        tiles.append(Tile("Last verdict", verdict_name(last.verdict), place(last)))
    return tiles


def _against(comparison: Comparison) -> str:
    if not comparison.is_conclusive:
        return "not comparable"
    return f"{comparison.factor}× {comparison.word}" if comparison.factor else comparison.word


def _title(digests: Sequence[Digest]) -> str:
    subjects = Counter(digest.subject for digest in digests)
    subject = next(iter(subjects)) if len(subjects) == 1 else f"{len(digests)} runs"
    return subject if len(digests) == 1 or len(subjects) > 1 else f"{subject}, {len(digests)} runs"


def render(digests: Sequence[Digest]) -> str:
    """Return the page as HTML; everything that came from a run is escaped."""
    anchors = [f"run-{index}" for index in range(1, len(digests) + 1)]
    several, compact = len(digests) > 1, len(digests) > MANY
    return template("report.html.j2").render(
        title=_title(digests),
        several=several,
        headline=_top(digests),
        comparison=comparison_table(digests, anchors) if several else None,
        comparison_chart=comparison_chart(digests, "comparison") if several else None,
        compact=compact,
        sections=[_section(digest, anchor, compact=compact) for digest, anchor in zip(digests, anchors, strict=True)],
        settings=settings_tables(digests),
        environment=environment_table(digests),
    )

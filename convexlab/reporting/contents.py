"""The contents of a report in any format: sentences, facts at a glance, tables and charts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from convexlab.reporting.charts.comparison import comparison_chart
from convexlab.reporting.charts.curvature import eigenvalue_chart, mass_chart
from convexlab.reporting.charts.density import density_chart
from convexlab.reporting.charts.measures import drawable_measures, measure_charts
from convexlab.reporting.charts.plane import plane_chart
from convexlab.reporting.charts.several import negative_curvature_chart, track_of
from convexlab.reporting.charts.slices import slice_chart
from convexlab.reporting.charts.svg import Chart
from convexlab.reporting.charts.training import cost_charts, norm_chart
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.parts.claims import claim_counts_table, judged_runs_table, judgements_of
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
from convexlab.reporting.words.claims import ABOUT_OUTCOMES, ClaimNote, claim_notes, claim_sentences
from convexlab.reporting.words.repeats import repeats_sentences
from convexlab.reporting.words.run import headline, judgement, place, verdict_name
from convexlab.reporting.words.several import headline_of, title_of
from convexlab.reporting.words.signs import Signal, signals
from convexlab.reporting.words.tiles import Tile, joint_tiles, tiles

__all__ = ["Claims", "Contents", "Section", "contents_of", "first_picture"]


class CheckpointVerdict(NamedTuple):
    """The verdict on one checkpoint."""

    where: str
    phase: str
    kind: str
    name: str
    sentence: str


@dataclass(frozen=True)
class Section:
    """The contents for one run; what is not known is None or empty."""

    anchor: str
    facts: RunFacts
    headline: list[str]
    picture: list[Chart]
    """The first charts, two at most; the charts below leave them out."""
    oracle: OraclePart | None
    training: list[Chart]
    measures: list[Chart]
    undrawn: int
    """Measures that have no chart, for lack of room."""
    spectra: list[Chart]
    slices: Chart | None
    plane: Chart | None
    signals: list[Signal]
    claims: list[ClaimNote]
    results: Table | None
    verdicts: list[CheckpointVerdict]
    curvature: Table | None
    top: Table | None
    cost: Table | None


class Claims(NamedTuple):
    """What runs say of the paper's claims."""

    sentences: list[str]
    """Empty where no curvature was measured."""
    about: str
    counts: Table | None
    """Of several runs only; likewise the next."""
    runs: Table | None


@dataclass(frozen=True)
class Contents:
    """The contents of a report on one run, or on several side by side."""

    title: str
    headline: list[str]
    tiles: list[Tile]
    claims: Claims
    comparison: Table | None
    """Of several runs only; likewise the next two."""
    measures: Table | None
    joint_charts: list[Chart]
    compact: bool
    """Whether each run has its main charts only."""
    sections: list[Section]
    settings: list[Table]
    environment: Table | None
    repeats: list[str]

    @property
    def several(self) -> bool:
        """Whether there is more than one run."""
        return len(self.sections) > 1

    @property
    def picture(self) -> list[Chart]:
        """What is seen first."""
        if not self.several:
            return self.sections[0].picture
        return self.joint_charts


# With more runs than this a section keeps its main charts only, so that the page stays below 2 MB.
MANY = 6
# Charts of one run in the picture that comes first.
_PICTURE = 2
# A problem may have any number of measures; the tables and the data have them all.
MOST_MEASURES = 6


def contents_of(runs: Sequence[RunFacts], *, drawn: bool = True) -> Contents:
    """Return the contents of a report on runs; charts, which take longest, only if they are asked for."""
    anchors = [f"run-{index}" for index in range(1, len(runs) + 1)]
    several, compact = len(runs) > 1, len(runs) > MANY
    return Contents(
        title=title_of(runs),
        headline=headline_of(runs),
        tiles=joint_tiles(runs) if several else tiles(runs[0]),
        claims=Claims(
            claim_sentences(runs),
            ABOUT_OUTCOMES,
            claim_counts_table(judgements_of(runs)) if several else None,
            judged_runs_table(runs, anchors) if several else None,
        ),
        comparison=comparison_table(runs, anchors) if several else None,
        measures=measures_table(runs, anchors) if several else None,
        joint_charts=_joint_charts(runs) if several and drawn else [],
        compact=compact,
        sections=[
            _section(facts, anchor, compact=compact, drawn=drawn) for facts, anchor in zip(runs, anchors, strict=True)
        ],
        settings=settings_tables(runs),
        environment=environment_table(runs),
        repeats=repeats_sentences(runs),
    )


def first_picture(runs: Sequence[RunFacts]) -> list[Chart]:
    """Return the first picture alone: for one run, the loss over cost beside both ends of the spectrum."""
    if len(runs) == 1:
        return list(itertools.islice(_main_charts(runs[0], "picture", compact=False), _PICTURE))
    return _joint_charts(runs)


def _joint_charts(runs: Sequence[RunFacts]) -> list[Chart]:
    tracks = (track_of(facts, place) for place, facts in enumerate(runs))
    charts = (
        comparison_chart(runs, "comparison"),
        negative_curvature_chart(filter(None, tracks), "negative-curvature"),
    )
    return [chart for chart in charts if chart is not None]


def _main_charts(facts: RunFacts, anchor: str, *, compact: bool) -> Iterator[Chart]:
    """Draw the charts that a picture may consist of, one at a time, the most important first."""
    yield from cost_charts(facts, anchor, slice(1))
    yield from filter(None, [eigenvalue_chart(facts, f"{anchor}-eigenvalues")])
    if not compact:
        yield from filter(None, [density_chart(facts, f"{anchor}-density")])
    yield from filter(None, [norm_chart(facts, f"{anchor}-norm")])


class _Charts(NamedTuple):
    """The charts of one run: those of the first picture, and the rest."""

    picture: list[Chart]
    training: list[Chart]
    spectra: list[Chart]

    @classmethod
    def main(cls, facts: RunFacts, anchor: str, *, compact: bool = False) -> _Charts:
        """Draw them."""
        charts = list(_main_charts(facts, anchor, compact=compact))
        left = charts[_PICTURE:]
        training = [chart for chart in left if chart.key.endswith(("-cost", "-norm"))]
        spectra = [chart for chart in left if chart not in training]
        if not compact:
            training += cost_charts(facts, anchor, slice(1, None))
            spectra += filter(None, [mass_chart(facts, f"{anchor}-mass")])
        return cls(charts[:_PICTURE], training, spectra)


_UNDRAWN = _Charts([], [], [])


def _section(facts: RunFacts, anchor: str, *, compact: bool, drawn: bool) -> Section:
    names, most = drawable_measures(facts), MOST_MEASURES if drawn and not compact else 0
    charts = _Charts.main(facts, anchor, compact=compact) if drawn else _UNDRAWN
    return Section(
        anchor=anchor,
        facts=facts,
        headline=headline(facts),
        picture=charts.picture,
        oracle=oracle_part(facts, f"{anchor}-oracle", compact=compact, drawn=drawn),
        training=charts.training,
        measures=measure_charts(facts, names[:most], f"{anchor}-measure"),
        undrawn=len(names[most:]) if drawn else 0,
        spectra=charts.spectra,
        slices=slice_chart(facts, f"{anchor}-slices") if drawn and not compact else None,
        plane=plane_chart(facts, f"{anchor}-plane") if drawn and not compact else None,
        signals=signals(facts),
        claims=claim_notes(facts),
        results=results_table(facts),
        verdicts=[
            CheckpointVerdict(place(c), c.phase, c.verdict, verdict_name(c.verdict), judgement(c)) for c in facts.probe
        ],
        curvature=curvature_table(facts),
        top=top_table(facts),
        cost=cost_table(facts),
    )

"""The tables of a run and of several side by side; empty columns are left out."""

from __future__ import annotations

from collections.abc import Sequence

from convexlab.reporting.facts.comparison import compare
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.tables import Cell, Column, Table, make_table, pairs_table, shown
from convexlab.reporting.words.comparison import fairness
from convexlab.reporting.words.measures import measure_heading, measure_value
from convexlab.reporting.words.run import algorithm_name, place, verdict_name
from convexlab.reporting.words.sampling import beyond_the_sample
from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import (
    MISSING,
    count,
    decimals,
    lower_bound,
    number,
    percent,
    plus_minus,
    signed,
    with_interval,
)

__all__ = [
    "comparison_table",
    "cost_table",
    "curvature_summary",
    "curvature_table",
    "environment_table",
    "measures_table",
    "results_table",
    "settings_tables",
    "top_table",
]

_ABOUT_ADAM = (
    "In Adam's metric: the largest eigenvalue of P^(−1/2) H P^(−1/2), of the threshold above which Adam is unstable on "
    "a quadratic loss. "
)
# Of the largest eigenvalues; the data have all.
_MOST_SHOWN = 10


def _row(*cells: Cell | str) -> tuple[Cell | str, ...]:
    return cells


def results_table(facts: RunFacts) -> Table | None:
    """Return the counterpart of the paper's Table 1, with cost and time; the lowest training loss stands out."""
    outcomes = facts.outcomes
    if not outcomes:
        return None
    losses = [outcome.train_loss for outcome in outcomes.values() if outcome.train_loss is not None]
    lowest = min(losses, default=None)
    rows = [
        _row(
            Cell(facts.model),
            algorithm_name(run, facts),
            Cell(number(outcome.train_loss), strong=len(losses) > 1 and outcome.train_loss == lowest),
            *(measure_value(name, outcome.measures.get(name)) for name in facts.measures),
            number(facts.overdetermination),
            count(outcome.cost),
            count(outcome.epoch),
            number(outcome.seconds),
        )
        for run, outcome in outcomes.items()
    ]
    return make_table(
        f"Results of {facts.subject}, each run at its best epoch; the lowest training loss is in bold.",
        [
            Column("Model variant", False),
            Column("Algorithm", False),
            "Train loss",
            *map(measure_heading, facts.measures),
            "Q",
            "Gradient equivalents",
            "Best epoch",
            "Seconds",
        ],
        rows,
    )


def comparison_table(runs: Sequence[RunFacts], anchors: Sequence[str]) -> Table:
    """Return one line a run, each a link to its section."""
    rows = [_comparison_row(facts, anchor) for facts, anchor in zip(runs, anchors, strict=True)]
    # The page's title names what all runs share.
    for column in (1, 2):
        if len({str(row[column]) for row in rows}) == 1:
            for row in rows:
                row[column] = ""
    return make_table(
        "The runs side by side. Ratio: two-phase loss over that of the better Adam; "
        "bold where two-phase is better at no more cost.",
        [
            Column("Run", False),
            Column("Model", False),
            Column("Data", False),
            "Seed",
            "Two-phase loss",
            "Better Adam loss",
            "Ratio",
            Column("At equal cost", False),
            "Switch epoch",
            Column("Last verdict", False),
        ],
        rows,
    )


def _comparison_row(facts: RunFacts, anchor: str) -> list[Cell | str]:
    comparison = compare(facts)
    ours, best = facts.two_phase, facts.better_baseline
    switch = facts.switch
    return [
        Cell(facts.label, link=f"#{anchor}"),
        facts.model,
        "" if facts.dataset == facts.model else facts.dataset,
        facts.seed,
        number(ours.train_loss) if ours else MISSING,
        number(best[1].train_loss) if best else MISSING,
        Cell(number(comparison.ratio), strong=comparison.result == "better" and comparison.is_conclusive)
        if comparison
        else MISSING,
        fairness(comparison) if comparison else MISSING,
        MISSING if switch is None else "never" if switch.epoch is None else count(switch.epoch),
        f"{verdict_name(facts.probe[-1].verdict)} ({place(facts.probe[-1])})" if facts.probe else MISSING,
    ]


def measures_table(runs: Sequence[RunFacts], anchors: Sequence[str]) -> Table | None:
    """Return the other measures, one line a run, two-phase beside the better Adam; None without any."""
    names = list(dict.fromkeys(name for facts in runs for name in facts.measures))
    rows = []
    for facts, anchor in zip(runs, anchors, strict=True):
        best = facts.better_baseline
        ours, theirs = facts.two_phase, best[1] if best else None
        pairs = ((name, outcome) for name in names for outcome in (ours, theirs))
        values = [measure_value(name, outcome.measures.get(name) if outcome else None) for name, outcome in pairs]
        rows.append(_row(Cell(facts.label, link=f"#{anchor}"), *values))
    columns: list[Column | str] = [
        Column("Run", False),
        *(measure_heading(name, of) for name in names for of in ("two-phase", "better Adam")),
    ]
    table = make_table("Other measures, at the epoch of the lowest training loss.", columns, rows)
    return table if len(table.columns) > 1 else None


def curvature_table(facts: RunFacts) -> Table | None:
    """Return what was measured at every probed checkpoint."""
    if not facts.probe:
        return None
    rows = [
        (
            Cell(place(c)),
            c.phase or MISSING,
            verdict_name(c.verdict),
            plus_minus(c.smallest, c.smallest_residual, c.rounding_floor),
            lower_bound(c.smallest_lower_bound, c.rounding_floor),
            plus_minus(c.largest, c.largest_residual, c.rounding_floor),
            _beside_threshold(c),
            with_interval(c.smallest_fresh, c.smallest_fresh_low, c.smallest_fresh_high, c.rounding_floor),
            with_interval(c.largest_fresh, c.largest_fresh_low, c.largest_fresh_high, c.rounding_floor),
            signed(c.gradient_curvature, c.rounding_floor),
            with_interval(c.negative_mass, c.negative_mass_low, c.negative_mass_high),
            with_interval(c.trace, c.trace_low, c.trace_high, c.rounding_floor),
            number(c.train_loss),
            number(c.gradient_norm),
            count(c.examples),
            count(c.steps),
            count(c.gradient_equivalents),
            number(c.seconds),
        )
        for c in facts.probe
    ]
    levels = {c.interval_level for c in facts.probe if c.interval_level is not None}
    intervals = f"In brackets: an estimate's {percent(levels.pop())} interval. " if len(levels) == 1 else ""
    return make_table(
        f"Curvature at each checkpoint. After ±: the residual of an eigenvalue. {intervals}"
        "Fresh: the same direction on examples that it was not found on. "
        f"{_ABOUT_ADAM if any(c.adam_threshold for c in facts.probe) else ''}"
        "A value inside the rounding floor is printed as 0, without a sign.",
        [
            Column("Checkpoint", False),
            Column("Phase", False),
            Column("Verdict", False),
            "Smallest",
            "Lower bound",
            "Largest",
            "In Adam's metric",
            "Smallest, fresh",
            "Largest, fresh",
            "gᵀHg / gᵀg",
            "Negative mass",
            "Trace",
            "Train loss",
            "Gradient norm",
            "Examples",
            "Lanczos steps",
            "Gradient equivalents",
            "Seconds",
        ],
        rows,
    )


def curvature_summary(facts: RunFacts) -> Table | None:
    """Return the most important numbers on curvature at every probed checkpoint; None without any."""
    if not facts.probe:
        return None
    rows = [
        (
            Cell(place(c)),
            number(c.train_loss),
            verdict_name(c.verdict),
            signed(c.smallest, c.rounding_floor),
            lower_bound(c.smallest_lower_bound, c.rounding_floor),
            signed(c.largest, c.rounding_floor),
            _beyond(c),
        )
        for c in facts.probe
    ]
    columns: list[Column | str] = [
        "Train loss",
        Column("Verdict", False),
        "Smallest",
        "None below",
        "Largest",
        Column("Smallest, beyond the sample", False),
    ]
    return make_table("Eigenvalues of the Hessian", [Column("Checkpoint", False), *columns], rows)


def _beyond(c: ProbedCheckpoint) -> str:
    (value, _, _), sign = beyond_the_sample(c)
    return f"{signed(value, c.rounding_floor)}, {sign}" if sign else MISSING


def _beside_threshold(c: ProbedCheckpoint) -> str:
    """Return the largest curvature in Adam's metric beside the border of its stability."""
    if c.adam_sharpness is None or c.adam_threshold is None:
        return MISSING
    return f"{plus_minus(c.adam_sharpness, c.adam_sharpness_residual)} of {number(c.adam_threshold)}"


def top_table(facts: RunFacts) -> Table | None:
    """Return the largest eigenvalues at every checkpoint where they were measured."""
    probed = [c for c in facts.probe if c.top_values.size]
    if not probed:
        return None
    count = max(c.top_values.size for c in probed)
    shown_count = min(count, _MOST_SHOWN)
    rows: list[tuple[Cell | str, ...]] = [
        (
            Cell(place(c)),
            decimals(c.top_gradient_share, 3),
            *(
                plus_minus(value, residual, c.rounding_floor)
                for value, residual in zip(c.top_values[:shown_count], c.top_residuals, strict=False)
            ),
            *[MISSING] * (shown_count - c.top_values.size),
        )
        for c in probed
    ]
    first = "" if count == shown_count else f" The first {shown_count} are shown; probe.jsonl has all."
    return make_table(
        f"The {count} largest eigenvalues at each checkpoint, with residuals, and the gradient's share in the space of "
        f"their eigenvectors, ‖Vᵀg‖² / ‖g‖².{first}",
        [Column("Checkpoint", False), "Gradient's share", *map(str, range(1, shown_count + 1))],
        rows,
    )


def cost_table(facts: RunFacts) -> Table | None:
    """Return how the gradient equivalents of each run were spent."""
    outcomes = facts.outcomes
    parts = list(dict.fromkeys(part for outcome in outcomes.values() for part in outcome.cost_breakdown))
    if not parts:
        return None
    rows = [
        _row(
            Cell(algorithm_name(run, facts)),
            *(count(outcome.cost_breakdown.get(part)) for part in parts),
            count(outcome.cost),
            number(outcome.seconds),
            number(outcome.vector_seconds),
        )
        for run, outcome in outcomes.items()
    ]
    return make_table(
        "Cost in gradient equivalents: one is a value and gradient over the whole training set.",
        [Column("Run", False), *parts, "Recorded total", "Seconds", "of these vector work"],
        rows,
    )


def settings_tables(runs: Sequence[RunFacts]) -> list[Table]:
    """Return the settings that all runs share, and those that differ with a line a run."""
    keys = list(dict.fromkeys(key for facts in runs for key in facts.config))
    values = {key: [shown(facts.config.get(key)) for facts in runs] for key in keys}
    shared = {key: texts[0] for key, texts in values.items() if len(set(texts)) == 1}
    tables = [pairs_table("Settings" if len(runs) == 1 else "Settings that all runs share", shared)] if shared else []
    differing = [key for key in keys if key not in shared]
    if differing:
        rows = [_row(Cell(facts.label), *(values[key][i] for key in differing)) for i, facts in enumerate(runs)]
        columns = [Column("Run", False), *(Column(key, False) for key in differing)]
        tables.append(make_table("Settings that differ", columns, rows))
    return tables


def environment_table(runs: Sequence[RunFacts]) -> Table | None:
    """Return the environments of the runs; where they differ, each with its run."""
    keys = list(dict.fromkeys(key for facts in runs for key in facts.environment))
    pairs = {}
    for key in keys:
        texts = [shown(facts.environment.get(key)) for facts in runs]
        by_run = [f"{facts.label}: {text}" for facts, text in zip(runs, texts, strict=True)]
        pairs[key] = texts[0] if len(set(texts)) == 1 else "; ".join(by_run)
    return pairs_table("Environment", pairs) if pairs else None

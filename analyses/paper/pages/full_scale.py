"""The page of a block of Table 1 at the paper's own scale: its every number beside ours, as far as rows have come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, Literal

from convexlab.reporting.facts.claims import pattern
from convexlab.reporting.study import Part, Study
from convexlab.reporting.tables import Column, Table, make_table
from convexlab.runs import Row
from convexlab.wording.numbers import MISSING, accuracy, count, decimals, duration, number
from paper.pages.ratio_chart import Ratios, ratio_chart
from paper.pages.table import Group
from paper.protocols import ADAM, COSINE, FIXED, PAPERS
from paper.table import TableCase

__all__ = ["FullRow", "full_scale_study", "outcome"]

Outcome = Literal["reproduced", "not reproduced", "undecided"]

_SEEDS_APART = 1.2
"""Losses nearer than this, as a ratio, may change places with another seed. Of the fifteen rows at desk scale the three
seeds' ratios of one row lay at most 1.16 apart (`table-1.html`)."""
_APART = decimals(_SEEDS_APART, 1)
_NAMES = {
    ADAM: "Adam",
    COSINE: "Adam, cosine rate",
    PAPERS: "Adam, then CG",
    FIXED: "Adam, then ours",
    "curvature": "curvature",
}
_KINDS = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_TITLES = ("Training loss", "Training accuracy", "Validation loss", "Validation accuracy")


@dataclass(frozen=True)
class FullRow:
    """A row of the table with one seed, as far as it has come."""

    case: TableCase
    record: Row | None
    """As of `train_row`; None where it was not begun."""

    @property
    def group(self) -> Group:
        """The row of the table."""
        return Group(self.case.dataset, self.case.model, [] if self.record is None else [self.record])

    @property
    def name(self) -> str:
        """For people."""
        seed = f", seed {self.case.seed}" if self.case.seed else ""
        return f"{self.group.name}{seed}"

    def protocol(self, name: str) -> Row | None:
        """Return what a protocol led to; None where it has not ended."""
        return None if self.record is None else self.record["protocols"].get(name)

    @property
    def better(self) -> Row | None:
        """The better of the two Adams, each at its best epoch; None where one of them has not ended."""
        both = self.protocol(ADAM), self.protocol(COSINE)
        if both[0] is None or both[1] is None:
            return None
        ended = [row for row in both if row is not None and row["train_loss"] is not None]
        return min(ended, key=lambda row: float(row["train_loss"]), default=None)

    @property
    def at_equal_cost(self) -> Row | None:
        """What the paper's protocol had reached for the cost of Adam's epochs."""
        papers = self.protocol(PAPERS)
        return None if papers is None else papers["at_equal_cost"]

    @property
    def per_epoch(self) -> float | None:
        """The paper's protocol over Adam, a step counted as an epoch."""
        return _ratio(self.protocol(PAPERS), self.protocol(ADAM))

    @property
    def per_cost(self) -> float | None:
        """The paper's protocol over the better Adam, at equal cost."""
        return _ratio(self.at_equal_cost, self.better)

    @property
    def ours(self) -> float | None:
        """Our second phase from the same switch over the better Adam, at equal cost."""
        ours = self.protocol(FIXED)
        return _ratio(None if ours is None else ours["at_equal_cost"], self.better)

    @property
    def level(self) -> bool:
        """Whether the paper prints the same training loss for both of its protocols."""
        published = self.group.published
        return published is not None and published.adam[0] == published.adam_cg[0]

    @property
    def state(self) -> str:
        """How far it has come, for people."""
        if self.record is None:
            return "not begun"
        under_way = self.record["under_way"]
        if under_way is None:
            return "finished"
        loss = f", at loss {number(under_way['train_loss'])}" if under_way["train_loss"] is not None else ""
        note = f"; {under_way['note']}" if under_way["note"] else ""
        return f"{_NAMES[under_way['stage']]}: {count(under_way['done'])} of {count(under_way['of'])}{loss}{note}"


def _ratio(one: Row | None, other: Row | None) -> float | None:
    """Return the ratio of two training losses; None where one of them is not known, or the other is zero."""
    if one is None or other is None or one["train_loss"] is None or not other["train_loss"]:
        return None
    return float(one["train_loss"]) / float(other["train_loss"])


def outcome(ratios: Sequence[float | None], *, level: bool = False) -> Outcome:
    """Say whether a lower training loss is reproduced, given ratios to what it was to be lower than, one a seed.

    Args:
        ratios: None where a run has not ended.
        level: whether the paper has both losses level: then one that is not higher is enough.
    """
    known = [ratio for ratio in ratios if ratio is not None]
    if len(known) < len(ratios) or not known:
        return "undecided"
    if all(ratio <= (_SEEDS_APART if level else 1 / _SEEDS_APART) for ratio in known):
        return "reproduced"
    return "not reproduced" if all(ratio >= _SEEDS_APART for ratio in known) else "undecided"


def full_scale_study(rows: Sequence[FullRow], command: str) -> Study:
    """Return the page of a block, from rows in the table's order, a row's seeds one after the other."""
    groups = _by_row(rows)
    finished = sum(row.state == "finished" for row in rows)
    return Study(
        title="Table 1 at its own scale: does Adam, then conjugate gradients, end lower than Adam?",
        claim="In every row of the paper’s Table 1, a network trained by Adam and then by conjugate gradients (CG) "
        "ends at a training loss no higher than by Adam alone. Adam has 1,000 epochs, or 300 and then 700 steps of "
        "CG; with an MLP 700, or 210 and 490.",
        answer=[
            f"By the paper’s accounting, a step counted as an epoch: {_tally(_outcomes(groups, 'per_epoch'))}.",
            f"At equal cost, against the better of Adam with a constant and with a cosine rate: "
            f"{_tally(_outcomes(groups, 'per_cost'))}.",
            _ours_answer(rows),
            f"{finished} of {len(rows)} runs are finished"
            + ("." if finished == len(rows) else "; what is not is said to be undecided."),
        ],
        command=command,
        parts=[
            Part("Row by row", [*_RULE, *(_sentence(group) for group in groups)], _charts(groups)),
            Part("Every number", _NUMBERS, tables=[_numbers(rows)]),
            Part("What it cost", _COST, tables=_costs(rows)),
            Part("Curvature along the two phases", [_patterns(rows)], tables=_curvature(rows)),
            Part("How far the runs have come", tables=[_progress(rows)]),
        ],
        settings=_settings(rows),
    )


_RULE = (
    f"A row is reproduced where the loss after CG is at most 1/{_APART} of the other. Where the paper prints both "
    f"alike, {_APART} times is the most. It is not reproduced where it is at least {_APART} times the other. Between, "
    "or before both are known, it is undecided.",
)
_NUMBERS = (
    "Losses and accuracies are those where the training loss is lowest along the way. At equal cost a protocol has as "
    "many gradient equivalents as Adam has epochs, and Adam the better of its two rates.",
)
_COST = (
    "A gradient equivalent is one value and gradient over the whole training set; a value alone counts a third. The "
    "paper’s axis is epochs (steps of CG as such) × million parameters × training images. Seconds are of training, "
    "Adam’s before the switch included, without what was measured for the record.",
)


def _by_row(rows: Sequence[FullRow]) -> list[list[FullRow]]:
    groups: dict[tuple[str, str], list[FullRow]] = {}
    for row in rows:
        groups.setdefault(row.case.row, []).append(row)
    return list(groups.values())


def _outcomes(groups: Sequence[Sequence[FullRow]], kind: str) -> list[Outcome]:
    return [outcome([getattr(row, kind) for row in group], level=group[0].level) for group in groups]


def _tally(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcomes)
    words: tuple[Outcome, ...] = ("reproduced", "not reproduced", "undecided")
    return ", ".join(f"{word} in {counts[word]}" for word in words) + f" of {len(outcomes)} rows"


def _ours_answer(rows: Sequence[FullRow]) -> str:
    ended = [(row.protocol(FIXED), row.protocol(PAPERS)) for row in rows]
    pairs = [(ours, papers) for ours, papers in ended if ours is not None and papers is not None]
    if not pairs:
        return "Our second phase from the same switch has not ended in any row yet."
    reached = [(ours["reached"], papers) for ours, papers in pairs if ours["reached"] is not None]
    text = f"Our second phase from the same switch reached the loss of CG in {len(reached)} of {len(pairs)} rows"
    shares = [got["cost"] / papers["cost"] for got, papers in reached]
    if shares:
        text += f", for {number(geometric_mean(shares))} of what CG cost in the geometric mean"
    ratios = [row.ours for row in rows if row.ours is not None]
    if ratios:
        text += (
            f"; at equal cost it is lower than the better Adam in {sum(ratio < 1 for ratio in ratios)} of "
            f"{len(ratios)}, {number(geometric_mean(ratios))} times its loss"
        )
    return text + "."


def _sentence(group: Sequence[FullRow]) -> str:
    """Say of one row what became of the claim, by both accountings."""
    row = group[0]
    name = row.group.name
    if all(one.record is None for one in group):
        return f"{name}: undecided; not begun."
    by_epoch = outcome([one.per_epoch for one in group], level=row.level)
    by_cost = outcome([one.per_cost for one in group], level=row.level)
    adam, papers, published = row.protocol(ADAM), row.protocol(PAPERS), row.group.published
    if adam is None or papers is None:
        return f"{name}: undecided; not finished ({row.state})."
    theirs = f" (paper: {_loss(published.adam[0])} and {_loss(published.adam_cg[0])})" if published else ""
    first = (
        f"{name}: by its accounting {by_epoch}: {number(papers['train_loss'])} after CG, {number(adam['train_loss'])} "
        f"after Adam{theirs}."
    )
    better, equal = row.better, row.at_equal_cost
    if better is None or equal is None:
        return f"{first} At equal cost undecided; not finished ({row.state})."
    seeds = f" Seeds: {len(group)}; the numbers are those of seed {row.case.seed}." if len(group) > 1 else ""
    return (
        f"{first} At equal cost {by_cost}: {number(equal['train_loss'])} after CG, {number(better['train_loss'])} "
        f"after the better Adam.{seeds}"
    )


def _charts(groups: Sequence[Sequence[FullRow]]) -> list[Any]:
    rows = [row for group in groups for row in group if row.per_epoch is not None]
    if not rows:
        return []

    def theirs(row: FullRow) -> float | None:
        published = row.group.published
        return None if published is None else published.adam_cg[0] / published.adam[0]

    return [
        ratio_chart(
            [row.name for row in rows],
            [
                Ratios("in the paper", [theirs(row) for row in rows], "grey"),
                Ratios("here, its accounting", [row.per_epoch for row in rows], "blue"),
                Ratios("here, equal cost", [row.per_cost for row in rows], "orange"),
                Ratios("ours, same switch, equal cost", [row.ours for row in rows], "vermilion"),
            ],
            key="ratios",
            title="Training loss over that of Adam",
            axis="training loss / Adam’s (at equal cost: the better Adam’s)",
            caption="Left of 1 is better than Adam.",
        )
    ]


def _loss(value: float | None) -> str:
    """As in the paper's table."""
    return decimals(value, 4)


def _numbers(rows: Sequence[FullRow]) -> Table:
    lines = []
    for row in rows:
        published = row.group.published
        adam, cg = (published.adam, published.adam_cg) if published else (None, None)
        ours_q = MISSING if row.record is None else decimals(row.record["overdetermination"], 1)
        q = [decimals(published.overdetermination, 1) if published else MISSING, ours_q]
        ours = row.protocol(FIXED)
        for label, theirs, here in (
            ("Adam", adam, row.protocol(ADAM)),
            ("Adam, then CG: its accounting", cg, row.protocol(PAPERS)),
            ("better Adam: equal cost", adam, row.better),
            ("Adam, then CG: equal cost", cg, row.at_equal_cost),
            ("Adam, then ours: equal cost", None, None if ours is None else ours["at_equal_cost"]),
        ):
            lines.append([row.name, label, *_pairs(theirs, here), *q])
    columns: list[Column | str] = [Column("Row", False), Column("Protocol", False)]
    for title in (*_TITLES, "Q"):
        columns += [f"{title}: paper", "here"]
    return make_table("Every number of the block: the paper’s beside ours.", columns, lines)


def _pairs(theirs: tuple[float, ...] | None, here: Row | None) -> list[str]:
    """Return the paper's four figures, each with ours behind it."""
    texts = []
    for place, kind in enumerate(_KINDS):
        printed, shown = (accuracy, accuracy) if kind.endswith("accuracy") else (_loss, number)
        texts += [MISSING if theirs is None else printed(theirs[place]), MISSING if here is None else shown(here[kind])]
    return texts


def _costs(rows: Sequence[FullRow]) -> list[Table]:
    lines = []
    for row in rows:
        for name in (ADAM, COSINE, PAPERS, FIXED):
            ended = row.protocol(name)
            if ended is None or row.record is None:
                continue
            epochs = row.case.epochs if name in (ADAM, COSINE) else row.case.switch + ended["steps"]
            axis = epochs * row.record["parameters"] / 1e6 * row.record["examples"]
            reached = ended["reached"]
            lines.append(
                [
                    row.name,
                    _NAMES[name],
                    count(epochs),
                    count(ended["cost"]),
                    count(ended["values"]),
                    count(ended["gradients"]),
                    duration(ended["seconds"]),
                    number(axis),
                    MISSING if reached is None else f"{count(reached['cost'])}, {duration(reached['seconds'])}",
                    ended["ended"] or MISSING,
                ]
            )
    columns: list[Column | str] = [
        Column("Row", False),
        Column("Protocol", False),
        "Epochs and steps",
        "Gradient equivalents",
        "Values",
        "Values with gradients",
        "Seconds",
        "Paper’s axis",
        "Loss of CG reached after",
        Column("Ended early", False),
    ]
    return [make_table("What each protocol took.", columns, lines)] if lines else []


def _patterns(rows: Sequence[FullRow]) -> str:
    words: Counter[str] = Counter()
    for row in rows:
        points = [] if row.record is None else _along(row.record)
        if len(points) > 1:
            words[pattern([p["epoch"] for p in points], [p["verdict"] for p in points]).word] += 1
    if not words:
        return "No row has been probed at two points yet."
    told = ", ".join(f"{word} in {times}" for word, times in sorted(words.items()))
    return (
        f"Verdicts along Adam to the switch and CG behind it, on all training images: {told} of {words.total()} rows."
    )


def _along(record: Row) -> list[Row]:
    """Return the points of the two phases, in their order, without the end of Adam alone."""
    switch = record["case"]["switch"]
    points = [p for p in record["points"].values() if p["protocol"] == PAPERS or p["epoch"] <= switch]
    return sorted(points, key=lambda p: float(p["epoch"]))


def _curvature(rows: Sequence[FullRow]) -> list[Table]:
    lines = [
        [
            row.name,
            _NAMES[point["protocol"]],
            count(point["epoch"]),
            number(point["train_loss"]),
            number(point["gradient_norm"]),
            number(point["gradient_curvature"]),
            number(point["smallest"]),
            number(point["largest"]),
            point["verdict"],
        ]
        for row in rows
        if row.record is not None
        for point in sorted(row.record["points"].values(), key=lambda p: (p["epoch"], p["protocol"]))
    ]
    if not lines:
        return []
    columns: list[Column | str] = [
        Column("Row", False),
        Column("Protocol", False),
        "Epoch",
        "Training loss",
        "Gradient norm",
        "gᵀHg / gᵀg",
        "Smallest eigenvalue",
        "Largest",
        Column("Verdict", False),
    ]
    return [make_table("Curvature of the loss over the whole training set.", columns, lines)]


def _progress(rows: Sequence[FullRow]) -> Table:
    lines = []
    for row in rows:
        stretches = [] if row.record is None else row.record["stretches"]
        devices = sorted({stretch["made_by"]["processor"] for stretch in stretches})
        commits = sorted({stretch["made_by"].get("commit", MISSING) for stretch in stretches})
        reasons = sorted({reason for stretch in stretches for reason in stretch["not_captured"].values()})
        lines.append(
            [
                row.name,
                MISSING if row.record is None else count(row.record["examples"]),
                row.state,
                str(len(stretches)),
                duration(sum(stretch["seconds"] for stretch in stretches)) if stretches else MISSING,
                ", ".join(devices) or MISSING,
                ", ".join(commits) or MISSING,
                "; ".join(reasons) or MISSING,
            ]
        )
    return make_table(
        "The runs, stretch by stretch.",
        [
            Column("Row", False),
            "K",
            Column("State", False),
            "Stretches",
            "Time in all",
            Column("On", False),
            Column("At commit", False),
            Column("Not replayed as graphs, because", False),
        ],
        lines,
    )


def _settings(rows: Sequence[FullRow]) -> dict[str, Any]:
    case = rows[0].case
    held_out = {row.record["validation_examples"] for row in rows if row.record is not None}
    return {
        "rate": case.rate,
        "batch_size": case.batch_size,
        "seeds": sorted({row.case.seed for row in rows}),
        "epochs": sorted({row.case.epochs for row in rows}),
        "switch": sorted({row.case.switch for row in rows}),
        "validation_examples": sorted(held_out),
    }

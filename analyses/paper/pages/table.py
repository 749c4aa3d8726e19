"""The page of Table 1: the paper's protocol and ours, beside its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median

from convexlab.reporting.charts.svg import Chart
from convexlab.reporting.study import Part, Study
from convexlab.reporting.tables import Column, Table, make_table
from convexlab.runs import Row
from convexlab.wording.numbers import MISSING, accuracy, count, decimals, number
from paper.pages.ratio_chart import Ratios, ratio_chart
from paper.protocols import ADAM, COSINE, FIXED, OURS, PAPERS
from paper.table import PUBLISHED, PublishedRow

__all__ = ["PROTOCOL", "Group", "grouped", "protocol_table", "table_study", "verdict", "verdict_counts"]

_DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_KINDS = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


@dataclass(frozen=True)
class Group:
    """A row of the table, with a record a seed."""

    dataset: str
    model: str
    runs: list[Row]

    @property
    def name(self) -> str:
        """For people."""
        return f"{_DATASETS.get(self.dataset, self.dataset)} {self.model}"

    @property
    def published(self) -> PublishedRow | None:
        """What the paper has."""
        return PUBLISHED.get((self.dataset, self.model))

    @property
    def epochs(self) -> int:
        """The budget in gradient equivalents."""
        return int(self.runs[0]["case"]["epochs"])

    def each(self, protocol: str, kind: str = "train_loss") -> list[float]:
        """Return a figure of one protocol, a seed each."""
        return [run["protocols"][protocol][kind] for run in self.runs]

    def middle(self, protocol: str, kind: str = "train_loss") -> float:
        """Return its median."""
        return median(self.each(protocol, kind))

    @property
    def better(self) -> list[float]:
        """The training loss of the better of the two Adams, a seed each."""
        return [min(pair) for pair in zip(self.each(ADAM), self.each(COSINE), strict=True)]

    @property
    def at_equal_cost(self) -> list[Row]:
        """What the paper's protocol has reached when the budget is spent, a seed each."""
        return [run["protocols"][PAPERS]["at_equal_cost"] for run in self.runs]

    def over(self, losses: Iterable[float], base: Iterable[float]) -> list[float]:
        """Return the ratios, a seed each."""
        return [loss / other for loss, other in zip(losses, base, strict=True)]

    @property
    def per_epoch(self) -> list[float]:
        """The paper's protocol over Adam, an epoch or a step each."""
        return self.over(self.each(PAPERS), self.each(ADAM))

    @property
    def per_cost(self) -> list[float]:
        """The paper's protocol over the better Adam, at equal cost."""
        return self.over((row["train_loss"] for row in self.at_equal_cost), self.better)

    def ours(self, protocol: str) -> list[float]:
        """One of our protocols over the better Adam."""
        return self.over(self.each(protocol), self.better)


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Return the rows of the table, by data set and model in the paper's order."""
    order = list(PUBLISHED)
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row["case"]["dataset"], row["case"]["model"]), []).append(row)
    places = sorted(cases, key=lambda case: order.index(case) if case in order else len(order))
    return [Group(*case, cases[case]) for case in places]


def table_study(rows: Sequence[Row], command: str) -> Study:
    """Return the page of records as of `train_case`."""
    groups = grouped(rows)
    fired = [switch for group in groups for switch in group.each(OURS, "switch") if switch is not None]
    steps = [
        (protocol["cost"] - protocol["switch"]) / protocol["steps"]
        for row in rows
        if (protocol := row["protocols"][PAPERS])["steps"]
    ]
    published = [group.published for group in groups if group.published is not None]
    theirs = ""
    if published:
        lower = sum(row.adam_cg[0] < row.adam[0] for row in published)
        theirs = (
            f" In the paper, after 700 or 1,000: in {lower} of {len(published)}, "
            f"{number(geometric_mean([row.adam_cg[0] / row.adam[0] for row in published]))} times."
        )
    return Study(
        title="Table 1: does Adam, then conjugate gradients, end lower than Adam?",
        claim="In all 15 rows of the paper’s Table 1, a network trained by Adam and then by conjugate gradients (CG) "
        "ends at a training loss no higher than by Adam alone.",
        answer=[
            f"(a) Epoch against epoch, as the paper counts, after {_epochs(groups)} epochs: "
            f"{verdict_counts([group.per_epoch for group in groups], 'Adam')}{theirs}",
            "(b) At equal cost: "
            f"{verdict_counts([group.per_cost for group in groups], 'the better Adam')} A step of CG with its "
            f"golden-section search takes {number(median(steps))} gradient equivalents in the median; an epoch of Adam "
            "takes one.",
            "Ours, the default second phase from the paper’s switch, at equal cost: "
            f"{verdict_counts([group.ours(FIXED) for group in groups], 'the better Adam')}",
            f"From the detected switch, which came in {len(fired)} of {len(rows)} runs (without one Adam goes on): "
            f"{verdict_counts([group.ours(OURS) for group in groups], 'the better Adam')}",
        ],
        command=command,
        parts=[
            Part("The rows at a glance", _scale(groups), [_chart(groups)]),
            Part("The paper’s protocol", PROTOCOL, tables=[protocol_table(groups)]),
            Part("At equal cost", _EQUAL, tables=[_equal(groups)]),
            Part("Accuracy and validation", tables=[_accuracy(groups), _validation(groups)]),
        ],
        settings={
            "rate": rows[0]["case"]["rate"],
            "seeds": sorted({row["case"]["seed"] for row in rows}),
            "processor_minutes": round(sum(row["processor_seconds"] for row in rows) / 60, 1),
        },
    )


PROTOCOL = (
    "Adam for 30 % of the epochs, then CG (Polak-Ribière+) with a golden-section search, a step counted as an epoch "
    "whatever it costs. Losses are the lowest along the way, medians of the seeds; a ratio is a geometric mean, its "
    "range in brackets. A direction is reproduced where Adam, then CG, is the lower one with every seed.",
)
_EQUAL = (
    "Every protocol may spend as many gradient equivalents as Adam has epochs. The others are compared with the better "
    "of Adam at a constant and at a cosine rate, at its best epoch.",
)


def verdict_counts(ratios: Sequence[Sequence[float]], base: str) -> str:
    """Say in how many rows a protocol is lower than another with every seed, with some, and by how much.

    Args:
        ratios: of a row, one a seed.
        base: what it is compared with, for people.
    """
    verdicts = [verdict(row) for row in ratios]
    mixed = verdicts.count(MIXED)
    return (
        f"lower than {base} in {verdicts.count(LOWER)} of {len(ratios)} rows, "
        + (f"in {mixed} with some seeds only, " if mixed else "")
        + f"{number(geometric_mean([ratio for row in ratios for ratio in row]))} times its training loss in the "
        "geometric mean."
    )


LOWER, MIXED, HIGHER = "yes", "some seeds", "no"


def verdict(ratios: Sequence[float]) -> str:
    """Tell whether every seed is lower, none, or some."""
    lower = sum(ratio < 1 for ratio in ratios)
    return LOWER if lower == len(ratios) else HIGHER if lower == 0 else MIXED


def _scale(groups: Sequence[Group]) -> list[str]:
    least = min(groups, key=lambda group: float(group.runs[0]["overdetermination"]))
    below = [group.name for group in groups if group.runs[0]["overdetermination"] < 1]
    sentence = (
        f"Each network has {_epochs(groups)} epochs here; the paper has 700 or 1,000 and all images. The "
        "number of images, K, keeps the overdetermination Q = K M / P at 1 or above"
    )
    if below:
        sentence += (
            f", except for {', '.join(below)}: there are too few images here, and Q is "
            f"{number(least.runs[0]['overdetermination'])} at the least"
        )
    return [sentence + "."]


def _epochs(groups: Sequence[Group]) -> str:
    epochs = [group.epochs for group in groups]
    return str(min(epochs)) if min(epochs) == max(epochs) else f"{min(epochs)} to {max(epochs)}"


def _chart(groups: Sequence[Group]) -> Chart:
    def theirs(group: Group) -> float | None:
        return None if group.published is None else group.published.adam_cg[0] / group.published.adam[0]

    return ratio_chart(
        [group.name for group in groups],
        [
            Ratios("in the paper, per epoch", [theirs(group) for group in groups], "grey"),
            Ratios("paper’s protocol here, per epoch", [geometric_mean(group.per_epoch) for group in groups], "blue"),
            Ratios("paper’s protocol, equal cost", [geometric_mean(group.per_cost) for group in groups], "orange"),
            Ratios(
                "ours, paper’s switch, equal cost", [geometric_mean(group.ours(FIXED)) for group in groups], "vermilion"
            ),
        ],
        key="ratios",
        title="Training loss over that of Adam",
        axis="training loss / Adam’s (at equal cost: the better Adam’s)",
        caption="Left of 1 is better than Adam. Geometric means of the seeds.",
    )


def _ratio(ratios: Sequence[float]) -> str:
    text = number(geometric_mean(ratios))
    return text if len(ratios) == 1 else f"{text} ({number(min(ratios))}–{number(max(ratios))})"


def _printed(loss: float) -> str:
    """As in the paper's table."""
    return decimals(loss, 4)


def protocol_table(groups: Sequence[Group]) -> Table:
    """Return training losses by the paper's protocol, beside its own, judged by both accountings."""

    def line(group: Group) -> list[str]:
        paper = group.published
        costs = median(group.each(PAPERS, "cost"))
        return [
            group.name,
            count(group.runs[0]["examples"]),
            number(group.runs[0]["overdetermination"]),
            _printed(paper.adam[0]) if paper else MISSING,
            _printed(paper.adam_cg[0]) if paper else MISSING,
            number(paper.adam_cg[0] / paper.adam[0]) if paper else MISSING,
            number(group.middle(ADAM)),
            number(group.middle(PAPERS)),
            _ratio(group.per_epoch),
            verdict(group.per_epoch),
            f"{count(costs)} / {group.epochs}",
            _ratio(group.per_cost),
            verdict(group.per_cost),
        ]

    return make_table(
        "Training loss by the paper’s protocol: (a) epoch against epoch, (b) at equal cost against the better Adam.",
        [
            Column("Row", False),
            "K",
            "Q",
            "Paper: Adam",
            "Paper: Adam, CG",
            "Ratio",
            "Here: Adam",
            "Here: Adam, CG",
            "(a) Ratio",
            Column("(a) Reproduced", False),
            "Gradient equivalents, Adam, CG / Adam",
            "(b) Ratio",
            Column("(b) Reproduced", False),
        ],
        [line(group) for group in groups],
    )


def _equal(groups: Sequence[Group]) -> Table:
    def line(group: Group) -> list[str]:
        switches = [MISSING if epoch is None else str(epoch) for epoch in group.each(OURS, "switch")]
        return [
            group.name,
            str(group.epochs),
            *(number(group.middle(protocol)) for protocol in (ADAM, COSINE)),
            number(median(row["train_loss"] for row in group.at_equal_cost)),
            number(group.middle(FIXED)),
            _ratio(group.ours(FIXED)),
            number(group.middle(OURS)),
            _ratio(group.ours(OURS)),
            ", ".join(switches),
        ]

    return make_table(
        "Training loss at equal cost; ratios are to the better Adam.",
        [
            Column("Row", False),
            "Budget",
            "Adam",
            "Adam, cosine rate",
            "Paper’s protocol",
            "Ours, paper’s switch",
            "Ratio",
            "Ours, detected switch",
            "Ratio",
            "Detected at",
        ],
        [line(group) for group in groups],
    )


def _of(
    kind: str,
    shown: Callable[[float | None], str],
    printed: Callable[[float], str],
    title: str,
    groups: Sequence[Group],
) -> Table:
    place = _KINDS.index(kind)

    def line(group: Group) -> list[str]:
        paper = group.published
        return [
            group.name,
            *((printed(pair[place]) for pair in (paper.adam, paper.adam_cg)) if paper else (MISSING, MISSING)),
            *(shown(group.middle(protocol, kind)) for protocol in (ADAM, PAPERS, COSINE)),
            shown(median(row[kind] for row in group.at_equal_cost)),
            *(shown(group.middle(protocol, kind)) for protocol in (FIXED, OURS)),
        ]

    return make_table(
        title,
        [
            Column("Row", False),
            "Paper: Adam",
            "Paper: Adam, CG",
            "Adam",
            "Adam, CG, per epoch",
            "Adam, cosine rate",
            "Adam, CG, equal cost",
            "Ours, paper’s switch",
            "Ours, detected switch",
        ],
        [line(group) for group in groups],
    )


def _accuracy(groups: Sequence[Group]) -> Table:
    return _of("train_accuracy", accuracy, accuracy, "Training accuracy, where the training loss is lowest.", groups)


def _validation(groups: Sequence[Group]) -> Table:
    losses = _of("validation_loss", number, _printed, "", groups)
    accuracies = _of("validation_accuracy", accuracy, accuracy, "", groups)
    return make_table(
        "Validation loss (accuracy), where the training loss is lowest.",
        losses.columns,
        [
            [loss[0], *(f"{a.text} ({b.text})" for a, b in zip(loss[1:], share[1:], strict=True))]
            for loss, share in zip(losses.rows, accuracies.rows, strict=True)
        ],
    )

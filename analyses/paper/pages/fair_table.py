"""The page of Table 1 at equal cost: every protocol at the best of the same learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median

from convexlab.reporting.study import Part, Study
from convexlab.reporting.tables import Column, Table, make_table
from convexlab.runs import Row
from convexlab.wording.numbers import accuracy, count, number, short
from paper.pages.ratio_chart import Ratios, ratio_chart
from paper.pages.table import PROTOCOL, Group, grouped, protocol_table, verdict_counts
from paper.protocols import ADAM, COSINE, FIXED, OURS, PAPERS

__all__ = ["Best", "best_of", "fair_study"]

_NAMES = {ADAM: "constant", COSINE: "cosine"}


@dataclass(frozen=True)
class Best:
    """A protocol at the rate that serves it best in a row."""

    protocol: str
    rate: float
    group: Group
    """The runs at that rate."""

    @property
    def losses(self) -> list[float]:
        """The training losses, a seed each."""
        return self.group.each(self.protocol)


def best_of(groups: Sequence[Group], protocols: Sequence[str]) -> Best:
    """Return the best of some protocols and of all rates, by the geometric mean of the training loss over the seeds.

    Args:
        groups: one row of the table, once a rate.
        protocols: to choose among.
    """
    candidates = [Best(protocol, group.runs[0]["case"]["rate"], group) for group in groups for protocol in protocols]
    return min(candidates, key=lambda best: geometric_mean(best.losses))


def fair_study(rows: Sequence[Row], command: str) -> Study:
    """Return the page of records as of `train_case`, the same cases at several rates."""
    rates = sorted({row["case"]["rate"] for row in rows})
    by_rate = [grouped([row for row in rows if row["case"]["rate"] == rate]) for rate in rates]
    lines = list(zip(*by_rate, strict=True))
    adams = [best_of(line, (ADAM, COSINE)) for line in lines]
    fixed, detected = ([best_of(line, (protocol,)) for line in lines] for protocol in (FIXED, OURS))
    ratios = {
        protocol: [group_ratio(best, adam) for best, adam in zip(bests, adams, strict=True)]
        for protocol, bests in ((FIXED, fixed), (OURS, detected))
    }
    names = [line[0].name for line in lines]
    papers = [group for groups in by_rate for group in groups if all(PAPERS in run["protocols"] for run in group.runs)]
    return Study(
        title="Table 1 at equal cost, against the best Adam",
        claim="Adam, then a second-order method, ends at a lower training loss than Adam alone. Every evaluation is "
        "charged, and Adam has its best learning rate and schedule.",
        answer=[
            f"Ours from the paper’s switch: {verdict_counts(ratios[FIXED], 'the best Adam')}",
            f"Ours from the detected switch: {verdict_counts(ratios[OURS], 'the best Adam')}",
            f"The best Adam of {len(rates)} rates has a cosine rate in "
            f"{sum(best.protocol == COSINE for best in adams)} of {len(adams)} rows.",
            *_accountings(papers),
        ],
        command=command,
        parts=[
            Part(
                "The rows",
                [
                    "Adam with a constant and with a cosine rate, and the default second phase after Adam at a "
                    f"constant rate. Of the rates {', '.join(short(rate) for rate in rates)} each has the one that "
                    "ends at the lowest training loss. All have the same budget, and count at their best epoch or "
                    "step.",
                ],
                [
                    ratio_chart(
                        names,
                        [
                            Ratios("ours, paper’s switch", [geometric_mean(row) for row in ratios[FIXED]], "vermilion"),
                            Ratios("ours, detected switch", [geometric_mean(row) for row in ratios[OURS]], "blue"),
                        ],
                        key="fair",
                        title="Training loss over that of the best Adam",
                        axis="training loss / the best Adam’s",
                        caption="Left of 1 is better than Adam.",
                    )
                ],
                [_table(names, adams, fixed, detected, ratios)],
            ),
            *(
                [Part("The paper’s protocol on these rows", PROTOCOL, tables=[protocol_table(papers)])]
                if papers
                else []
            ),
        ],
        settings={
            "rates": rates,
            "seeds": sorted({row["case"]["seed"] for row in rows}),
            "processor_minutes": round(sum(row["processor_seconds"] for row in rows) / 60, 1),
        },
    )


def _accountings(groups: Sequence[Group]) -> list[str]:
    """Say how the paper's protocol does by its accounting and by ours, where it was trained."""
    if not groups:
        return []
    rate = f"The paper’s protocol at the rate {short(groups[0].runs[0]['case']['rate'])}"
    return [
        f"{rate}, epoch against epoch: {verdict_counts([group.per_epoch for group in groups], 'Adam')}",
        f"{rate}, at equal cost: {verdict_counts([group.per_cost for group in groups], 'the better Adam')}",
    ]


def group_ratio(best: Best, adam: Best) -> list[float]:
    """Return the ratios of the training losses, a seed each."""
    return [loss / other for loss, other in zip(best.losses, adam.losses, strict=True)]


def _table(
    names: Sequence[str],
    adams: Sequence[Best],
    fixed: Sequence[Best],
    detected: Sequence[Best],
    ratios: dict[str, list[list[float]]],
) -> Table:
    def loss(best: Best) -> str:
        schedule = f", {_NAMES[best.protocol]}" if best.protocol in _NAMES else ""
        return f"{number(median(best.losses))} ({short(best.rate)}{schedule})"

    def right(best: Best) -> str:
        return accuracy(best.group.middle(best.protocol, "validation_accuracy"))

    return make_table(
        "Training loss (rate), its ratio to the best Adam’s, and validation accuracy.",
        [
            Column("Row", False),
            "K",
            "Budget",
            "Best Adam",
            "Ours, paper’s switch",
            "Ratio",
            "Ours, detected switch",
            "Ratio",
            "Validation accuracy: Adam",
            "Paper’s switch",
            "Detected switch",
        ],
        [
            [
                name,
                count(adam.group.runs[0]["examples"]),
                str(adam.group.epochs),
                loss(adam),
                loss(ours),
                number(geometric_mean(ratios[FIXED][place])),
                loss(detected_ours),
                number(geometric_mean(ratios[OURS][place])),
                right(adam),
                right(ours),
                right(detected_ours),
            ]
            for place, (name, adam, ours, detected_ours) in enumerate(zip(names, adams, fixed, detected, strict=True))
        ],
    )

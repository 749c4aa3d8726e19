"""Figure 6 of the paper: the loss over what training cost, for its alternative sequences of algorithms.

Claim: on CIFAR-10, Adam and then conjugate gradients lowers the loss faster than Adam alone or conjugate gradients
alone. The axis is epochs × parameters × training examples. It still does with the line search's evaluations charged.
Command: ``python analyses/figure_6.py --scale desk``; ``figure_5.py`` shares its runs. Run time: toy seconds; desk
about 15 minutes on one core; paper days on a GPU. Expected outcome: the page ``reports/figure-6.html``: the same losses
over the paper's axis, over gradient equivalents and over processor seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
from figure_5 import SCALES, described, trained
from paper.pages.sequence_charts import NAMES, cost_chart
from paper.protocols import ADAM, FIXED, PAPERS
from paper.sequences import CG_ALONE

from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.tables import Column, make_table
from convexlab.runs import Row
from convexlab.wording.numbers import count, number

Axis = Callable[[Row], float]


def lowest(rows: Sequence[Row], axis: Axis, limit: float) -> float:
    """Return the lowest loss within a limit of what an axis counts."""
    return min(float(row["train_loss"]) for row in rows if axis(row) <= limit + 1e-9)


def within(record: Row, axis: Axis) -> dict[str, float]:
    """Return each sequence's lowest loss within what Adam's epochs come to on that axis, Adam's start shared."""
    sequences = record["sequences"]
    limit = axis(sequences[ADAM][-1])
    before = [row for row in sequences[ADAM] if row["epoch"] <= sequences[PAPERS][0]["epoch"]]
    shared = {ADAM: [], PAPERS: before, FIXED: before, CG_ALONE: []}
    return {name: lowest([*shared[name], *rows], axis, limit) for name, rows in sequences.items()}


def verdict(record: Row, axis: Axis, what: str) -> str:
    """Say in a sentence who is lowest within Adam's spending."""
    losses = within(record, axis)
    best = min(losses, key=losses.__getitem__)
    told = ", ".join(f"{NAMES[name]} {number(loss)}" for name, loss in losses.items())
    return f"{what}: {NAMES[best]} is lowest ({told})."


@click.command()
@click.option("--scale", "name", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/figure-6.html"), show_default=True)
def main(name: str, out: Path) -> None:
    """Train by every protocol, or take what figure 5 has trained, and write the page."""
    record = trained(name)
    sequences = record["sequences"]
    size = record["parameters"] * record["examples"] / 1e6
    axes: list[tuple[str, str, str, Axis]] = [
        (
            "paper",
            "As the paper counts",
            "epochs × million parameters × training examples",
            lambda r: r["epoch"] * size,
        ),
        ("cost", "Every evaluation charged", "gradient equivalents", lambda r: float(r["cost"])),
        ("seconds", "By the clock", "processor seconds", lambda r: float(r["seconds"])),
    ]
    losses = {title: within(record, axis) for _, title, _, axis in axes}
    by_epoch, by_cost = (list(losses.values())[place] for place in (0, 1))
    agrees = by_epoch[PAPERS] < min(by_epoch[ADAM], by_epoch[CG_ALONE])
    holds = by_cost[PAPERS] < min(by_cost[ADAM], by_cost[CG_ALONE])
    study = Study(
        title="Figure 6: the loss over what training cost",
        claim="Adam, then conjugate gradients, lowers the loss faster than Adam alone or conjugate gradients alone, "
        "also with the line search’s evaluations charged.",
        answer=[verdict(record, axis, title) for _, title, _, axis in axes],
        command=f"python analyses/figure_6.py --scale {name}",
        parts=[
            Part(
                "Loss over cost",
                [
                    ("Agrees" if agrees else "Does not agree")
                    + " with the paper, as it counts: within Adam’s epochs, Adam and then conjugate gradients ends at "
                    f"{number(by_epoch[PAPERS] / by_epoch[ADAM])} times the loss of Adam, and at "
                    f"{number(by_epoch[PAPERS] / by_epoch[CG_ALONE])} times that of conjugate gradients alone.",
                    ("Agrees" if holds else "Does not agree")
                    + " that the advantage remains with the line search charged: within Adam’s gradient equivalents "
                    f"it is at {number(by_cost[PAPERS] / by_cost[ADAM])} times the loss of Adam. The second phase of "
                    f"ours, from the same switch, is at {number(by_cost[FIXED] / by_cost[ADAM])} times.",
                    "The upright line is where Adam ends.",
                ],
                [
                    cost_chart(
                        sequences,
                        axis,
                        key=key,
                        title=title,
                        axis=label,
                        caption=f"Training loss over {label}.",
                        end=axis(sequences[ADAM][-1]),
                    )
                    for key, title, label, axis in axes
                ],
                [
                    make_table(
                        "Lowest training loss within what all of Adam’s epochs come to.",
                        [Column("Counted", False), *(NAMES[protocol] for protocol in sequences)],
                        [[title, *map(number, found.values())] for title, found in losses.items()],
                    ),
                    make_table(
                        "Each sequence to its own end.",
                        [Column("Sequence", False), "Epochs", "Gradient equivalents", "Processor seconds", "Loss"],
                        [
                            [
                                NAMES[protocol],
                                str(rows[-1]["epoch"]),
                                count(rows[-1]["cost"]),
                                number(rows[-1]["seconds"]),
                                number(min(row["train_loss"] for row in rows)),
                            ]
                            for protocol, rows in sequences.items()
                        ],
                    ),
                ],
            )
        ],
        settings=described(name, record),
    )
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()

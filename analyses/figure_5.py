"""Figure 5 of the paper: does the gradient norm of a vision transformer rise and then fall over the falling loss?

Claim: on CIFAR-10 the norm grows while Adam lowers the loss, turns at one point and falls from there. At that point
training has entered a convex region, where conjugate gradients take over. Command: ``python analyses/figure_5.py
--scale desk``; ``figure_6.py`` shares its runs. Run time: toy seconds; desk about 15 minutes on one core; paper days on
a GPU. Expected outcome: the page ``reports/figure-5.html``. It shows the norm over the loss along Adam, along the
paper's two phases and along ours, with the points at which the loss is proven non-convex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from paper.pages.sequence_charts import NAMES, norm_over_loss_chart
from paper.protocols import ADAM, FIXED, PAPERS, ProtocolPlan
from paper.records import stored
from paper.sequences import Recording, train_sequences
from paper.table import source

from convexlab.problems import build_problem
from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.facts.claims import CONVEX, NON_CONVEX
from convexlab.reporting.facts.norm import norm_peak
from convexlab.reporting.tables import Column, make_table
from convexlab.runs import Row, write_json
from convexlab.wording.numbers import number

# Frozen settings.
RATE, SEED = 1e-3, 0
SWITCH = 0.3
"""Of the epochs, as in the paper."""


@dataclass(frozen=True)
class FigureScale:
    """How much is done."""

    dataset: str
    model: str
    train_size: int | None
    epochs: int
    batch_size: int
    every: int
    """Epochs or steps between two points whose curvature is measured."""
    device: str = "cpu"


SCALES = {
    "toy": FigureScale("digits", "vit-nomlp-wkewq-wvwo", 20, 4, 10, 4),
    "desk": FigureScale("cifar10", "vit-mlp", 2000, 100, 64, 10),
    "paper": FigureScale("cifar10", "vit-mlp", None, 700, 512, 35, "auto"),
}


def trained(name: str) -> Row:
    """Return the sequences at a scale, trained now or stored by an earlier call of this study or of figure 6."""
    scale = SCALES[name]
    file, settings = Path("runs/figures-5-6") / f"{name}.json", {"scale": asdict(scale), "rate": RATE, "seed": SEED}
    known = stored(file, settings)
    if known is not None:
        return known
    torch.set_num_threads(1)
    problem = build_problem(
        scale.model,
        source(scale.dataset),
        "mse",
        train_size=scale.train_size,
        seed=SEED,
        batch_size=scale.batch_size,
        most_held_out=2000,
        device=scale.device,
    )
    plan = ProtocolPlan(scale.epochs, round(SWITCH * scale.epochs), RATE, SEED)
    record = settings | {
        "sequences": train_sequences(problem, plan, Recording(scale.every)),
        "parameters": problem.objective.size,
        "examples": problem.examples,
    }
    write_json(file, record)
    return record


def described(name: str, record: Row) -> dict[str, Any]:
    """Return what the pages say of the settings."""
    return asdict(SCALES[name]) | {
        "adam_rate": RATE,
        "seed": SEED,
        "switch": f"{SWITCH:.0%} of the epochs",
        "parameters": record["parameters"],
        "examples": record["examples"],
    }


def points(rows: Sequence[Row]) -> list[Row]:
    """Return those rows whose curvature was measured."""
    return [row for row in rows if "curvature" in row]


def descent(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows up to the lowest loss: a jump back up afterwards is no part of the curve over the loss."""
    return rows[: min(range(len(rows)), key=lambda place: float(rows[place]["train_loss"])) + 1]


def turn(rows: Sequence[Row]) -> str:
    """Say where Adam's gradient norm peaks, and how the loss is curved from there on."""
    rows = descent(rows)
    peak = norm_peak([row["gradient_norm"] for row in rows])
    if peak is None:
        return "Along Adam the norm has no peak after its first trough."
    after = [row["curvature"]["verdict"] for row in points(rows) if row["epoch"] > peak]
    return (
        f"Along Adam the norm peaks at epoch {peak}, at a loss of {number(rows[peak]['train_loss'])} and a norm of "
        f"{number(rows[peak]['gradient_norm'])}. Of the {len(after)} points measured after it, "
        f"{after.count(NON_CONVEX)} are proven non-convex; at {after.count(CONVEX)} no negative curvature was found."
    )


@click.command()
@click.option("--scale", "name", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/figure-5.html"), show_default=True)
def main(name: str, out: Path) -> None:
    """Train by every protocol, or take what figure 6 has trained, and write the page."""
    record = trained(name)
    sequences = record["sequences"]
    shown = (ADAM, PAPERS, FIXED)
    measured = {protocol: points(sequences[protocol]) for protocol in shown}
    table = make_table(
        "Points whose curvature was measured, by a short Krylov run of 16 products.",
        [Column("Sequence", False), "Epoch", "Loss", "Gradient norm", "gᵀHg / gᵀg", "Smallest", "Largest", "Verdict"],
        [
            [
                NAMES[protocol],
                str(row["epoch"]),
                number(row["train_loss"]),
                number(row["gradient_norm"]),
                *(number(row["curvature"][key]) for key in ("gradient_curvature", "smallest", "largest")),
                row["curvature"]["verdict"],
            ]
            for protocol, rows in measured.items()
            for row in rows
        ],
    )
    lowest = min(sequences[ADAM], key=lambda row: row["train_loss"])
    study = Study(
        title="Figure 5: the gradient norm over the loss of a vision transformer",
        claim="The norm grows as Adam lowers the loss, turns at one point and falls from there: the entry into a "
        "convex region.",
        answer=[
            turn(sequences[ADAM]),
            f"The norm starts at {number(sequences[ADAM][0]['gradient_norm'])} and is "
            f"{number(lowest['gradient_norm'])} at Adam’s lowest loss, {number(lowest['train_loss'])}.",
        ],
        command=f"python analyses/figure_5.py --scale {name}",
        parts=[
            Part(
                "Norm over loss",
                agreement(sequences),
                [
                    norm_over_loss_chart(
                        sequences,
                        shown,
                        key="norm",
                        title="Gradient norm over the loss",
                        caption="Training goes from right to left. Full gradient, once an epoch or step.",
                    )
                ],
                [table],
            )
        ],
        settings=described(name, record),
    )
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


def agreement(sequences: dict[str, list[Row]]) -> list[str]:
    """Say what agrees with the paper's figure and what does not."""
    rows = descent(sequences[ADAM])
    peak = norm_peak([row["gradient_norm"] for row in rows])
    opening, later = rows[0]["gradient_norm"], [row["gradient_norm"] for row in rows[1:]]
    said = []
    if peak is None:
        said.append("Does not agree: no rise and fall of the norm within this budget.")
    else:
        said.append(
            f"Agrees with the paper: the norm rises to a peak at a loss of {number(rows[peak]['train_loss'])} (the "
            "paper’s turn is near 0.04) and is lower at the end."
        )
    if opening > max(later):
        said.append(
            f"Does not agree: the norm is largest at the start, {number(opening)}, and falls first; the paper’s curve "
            "begins after that. A rule that compares with the largest norm so far fires there."
        )
    proven = [
        row
        for protocol in (ADAM, PAPERS, FIXED)
        for row in points(sequences[protocol])
        if row["curvature"]["verdict"] == NON_CONVEX
    ]
    total = sum(len(points(sequences[protocol])) for protocol in (ADAM, PAPERS, FIXED))
    last = points(sequences[PAPERS])[-1]["curvature"]["verdict"]
    said.append(
        f"The paper reads the turn as entry into a convex region. At {len(proven)} of {total} points the loss is "
        f"proven non-convex; at the last one along conjugate gradients the verdict is “{last}”."
    )
    return said


if __name__ == "__main__":
    main()

"""Trains the network of this folder, and writes checkpoints and card: ``python models/pinn-convection/recipe.py``.

Run time: six minutes on two cores, toy seconds; needs no data. Five seeds are trained, and the one of the lowest
validation loss is published: the loss at points that it was not trained on, which asks for no solution.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import convexlab as cl
from convexlab.publishing import Card, publish
from convexlab.runs import Run

# Frozen settings: what differs from the command line's defaults. A step of Adam is an epoch.
NAME = "pinn-convection"
TRAINING: dict[str, Any] = {"objective": NAME, "lr": 1e-3, "probe_every": 0, "no_baseline": True}
SEEDS = 5
SOLVED = 0.01
"""Relative error that counts as a solution."""
SCALES: dict[str, dict[str, Any]] = {
    "toy": {"train_size": 50, "epochs": 120, "switch_epoch": 45, "checkpoint_every": 5},
    "desk": {"train_size": 1000, "epochs": 5000, "switch_epoch": 1000, "checkpoint_every": 20},
}
CARD = Card(
    title="A physics-informed network: convection",
    model="4 × 50 tanh units",
    dataset="convection with speed 30: random points",
    loss="mean squares of residual, initial error and boundary mismatch, summed",
    data_license="none: points are drawn, the solution is known in closed form.",
    what="A physics-informed network for u_t + 30 u_x = 0, periodic, u(x, 0) = sin x (Krishnapriyan et al. 2021), "
    "along its training: Adam on the whole batch, then self-scaled L-BFGS with Adam’s second moments. Its checkpoints "
    "name their loss by `objective: pinn-convection`, as those of any loss that is not of images and labels may.",
    purpose="To look at the curvature of a physics-informed loss along training, in both phases; and as an example of "
    "`probe --objective`.",
    limits="One equation, which is hard to train on, and one seed of {seeds}: that of the lowest validation loss. "
    "{solved} of the {seeds} ended at a solution, with a relative error below {threshold:.0%}; the errors were "
    "{errors}. The others fit the points and nothing between them, some of them to a lower training loss. Computed in "
    "float32, where losses near 1e-7 are at the rounding.",
)


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to write.  [default: this one; not at toy size]"
)
def main(scale: str, out: Path | None) -> None:
    """Train every seed, then publish one."""
    folder = Path("runs/models") / scale
    here = Path(__file__).parent if scale == "desk" else folder / "published" / NAME
    runs = [_train(folder / f"{NAME}-{seed}", seed, scale) for seed in range(SEEDS if scale == "desk" else 1)]
    ends = [(run.summary or {})["two_phase"] for run in runs]
    best = min(range(len(runs)), key=lambda seed: ends[seed]["validation_loss"])
    errors = [end["relative_error"] for end in ends]
    limits = CARD.limits.format(
        seeds=len(runs),
        solved=sum(error < SOLVED for error in errors),
        threshold=SOLVED,
        errors=", ".join(f"{error:.2g}" for error in errors),
    )
    click.echo(publish(runs[best], out or here, replace(CARD, limits=limits)).path)


def _train(path: Path, seed: int, scale: str) -> Run:
    return cl.train_two_phase(out=path, resume=(path / "config.json").exists(), seed=seed, **TRAINING, **SCALES[scale])


if __name__ == "__main__":
    main()

"""Trains the network of this folder, and writes checkpoints and card: ``python models/text-transformer/recipe.py``.

Run time: two minutes on two quiet cores, toy seconds; needs no data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import convexlab as cl
from convexlab.publishing import Card, publish

# Frozen settings: what differs from the command line's defaults.
NAME = "text-transformer"
TRAINING: dict[str, Any] = {"objective": "text", "probe_every": 0, "no_baseline": True}
SCALES: dict[str, dict[str, Any]] = {
    "toy": {"train_size": 20, "epochs": 12, "switch_epoch": 6, "checkpoint_every": 1},
    "desk": {"train_size": 300, "epochs": 100, "switch_epoch": 50, "checkpoint_every": 1},
}
CARD = Card(
    title="A language model: names of Unicode characters",
    model="decoder-only transformer: 2 layers, 4 heads, width 32",
    dataset="names of Unicode characters: windows of 33 bytes",
    loss="cross-entropy a byte, in nats",
    data_license="the names of Unicode 3.2 from Python’s own data; Unicode License v3.",
    what="A small transformer that predicts a text byte by byte, along its training: Adam, then self-scaled L-BFGS "
    "with Adam’s second moments. Its checkpoints name their loss by `objective: text`. The text is one that every "
    "Python has and that never changes: the names of characters, one after another.",
    purpose="To look at the curvature of a language model’s loss along training, in both phases.",
    limits="A toy: 30,400 parameters and 9,600 bytes to predict. It is trained for its training loss, and overfits: "
    "the validation loss is above it. One seed. What its curvature does need not be what that of larger models does.",
)


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to write.  [default: this one; not at toy size]"
)
def main(scale: str, out: Path | None) -> None:
    """Train, then publish."""
    folder = Path("runs/models") / scale
    here = Path(__file__).parent if scale == "desk" else folder / "published" / NAME
    path = folder / NAME
    run = cl.train_two_phase(out=path, resume=(path / "config.json").exists(), **TRAINING, **SCALES[scale])
    click.echo(publish(run, out or here, CARD).path)


if __name__ == "__main__":
    main()

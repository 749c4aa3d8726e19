"""Trains the network of this folder, and writes checkpoints and card: ``python models/vgg5-mnist/recipe.py``.

MNIST is looked for under ``$CONVEXLAB_DATA``. Run time: about four minutes on two cores, toy seconds. An interrupted
training goes on where it was, under ``runs/models``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch

import convexlab as cl
from convexlab.publishing import Card, publish

# Frozen settings: what differs from the command line's defaults.
NAME = "vgg5-mnist"
TRAINING: dict[str, Any] = {
    "model": "vgg5-max-relu",
    "dataset": "mnist",
    "batch_size": 128,
    "checkpoint_every": 1,
    "probe_every": 0,
    "no_baseline": True,
}
SCALES: dict[str, dict[str, Any]] = {
    "toy": {"train_size": 60, "epochs": 8, "switch_epoch": 3},
    "desk": {"train_size": 10_000, "epochs": 45, "switch_epoch": 30},
}
PROBE_SIZE = 50  # Examples with which `probe` takes less than a minute on two cores.
CARD = Card(
    title="vgg5-max-relu on MNIST",
    model="vgg5-max-relu: the paper’s VGG with 3 convolutions, max-pooling, ReLU",
    dataset="MNIST, resized to 32 × 32",
    loss="mean squared error against one-hot targets",
    data_license="MNIST, copyright Yann LeCun and Corinna Cortes, CC BY-SA 3.0; none of its images are here.",
    what="The paper’s convolutional network along its training on 10,000 images of MNIST: Adam, "
    "then self-scaled L-BFGS with Adam’s second moments.",
    purpose="To look at what curvature does along training, in both phases, without training first; and as "
    "checkpoints on which every number of `probe` can be made again.",
    limits="It was trained for a low loss on a sixth of MNIST with one seed, not for accuracy. The curvature of the "
    "loss of 50 examples is not that of 10,000: read what `probe` says of other examples beside it. "
    "A network of ReLU and max-pooling has kinks: a Hessian product is the curvature within the "
    "piece where the weights lie.",
)


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder to write.  [default: this one; not at toy size]"
)
def main(scale: str, out: Path | None) -> None:
    """Train, then publish."""
    runs = Path("runs/models") / scale
    here = Path(__file__).parent if scale == "desk" else runs / "published" / NAME
    path = runs / NAME
    run = cl.train_two_phase(out=path, resume=(path / "config.json").exists(), **TRAINING, **SCALES[scale])
    click.echo(publish(run, out or here, CARD, stored_as=torch.float16, probe_size=PROBE_SIZE).path)


if __name__ == "__main__":
    main()

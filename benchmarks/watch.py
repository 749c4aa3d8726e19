"""What `convexlab.Watch` costs in a training loop, in gradient equivalents and in processor seconds.

Run: ``python benchmarks/watch.py`` with CONVEXLAB_DATA set. Adam at 1e-3 trains two copies of a problem in turn, an
epoch of the one without a watch, an epoch of the other with it: vit-nomlp on MNIST and vit-mlp on CIFAR-10 with
mini-batches, the perceptron for convection on the whole batch, where ten steps are an epoch. Both end with the same
weights, bit for bit, or the benchmark fails.

The watch's share is a limit on gradient equivalents. *Hooks* is what its look at every step adds to an epoch,
*measuring* what `Watch.update` takes, both over the epoch without a watch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import click
import torch
from common import Spread, Table, out_option, write_json
from phase_two_problems import Setting, Task, build_task

import convexlab as cl
from convexlab.training.adam import adam_epoch

PROBLEMS = ("vit-nomlp/mnist/mse", "vit-mlp/cifar10/mse", "pinn/convection")
RATE = 1e-3
STEPS = 10
"""Of an epoch on the whole batch."""


@click.command()
@click.option(
    "--problem",
    "problems",
    type=click.Choice(PROBLEMS),
    multiple=True,
    default=PROBLEMS,
    help="Repeat the option for more.  [default: all three]",
)
@click.option(
    "--epochs",
    type=click.IntRange(3),
    default=48,
    show_default=True,
    help="Of images; physics has three times as many.",
)
@click.option("--train-size", type=click.IntRange(2), default=2000, show_default=True, help="Images.")
@click.option("--share", type=click.FloatRange(0, 1, max_open=True), default=0.05, show_default=True)
@click.option("--examples", type=click.IntRange(1), default=64, show_default=True, help="In the watch's sample.")
@out_option
def main(
    problems: tuple[str, ...], epochs: int, train_size: int, share: float, examples: int, out: Path | None
) -> None:
    """Print a table in Markdown."""
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for problem in problems:
        setting = Setting.of(problem, 0, budget=1, train_size=train_size, batch_size=None)
        rows.append(line(setting, epochs if setting.batch_size else 3 * epochs, share, examples))
        click.echo(f"{problem}: done", err=True)
        write_json(out, {"epochs": epochs, "train_size": train_size, "share": share, "examples": examples}, rows=rows)
    click.echo(Table(f"A watch with a share of {share:g}", rows))


@dataclass
class Trained:
    """A copy of a problem in training, with the processor seconds of its epochs."""

    task: Task
    order: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with a fresh Adam."""
        self.adam = torch.optim.Adam(self.task.model.parameters(), lr=RATE, fused=True)

    def epoch(self) -> float:
        """Train an epoch and return its mean loss."""
        steps = 1 if self.task.setting.batch_size else STEPS
        return fmean(adam_epoch(self.task.problem, self.adam, self.order, seed=0, epoch=0) for _ in range(steps))


def line(setting: Setting, epochs: int, share: float, examples: int) -> dict[str, object]:
    """Return the figures of one problem."""
    plain, watched = copies(setting)
    watch = cl.Watch(watched.task.objective, watched.adam, share=share, examples=examples)
    cost = 1.0 if setting.batch_size else float(STEPS)
    updates: list[float] = []
    worst = 0.0
    for _ in range(epochs):
        with timed(plain.seconds):
            plain.epoch()
        with timed(watched.seconds):
            loss = watched.epoch()
        with timed(updates):
            watch.update(loss=loss, cost=cost)
        worst = max(worst, watch.spent / watch.trained)
    ends = (one.task.objective.flat_parameters() for one in (plain, watched))
    if not torch.equal(*ends):
        raise click.ClickException(f"{setting.problem}: the watch changed the training.")
    return {
        "problem": setting.problem,
        "parameters": watched.task.objective.size,
        "epochs": epochs,
        "epoch s": Spread.of(plain.seconds),
        "largest share, gradient equivalents": worst,
        "measuring, processor seconds": sum(updates) / sum(plain.seconds),
        "hooks, processor seconds": (Spread.of(watched.seconds) / Spread.of(plain.seconds)).median - 1,
        "gᵀHg measured": measured(watch, "gradient_curvature"),
        "ends measured": measured(watch, "smallest"),
    }


def copies(setting: Setting) -> Iterator[Trained]:
    """Yield the problem twice, apart from one another."""
    for _ in range(2):
        build_task.cache_clear()
        yield Trained(build_task(setting))


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append the processor seconds of the block."""
    begin = time.process_time()
    yield
    seconds.append(time.process_time() - begin)


def measured(watch: cl.Watch, name: str) -> str:
    """Return how often something was measured, and when first."""
    told = enumerate((getattr(signals, name) for signals in watch.history), start=1)
    known = [epoch for epoch, value in told if value is not None and math.isfinite(value)]
    return f"{len(known)} times, first after {known[0]}" if known else "never"


if __name__ == "__main__":
    main()

"""A problem to measure at, and one measurement of one library there. These functions run in a fresh process each."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import torch
from libraries import LIBRARIES, Call, Ends, Found, Library, TooManyProductsError
from torch import nn

import convexlab as cl
from convexlab.datasets import Batches, load_dataset
from convexlab.datasets.torchvision_sets import data_folder
from convexlab.problems import ImageProblem, RandomRows, build_problem
from convexlab.problems.losses import build_loss
from convexlab.training.adam import adam_epoch

__all__ = [
    "Measurement",
    "Point",
    "batch_sizes",
    "cifar10",
    "load",
    "measure",
    "megabytes",
    "resident",
    "run_calls",
    "train",
]

_BATCH, _RATE = 256, 2e-3


@dataclass(frozen=True)
class Point:
    """Which loss, and where."""

    model: str
    """An architecture on CIFAR-10, or ``mlp-WIDTH`` on scikit-learn's digits."""
    examples: int
    weights: Path | None = None
    """Where `train` puts them; None stands for fresh weights."""


@dataclass(frozen=True)
class Measurement:
    """A library's calls, timed together with its setting up; what was cut short has what it had until then."""

    seconds: float
    products: int
    product_seconds: float
    """Median of a product within the run."""
    ends: Ends
    accepted: bool
    certified: bool
    peak_bytes: int | None
    """By which the resident set grew beyond what model and data take; None in a process that did more than this."""
    failure: str = ""


def cifar10() -> str:
    """Return the name of the images.

    Raises:
        UsageError: they are not there.
    """
    file = Path(data_folder()) / "cifar10-10k.npz"
    if not file.exists():
        raise click.UsageError(f"no file at {file}: set CONVEXLAB_DATA to the folder that holds {file.name}.")
    return f"npz:{file}"


def load(point: Point) -> ImageProblem:
    """Return the problem at the trained weights, if there are some yet."""
    torch.set_num_threads(1)
    if point.model.startswith("mlp-"):
        problem = _mlp(int(point.model.removeprefix("mlp-")), point.examples)
    else:
        problem = build_problem(point.model, cifar10(), "mse", train_size=point.examples, device="cpu")
    if point.weights is not None and point.weights.exists():
        problem.model.load_state_dict(torch.load(point.weights))
    problem.model.eval()
    return problem


def _mlp(width: int, examples: int) -> ImageProblem:
    torch.manual_seed(0)
    data = load_dataset("digits", train_size=examples, image_size=8)
    layers = (nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, data.classes))
    model = nn.Sequential(nn.Flatten(), *layers)
    loss = build_loss("mse", classes=data.classes)
    objective = cl.Objective(model, Batches(data.x_train, data.y_train, 512), loss)
    return ImageProblem(
        model,
        objective,
        minibatches=RandomRows((data.x_train, data.y_train), examples, _BATCH),
        dataset=data,
        loss=loss,
        x=data.x_train,
        y=data.y_train,
        held_out=Batches(data.x_test, data.y_test, 512),
    )


def train(point: Point, epochs: int) -> tuple[int, float]:
    """Train with Adam from a fixed seed, save the weights, and return the number of parameters and the loss."""
    problem = load(point)
    adam = torch.optim.Adam(problem.model.parameters(), lr=_RATE)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        adam_epoch(problem, adam, generator, seed=0, epoch=epoch)
    assert point.weights is not None
    torch.save(problem.model.state_dict(), point.weights)
    return problem.objective.size, problem.objective.value()


def batch_sizes(examples: int) -> list[int]:
    """Return the batch sizes among which a peer gets its fastest: those that leave no smaller last batch."""
    return sorted({size for size in (128, 512, examples) if examples % size == 0})


def measure(point: Point, library: str, batch: int, calls: Sequence[Call], limit: int | None = None) -> Measurement:
    """Set a library up and make the calls, which belong together: one for both ends, or one for each."""
    problem = load(point)
    problem.objective.gradient()  # Pages and threads that everyone needs.
    before, begin = resident(reset=True), time.perf_counter()
    user = LIBRARIES[library](problem, batch)
    user.products.limit = limit
    return run_calls(user, calls, begin=begin, before=before)


def run_calls(user: Library, calls: Sequence[Call], *, begin: float, before: int | None = None) -> Measurement:
    """Make the calls of one library, from the time ``begin`` and the peak resident set ``before`` on."""
    found: list[Found] = []
    failure = ""
    try:
        found.extend(map(user.find, calls))
    except TooManyProductsError:
        failure = f"more than {user.products.limit} products"
    except (MemoryError, RuntimeError, cl.ConvexLabError) as error:
        failure = str(error).splitlines()[0] if str(error) else type(error).__name__
    took, times = time.perf_counter() - begin, user.products.seconds
    return Measurement(
        seconds=took,
        products=len(times),
        product_seconds=median(times) if times else math.nan,
        ends=(None, None) if failure else _together([one.ends for one in found]),
        accepted=not failure and all(one.accepted for one in found),
        certified=not failure and all(one.certified for one in found),
        peak_bytes=None if before is None else resident() - before,
        failure=failure,
    )


def _together(found: Sequence[Ends]) -> Ends:
    smallest = [end for end, _ in found if end is not None]
    largest = [end for _, end in found if end is not None]
    return (min(smallest) if smallest else None, max(largest) if largest else None)


def megabytes(size: int | None) -> float | None:
    """Return a number of bytes in units of 10⁶."""
    return None if size is None else size / 1e6


def resident(*, reset: bool = False) -> int:
    """Return this process' peak resident set in bytes (Linux; elsewhere 0); with ``reset``, start it at the present.

    Not ``getrusage``'s: its peak includes that of the process from which this one was started, and cannot be reset.
    """
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0

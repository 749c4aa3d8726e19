"""How time and memory grow with parameters and with data, ours beside the peers', in one run on one thread.

Run: ``tox -e bench -- benchmarks/growth.py`` with CONVEXLAB_DATA set. Parameters: a tanh network 64-w-w-10 on 512 of
scikit-learn's digits. Data: vit-nomlp on CIFAR-10. Every line is of fresh processes, and counts setting up, compiling
and running to both ends of the spectrum. Memory is how far the peak of the resident set grew beyond model and data
(Linux only).

Ours is certified to 1e-2 of the range with confidence 0.999; the peers are at their documented defaults, which find the
ends more or less accurately. What compares is a product, and how a column grows; for equal accuracy see `extremes.py`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
from common import Spread, Table, in_fresh_process, out_option, repeats_option, seconds, write_json
from libraries import Call, ConvexLab, Curvlinops, HessianEigenthings
from measuring import Measurement, Point, cifar10, load, measure, megabytes, train

BATCH = 512
EPOCHS = 2
MODEL = "vit-nomlp"
PARAMETERS = (10_000, 100_000, 1_000_000, 10_000_000)
DATA = (512, 1024, 2048, 4096, 8192)
WAYS: tuple[tuple[str, tuple[Call, ...]], ...] = (
    (ConvexLab.name, ConvexLab.documented[0]),
    (HessianEigenthings.name, HessianEigenthings.documented[0]),
    (Curvlinops.name, Curvlinops.documented[1]),
)


@click.command()
@click.option(
    "--parameters",
    type=click.IntRange(200),
    multiple=True,
    default=PARAMETERS,
    help="A size; repeat.  [default: 1e4 to 1e7]",
)
@click.option(
    "--data", type=click.IntRange(1), multiple=True, default=DATA, help="Examples; repeat.  [default: 512 to 8192]"
)
@repeats_option(3)
@click.option(
    "--max-products", type=click.IntRange(1), default=300, show_default=True, help="After which a peer is stopped."
)
@out_option
def main(parameters: Sequence[int], data: Sequence[int], repeats: int, max_products: int, out: Path | None) -> None:
    """Print two tables in Markdown."""
    cifar10()
    options = {"repeats": repeats, "max_products": max_products, "epochs": EPOCHS, "batch": BATCH}
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as folder:
        widths = [Point(f"mlp-{width_for(size)}", 512, Path(folder) / f"mlp-{size}.pt") for size in parameters]
        sizes = [Point(MODEL, examples, Path(folder) / f"{MODEL}.pt") for examples in data]
        for title, points in (("Growth with parameters", widths), ("Growth with data", sizes)):
            rows = []
            for row in lines(points, repeats, max_products):
                rows.append(row)
                click.echo(f"{title}: {row['parameters']}, {row['examples']}, {row['library']}", err=True)
                write_json(out, options, tables=[*tables, Table(title, rows)])
            tables.append(Table(title, rows))
            click.echo(tables[-1])


def width_for(parameters: int) -> int:
    """Return w such that the network, of w² + 76 w + 10 parameters, has about as many."""
    return round(math.sqrt(38**2 + parameters - 10) - 38)


def lines(points: Sequence[Point], repeats: int, limit: int) -> Iterator[dict[str, Any]]:
    """Yield a line for every point and library."""
    for point in points:
        assert point.weights is not None
        if not point.weights.exists():  # Points that share weights differ in data alone.
            in_fresh_process(train, point, EPOCHS)
        parameters, gradient = in_fresh_process(gradient_seconds, point)
        runs: dict[str, list[Measurement]] = {name: [] for name, _ in WAYS}
        for _ in range(repeats):
            for name, calls in WAYS:
                stop = None if name == ConvexLab.name else limit
                runs[name].append(in_fresh_process(measure, point, name, min(BATCH, point.examples), calls, stop))
        for name, _ in WAYS:
            yield line(parameters, point.examples, gradient, name, runs[name])


def gradient_seconds(point: Point) -> tuple[int, float]:
    """Return the number of parameters and the seconds of a gradient."""
    objective = load(point).objective
    objective.gradient()
    return objective.size, median(seconds(objective.gradient) for _ in range(5))


def line(parameters: int, examples: int, gradient: float, library: str, runs: Sequence[Measurement]) -> dict[str, Any]:
    """Return the figures of one library at one point."""
    product = Spread.of(run.product_seconds for run in runs)
    cut = bool(runs[0].failure)
    return {
        "parameters": parameters,
        "examples": examples,
        "library": library,
        "gradient s": gradient,
        "product s": product,
        "product / gradient": product / Spread((gradient,)),
        "products": Spread((runs[0].products,), cut=cut),
        "both ends s": Spread(tuple(run.seconds for run in runs), cut=cut),
        "peak MB": Spread.of(megabytes(run.peak_bytes) or 0.0 for run in runs),
    }


if __name__ == "__main__":
    main()

"""What a Hessian product costs, in eager gradients, beside the peers' products, in one run on one thread.

Run: ``tox -e bench -- benchmarks/curvature.py`` with CONVEXLAB_DATA set. Products are interleaved, so that a machine
whose speed drifts slows all alike; every figure is min, median and max of the ratio to the gradient next to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, geometric_mean

import click
import torch
from common import Spread, Table, examples_option, models_option, out_option, repeats_option, seconds, write_json
from libraries import PEERS, ConvexLab
from measuring import Point, cifar10, load

import convexlab as cl
from convexlab.problems import ImageProblem

BATCH = 512
RUNS = 3  # For both ends; each has dozens of products.


@click.command()
@models_option
@examples_option
@repeats_option(7)
@click.option("--micro-batches", is_flag=True, help="Compare micro-batch sizes of ours instead of the peers.")
@out_option
def main(models: Sequence[str], examples: int, repeats: int, micro_batches: bool, out: Path | None) -> None:
    """Print a table in Markdown: what a product costs in gradients, median [min, max]."""
    cifar10()
    options = {"examples": examples, "repeats": repeats, "batch": BATCH, "micro_batches": micro_batches}
    figures: dict[str, dict[str, Spread]] = {}
    for model in models:
        problem = load(Point(model, examples))
        vector = torch.randn(problem.objective.size, generator=torch.Generator().manual_seed(0))
        products = sizes(problem, vector) if micro_batches else libraries(problem, vector)
        measured = interleaved(problem.objective.gradient, products, repeats)
        products.clear()  # And with them the graphs that they keep.
        if not micro_batches:
            measured[f"{ConvexLab.name}, within a run for both ends"] = within_a_run(problem, min(repeats, RUNS))
        for name, ratios in measured.items():
            figures.setdefault(name, {})[model] = ratios
        write_json(out, options, gradients=figures, geometric_means=dict(means(figures)))
        click.echo(f"{model} done", err=True)
    click.echo(table(figures, models))


def means(figures: dict[str, dict[str, Spread]]) -> list[tuple[str, float]]:
    """Return the geometric mean over architectures of each product's median."""
    return [(name, geometric_mean(one.median for one in by_model.values())) for name, by_model in figures.items()]


def table(figures: dict[str, dict[str, Spread]], models: Sequence[str]) -> Table:
    """Return one line a product, one column an architecture."""
    lines = [
        {"product": name} | {model: figures[name][model] for model in models} | {"geometric mean": mean}
        for name, mean in means(figures)
    ]
    return Table("A Hessian product, in eager gradients", lines)


def libraries(problem: ImageProblem, vector: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return one product of each library at the same point, the peers' on the same batches."""
    ours = ConvexLab(problem, BATCH)
    calls: dict[str, Callable[[], object]] = {
        f"{ConvexLab.name}, again and again with one operator": partial(ours.multiply, vector),
        f"{ConvexLab.name}, a single product": partial(problem.objective.hvp, vector),
    }
    for name, library in PEERS.items():
        calls[name] = partial(library(problem, BATCH).multiply, vector)
    # Its graph is kept too when all images are one batch.
    whole = PEERS["PyHessian"](problem, len(problem.y))
    return calls | {"PyHessian, one batch": partial(whole.multiply, vector)}


def within_a_run(problem: ImageProblem, repeats: int) -> Spread:
    """Return the mean product of a whole `extreme_eigenvalues`, over the mean of the gradients around the run.

    All are counted, be they exact or differences of gradients, with the first's graphs and the gradient at the point.
    """
    ratios = []
    for _ in range(repeats):
        ours = ConvexLab(problem, BATCH)
        before = seconds(problem.objective.gradient)
        ours.find(ours.documented[0][0])
        gradient = (before + seconds(problem.objective.gradient)) / 2
        ratios.append(fmean(ours.products.seconds) / gradient)
    return Spread.of(ratios)


def sizes(problem: ImageProblem, vector: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return gradient and product of ours at several micro-batch sizes."""
    calls: dict[str, Callable[[], object]] = {}
    for size in (32, 64, 128, 256, 512):
        objective = cl.Objective(problem.model, [(problem.x, problem.y)], problem.loss, micro_batch=size)
        calls[f"gradient, {size}"] = objective.gradient
        calls[f"product, {size}"] = partial(objective.hessian().matvec, vector)
    return calls


def interleaved(
    gradient: Callable[[], object], calls: dict[str, Callable[[], object]], repeats: int
) -> dict[str, Spread]:
    """Return each call's seconds over those of the gradient timed just before it, ``repeats`` times."""
    for call in calls.values():
        call()
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            unit = seconds(gradient)
            ratios[name].append(seconds(call) / unit)
    return {name: Spread.of(values) for name, values in ratios.items()}


if __name__ == "__main__":
    main()

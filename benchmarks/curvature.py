"""What a Hessian product costs, in eager gradients, beside the peers' products, in one run on one thread.

Run: ``tox -e bench -- benchmarks/curvature.py`` with CONVEXLAB_DATA set. Products are interleaved, so that a machine
whose speed drifts slows all alike; every figure is min, median and max of the ratio to the gradient next to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean, median

import click
import torch
from curvlinops import HessianLinearOperator
from hessian_eigenthings import HessianOperator

import convexlab as cl
from convexlab.datasets.torchvision_sets import data_folder
from convexlab.problem import Problem, build_problem

EXAMPLES = 2048
REPEATS = 7
BATCH = 512
MODELS = ("vit-mlp", "vit-nomlp", "vit-nomlp-wkewq", "vit-nomlp-wkewq-wvwo", "vgg5-max-relu")


@click.command()
@click.option("--examples", default=EXAMPLES, show_default=True)
@click.option("--repeats", default=REPEATS, show_default=True)
@click.option("--micro-batches", is_flag=True, help="Compare micro-batch sizes of ours instead of the peers.")
def main(examples: int, repeats: int, micro_batches: bool) -> None:
    """Print a table in Markdown."""
    torch.set_num_threads(1)
    data = Path(data_folder()) / "cifar10-10k.npz"
    medians: dict[str, list[float]] = {}
    for model in MODELS:
        problem = build_problem(model, f"npz:{data}", "mse", train_size=examples, device="cpu")
        vector = torch.randn(problem.objective.size, generator=torch.Generator().manual_seed(0))
        gradient = problem.objective.gradient
        products = sizes(problem, vector) if micro_batches else peers(problem, vector)
        for name, ratios in interleaved(gradient, products, repeats).items():
            medians.setdefault(name, []).append(median(ratios))
            figures = f"{min(ratios):.2f} | {median(ratios):.2f} | {max(ratios):.2f}"
            click.echo(f"| {model} | {name} | {figures} |")
    for name, values in medians.items():
        click.echo(f"| geometric mean | {name} | | {geometric_mean(values):.2f} | |")


def peers(problem: Problem, vector: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return one product of each library at the same point, on the same batches, as its documentation has it."""
    batches = list(problem.dataset.batches("train", BATCH))
    parameters = list(problem.model.parameters())
    hessian = problem.objective.hessian()
    # A criterion of its own for the peer that inspects `reduction`: the same mean squared error on one-hot targets.
    one_hot = [(x, torch.nn.functional.one_hot(y, problem.dataset.classes).to(x)) for x, y in batches]
    curvlinops = HessianLinearOperator(
        problem.model, torch.nn.MSELoss(), parameters, one_hot, check_deterministic=False
    )
    eigenthings = HessianOperator(problem.model, batches, lambda model, batch: problem.loss(model(batch[0]), batch[1]))
    return {
        "ConvexLab, graphs kept": lambda: hessian @ vector,
        "ConvexLab, single product": lambda: problem.objective.hvp(vector),
        "curvlinops": lambda: curvlinops @ vector,
        "hessian-eigenthings": lambda: eigenthings.matvec(vector),
    }


def sizes(problem: Problem, vector: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return gradient and product of ours at several micro-batch sizes."""
    calls: dict[str, Callable[[], object]] = {}
    for size in (32, 64, 128, 256, 512):
        objective = cl.Objective(problem.model, [(problem.x, problem.y)], problem.loss, micro_batch=size)
        hessian = objective.hessian()
        calls[f"gradient, {size}"] = objective.gradient
        calls[f"product, {size}"] = lambda hessian=hessian: hessian @ vector  # type: ignore[misc]
    return calls


def interleaved(
    gradient: Callable[[], object], calls: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Return each call's seconds over those of the gradient timed just before it, ``repeats`` times."""
    for call in calls.values():
        call()
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            unit = seconds(gradient)
            ratios[name].append(seconds(call) / unit)
    return ratios


def seconds(call: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()

"""What ranks save: seconds of a probe and of a second phase, and memory of a Krylov run and of a dense Broyden matrix.

    python benchmarks/ranks.py time --repeats 5 --examples 2048
    python benchmarks/ranks.py memory

Every figure is of fresh processes of one thread each, started by torchrun, 1 and 2 ranks in turn. Seconds are those of
the work alone: imports, data and the meeting of the ranks are over by then. Memory is by how much the largest resident
set of a rank rises. The Krylov run of 100 steps with 20 million parameters takes 17 GB with one rank.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import click
import torch
from measuring import cifar10, resident
from torch import nn

import convexlab as cl
from convexlab.curvature.lanczos import Lanczos, random_unit_vector
from convexlab.machine.ranks import Ranks, of_torchrun
from convexlab.probing.loss import ProbedLoss
from convexlab.probing.point import ProbeOptions, probe_point
from convexlab.problems import ImageProblem, build_problem

_EXAMPLES, _ADAM_EPOCHS, _SECOND_PHASE_STEPS, _KRYLOV_STEPS = 1_024, 4, 20, 12
_EXAMPLES_VARIABLE = "RANKS_EXAMPLES"  # It tells the ranks.
_LANCZOS_STEPS, _LANCZOS_SIZE = 100, (2_000, 10_000)
_BROYDEN_SIZE, _BROYDEN_STEPS = 8_000, 6


@click.group()
def main() -> None:
    """Measure what ranks save."""


@main.command("time")
@click.option("--repeats", default=5, show_default=True)
@click.option("--ranks", "sizes", default=(1, 2), multiple=True, type=int, show_default=True)
@click.option("--only", help="One piece of work: probe, second phase.")
@click.option("--examples", default=_EXAMPLES, show_default=True, help="CIFAR-10 images.")
def seconds(repeats: int, sizes: tuple[int, ...], only: str | None, examples: int) -> None:
    """Print seconds of a probe and of a second phase: vit-mlp on a subset of CIFAR-10, float32."""
    os.environ[_EXAMPLES_VARIABLE] = str(examples)
    _table("s", [only] if only else [*_SECONDS], sizes, repeats)


@main.command("memory")
@click.option("--repeats", default=1, show_default=True)
@click.option("--ranks", "sizes", default=(1, 2), multiple=True, type=int, show_default=True)
@click.option("--only", help="One piece of work: Krylov run, dense matrix.")
def memory(repeats: int, sizes: tuple[int, ...], only: str | None) -> None:
    """Print the peak memory of a rank in a Krylov run and in steps with a dense matrix."""
    _table("MB", [only] if only else [*_MEGABYTES], sizes, repeats)


@main.command("work", hidden=True)
@click.argument("name")
def work(name: str) -> None:
    """Do one piece of work in this rank, and print its figure: of all ranks the largest."""
    torch.set_num_threads(1)
    with of_torchrun("cpu") as ranks:
        figure = ranks.most((_SECONDS | _MEGABYTES)[name](ranks))
        if ranks.is_writer:
            click.echo(json.dumps(figure))


def _probe(ranks: Ranks) -> float:
    problem = _trained(ranks)
    loss = ProbedLoss(problem.objective, problem, _examples(), _examples())
    options = ProbeOptions(max_steps=_KRYLOV_STEPS, products="exact", slice_points=7)
    return _timed(ranks, lambda: probe_point(loss, options))


def _second_phase(ranks: Ranks) -> float:
    problem = _trained(ranks)
    adam = torch.optim.Adam(problem.model.parameters(), lr=2e-3)
    problem.objective.closure()
    adam.step()
    optimizer = cl.second_phase(adam)
    optimizer.processes = "together"

    def steps() -> None:
        for _ in range(_SECOND_PHASE_STEPS):
            optimizer.step(problem.objective.closure)

    return _timed(ranks, steps)


def _krylov_run(ranks: Ranks) -> float:
    columns, rows = _LANCZOS_SIZE
    torch.manual_seed(0)  # The same weights in every rank.
    model = nn.Linear(columns, rows, bias=False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, columns, generator=generator)
    objective = cl.Objective(model, [(x, torch.zeros(4, rows))], nn.MSELoss(), memory_budget=0, group=ranks.group)

    def run() -> None:
        operator = objective.hessian("exact")
        generator = torch.Generator().manual_seed(0)
        process = Lanczos(operator, random_unit_vector(operator, generator), _LANCZOS_STEPS)
        process.extend(_LANCZOS_STEPS)
        assert process.plan == "", process.plan

    return _risen(run)


def _dense_matrix(ranks: Ranks) -> float:
    weights = nn.Parameter(torch.linspace(1.0, 2.0, _BROYDEN_SIZE, dtype=torch.float64))
    scales = torch.linspace(1.0, 50.0, _BROYDEN_SIZE, dtype=torch.float64)
    optimizer = cl.SelfScaledBroyden([weights])
    optimizer.processes = "together"

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (scales * weights.square()).sum() + weights.pow(4).sum()
        loss.backward()
        return loss

    def steps() -> None:
        for _ in range(_BROYDEN_STEPS):
            optimizer.step(closure)

    return _risen(steps)


_SECONDS: dict[str, Callable[[Ranks], float]] = {"probe": _probe, "second phase": _second_phase}
_MEGABYTES: dict[str, Callable[[Ranks], float]] = {"Krylov run": _krylov_run, "dense matrix": _dense_matrix}


def _trained(ranks: Ranks) -> ImageProblem:
    problem = build_problem("vit-mlp", cifar10(), "mse", train_size=_examples(), device="cpu")
    problem.share_out(ranks)
    adam = torch.optim.Adam(problem.model.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(_ADAM_EPOCHS):
        for _, batch in problem.batches.epoch(order):
            adam.zero_grad()
            problem.objective.training_loss(batch).backward()
            adam.step()
    return problem


def _examples() -> int:
    return int(os.environ.get(_EXAMPLES_VARIABLE, _EXAMPLES))


def _timed(ranks: Ranks, call: Callable[[], object]) -> float:
    ranks.any(False)  # All begin together.
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _risen(call: Callable[[], object]) -> float:
    """Return by how many megabytes the largest resident set rises."""
    before = resident(reset=True)
    call()
    return (resident() - before) / 2**20


def _table(unit: str, works: list[str], sizes: tuple[int, ...], repeats: int) -> None:
    click.echo(f"| {unit}, median of {repeats} | {' | '.join(f'{size} ranks' for size in sizes)} | ratio |")
    click.echo("|---" * (len(sizes) + 2) + "|")
    for name in works:
        figures: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(repeats):  # In turn, so that whatever else the machine does befalls all.
            for size in sizes:
                figures[size].append(_of_ranks(size, name))
                click.echo(f"{name}, {size} ranks: {figures[size][-1]:.4g} {unit}", err=True)  # As it comes.
        medians = [statistics.median(figures[size]) for size in sizes]
        pairs = zip(medians, map(figures.__getitem__, sizes), strict=True)
        cells = [f"{median:.3g} ({min(each):.3g}-{max(each):.3g})" for median, each in pairs]
        click.echo(f"| {name} | {' | '.join(cells)} | {medians[-1] / medians[0]:.3f} |")


def _of_ranks(size: int, name: str) -> float:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), __file__]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "work", name], env=os.environ | threads, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(json.loads(result.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    main()

"""What evaluations replayed as CUDA graphs save: a loss, its gradient, products, and steps of the second phase.

Run: ``python benchmarks/captured.py`` with CONVEXLAB_DATA set, on a GPU; a minute. Each is timed plainly and captured,
in turn, and beside both stands what its kernels take by themselves, by torch's profiler: no replay is faster than that.
Two aims: a step of the second phase on 2,000 images takes at most 1.3 times its kernels' own time, and
``time CONVEXLAB_CAPTURE=1 convexlab probe models/vit-mlp-mnist --out /tmp/probe`` at most 10 seconds. On a CPU, which
has no graphs, both columns are plain evaluations and the kernels' own time is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click
import torch
from common import MODELS, Spread, Table, out_option, repeats_option, write_json
from phase_two_problems import clock

from convexlab.machine.environment import resolve_device
from convexlab.problems import ImageProblem, build_problem
from convexlab.training.adam import adam_epoch
from convexlab.training.phases import LARGE, phase_two

_CALLS = 10
"""Of an evaluation in one timing."""
_EPOCHS = 3
"""Of Adam before anything is measured."""


@click.command()
@click.option("--model", type=click.Choice(MODELS), default="vit-mlp", show_default=True)
@click.option("--dataset", default="mnist", show_default=True)
@click.option("--train-size", type=click.IntRange(2), default=2000, show_default=True, help="Images.")
@click.option("--device", default="auto", show_default=True)
@repeats_option(5)
@out_option
def main(model: str, dataset: str, train_size: int, device: str, repeats: int, out: Path | None) -> None:
    """Print a table in Markdown."""
    torch.set_num_threads(1)
    place = resolve_device(device)
    problem = build_problem(model, dataset, "mse", train_size=train_size, device=str(place))
    adam = torch.optim.Adam(problem.model.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(0)
    for epoch in range(_EPOCHS):
        adam_epoch(problem, adam, order, seed=0, epoch=epoch)
    rows = [row(name, call, problem, place, repeats) for name, call in calls(problem, adam).items()]
    title = f"{model}, {train_size:,} images of {dataset}, on {place}: ms a call"
    print(Table(title, rows))
    write_json(out, {"model": model, "dataset": dataset, "train_size": train_size, "device": str(place)}, rows=rows)


def calls(problem: ImageProblem, adam: torch.optim.Adam) -> Mapping[str, Callable[[], object]]:
    """Return what is measured, by name."""
    objective = problem.objective
    operator = objective.hessian("exact")
    vectors = torch.randn(objective.size, 8, device=objective.device)
    second = phase_two(LARGE).build(problem.model.parameters(), adam, problem.examples or 1)
    return {
        "value": objective.value,
        "gradient": objective.gradient,
        "Hessian product": lambda: operator @ vectors[:, 0],
        "8 products": lambda: operator @ vectors,
        f"step of {LARGE}": lambda: second.step(objective.closure),
    }


def row(
    name: str, call: Callable[[], object], problem: ImageProblem, device: torch.device, repeats: int
) -> dict[str, object]:
    """Time a call plainly and captured, in turn."""
    plain, captured, kernels = [], [], []
    reasons: dict[str, str] = {}
    for _ in range(repeats):
        plain.append(timed(call, device))
        with problem.objective.captured() as replayer:
            for _ in range(_CALLS):
                call()  # The first of a shape are plain, and then it is recorded.
            captured.append(timed(call, device))
            kernels.append(kernel_time(call, device))
        assert replayer is not None
        reasons |= replayer.reasons
    own = None if device.type != "cuda" else Spread.of(kernels)
    return {
        "": name,
        "plain": str(Spread.of(plain)),
        "captured": str(Spread.of(captured)),
        "plain / captured": str(Spread.of(plain) / Spread.of(captured)),
        "kernels": None if own is None else str(own),
        "captured / kernels": None if own is None else str(Spread.of(captured) / own),
        "not captured": "; ".join(reasons.values()) or None,
    }


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds that a call takes."""
    begin = clock(device)
    for _ in range(_CALLS):
        call()
    return 1e3 * (clock(device) - begin) / _CALLS


def kernel_time(call: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds that the kernels of a call take by themselves; 0 where there are none."""
    if device.type != "cuda":
        return 0.0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(_CALLS):
            call()
        torch.cuda.synchronize(device)
    microseconds = sum(float(event.self_device_time_total) for event in profile.key_averages())
    return microseconds / 1e3 / _CALLS


if __name__ == "__main__":
    main()

"""Whether the second phase does better from an average of Adam's last weights, or behind a rate that falls.

Run: ``tox -e bench -- benchmarks/before_switch.py``. Every run has the same budget, charged as the trainer charges it;
Adam hands over at 30 % of it. Three ways to arrive there:

- *as it is*: Adam's last weights, at its constant rate. What the trainer does.
- *averaged*: the mean of the weights after each of Adam's last epochs, a third of them (Izmailov et al. 2018, arXiv
  1803.05407). The moments that the preconditioner is made of stay Adam's own.
- *decayed*: over the same last third Adam's rate falls to zero as a half cosine.

A figure is the lowest loss of the run over that of constant Adam with the whole budget. Every way is judged on the
problems of either half: the first ones, and the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click
import torch
from common import Table, out_option, write_json
from phase_two_adam import cosine

from convexlab.problems import Problem, build_objective, build_problem
from convexlab.training.hand_over import HandOver
from convexlab.training.phases import AUTO, choose_phase_two
from convexlab.training.trajectory import Trajectory

_WAYS = ("as it is", "averaged", "decayed")
_SHARE, _LAST, _FLOOR = 0.3, 1 / 3, 1e-12

_Build = Callable[[int], Problem]


def _images(model: str, examples: int) -> _Build:
    return lambda seed: build_problem(model, "digits", "mse", train_size=examples, seed=seed, device="cpu")


def _objective(name: str, examples: int | None = None) -> _Build:
    return lambda seed: build_objective(name, train_size=examples, seed=seed, device="cpu")


PROBLEMS: Mapping[str, tuple[_Build, int, float]] = {
    "friedman": (_objective("friedman"), 150, 1e-3),
    "vit-nomlp, 250 digits": (_images("vit-nomlp", 250), 60, 1e-3),
    "pinn-helmholtz": (_objective("pinn-helmholtz", 300), 1200, 1e-3),
    "pinn-wave": (_objective("pinn-wave", 300), 1200, 1e-3),
    "friedman, 2,000 examples": (_objective("friedman", 2000), 60, 1e-3),
    "vit-nomlp-wkewq-wvwo, 500 digits": (_images("vit-nomlp-wkewq-wvwo", 500), 60, 1e-3),
    "pinn-klein-gordon": (_objective("pinn-klein-gordon", 300), 1200, 1e-3),
    "pinn-allen-cahn": (_objective("pinn-allen-cahn", 300), 1200, 1e-3),
}
"""How to build it, gradient equivalents, Adam's rate."""


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--problems", multiple=True, type=click.Choice(list(PROBLEMS)), help="One; repeat for more.")
@out_option
def main(seeds: int, problems: tuple[str, ...], out: Path | None) -> None:
    """Train every problem in every way from every seed, and print the ratios to Adam."""
    torch.set_num_threads(1)
    rows = []
    for name in problems or PROBLEMS:
        for seed in range(seeds):
            adam = _adam_alone(name, seed)
            row = {"problem": name, "seed": seed, "adam": adam}
            row |= {way: _two_phases(name, seed, way) / adam for way in _WAYS}
            rows.append(row)
            print(row, flush=True)
            if out is not None:
                write_json(out, {"runs": rows})
    names = list(dict.fromkeys(str(row["problem"]) for row in rows))
    half = (len(names) + 1) // 2
    parts = {"first half": names[:half], "the others": names[half:], "all": names}
    print(Table("geometric means over seeds", [_means(name, rows, [name]) for name in names]))
    print(
        Table("geometric means over problems and seeds", [_means(title, rows, part) for title, part in parts.items()])
    )


def _means(title: str, rows: list[dict[str, Any]], problems: list[str]) -> dict[str, str]:
    chosen = [row for row in rows if row["problem"] in problems]
    means = {way: geometric_mean(row[way] for row in chosen) for way in _WAYS} if chosen else {}
    return {"": title} | {way: f"{mean:.3g}" for way, mean in means.items()}


def _begin(name: str, seed: int) -> tuple[Trajectory, int]:
    build, budget, rate = PROBLEMS[name]
    problem = build(seed)
    trajectory = Trajectory("two-phase", problem, lr=rate, seed=seed)
    trajectory.measure()
    return trajectory, budget


def _adam_alone(name: str, seed: int) -> float:
    trajectory, budget = _begin(name, seed)
    for _ in range(budget):
        trajectory.adam_epoch()
        if not trajectory.problem.steps_tell_the_loss:
            trajectory.measure()
    trajectory.measure()
    return max(trajectory.best.loss, _FLOOR)


def _two_phases(name: str, seed: int, way: str) -> float:
    trajectory, budget = _begin(name, seed)
    epochs = round(_SHARE * budget)
    first = epochs - max(1, round(_LAST * epochs))
    rate, largest = PROBLEMS[name][2], trajectory.gradient_norm
    model = trajectory.problem.model
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    falling = cosine(rate, first, epochs)
    for epoch in range(epochs):
        trajectory.adam_epoch(falling if way == "decayed" and epoch >= first else None)
        if not trajectory.problem.steps_tell_the_loss:
            largest = max(largest, trajectory.measure()[1])
        if epoch >= first:
            for total, parameter in zip(sums, model.parameters(), strict=True):
                total += parameter.detach()
    if way == "averaged":
        with torch.no_grad():
            for total, parameter in zip(sums, model.parameters(), strict=True):
                parameter.copy_(total / (epochs - first))
    largest = max(largest, trajectory.measure()[1])
    choice = choose_phase_two(AUTO, list(model.parameters()))
    HandOver(choice.name, choice.phase, trajectory.problem, budget).follow(trajectory, largest, lambda _: None)
    return max(trajectory.best.loss, _FLOOR)


if __name__ == "__main__":
    main()

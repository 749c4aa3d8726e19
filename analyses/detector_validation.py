"""Does the gradient norm's peak mark entry into a convex region, and is it the right moment to switch?

Claim: the paper's claims 1 and 2, and that a detector of the peak finds the right moment to leave Adam (claim 3).
Command: ``python analyses/detector_validation.py --scale desk`` (an interrupted study goes on where it was). Run time:
toy under a minute; desk under an hour on two cores; paper days on a GPU. Expected outcome: the page
``reports/detector-validation.html``. Along every run curvature is measured, and the second phase is started from every
few epochs. Every rule's decision is followed to the end of the same budget, which gives its regret against the best
switch. The rule with the least regret is chosen on half of the tasks and reported on the other half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import click
import torch
from paper.pages.detectors import validation_study
from paper.processes import side_by_side
from paper.records import stored
from paper.rules import RULES, Rule
from paper.table import FULL_SIZES, MODELS, source
from paper.validated_run import ValidationPlan, decided, validate_run

from convexlab.problems import Problem, build_problem, friedman, physics_informed
from convexlab.problems.physics_informed import burgers, convection
from convexlab.reporting import write_study
from convexlab.runs import Row, write_json

PERCEPTRON = "convexlab.problems.images:perceptron"
SMALLEST = "vit-nomlp-wkewq-wvwo"
EQUATIONS = {"convection": convection, "burgers": burgers}
FULL_STEPS = 20
"""Steps of Adam on the whole batch that count as an epoch."""


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    model: str
    dataset: str
    loss: str
    rate: float
    seed: int
    train_size: int

    @property
    def task(self) -> str:
        """What it has in common with the same at other rates and seeds: model, data and loss."""
        return f"{self.model.rpartition(':')[2]}, {self.dataset}, {self.loss}"

    @property
    def key(self) -> str:
        """A file name."""
        return f"{self.task.replace(', ', '-')}-{self.train_size}-{self.rate:g}-{self.seed}"

    def build(self, device: str) -> Problem:
        """Return the problem at its start; mini-batches are a twentieth of the data, 512 at most."""
        batch = min(512, max(16, self.train_size // 20))
        if self.dataset in EQUATIONS:
            return physics_informed(EQUATIONS[self.dataset](), train_size=self.train_size, seed=self.seed)
        if self.dataset == "friedman":
            return friedman(train_size=self.train_size, seed=self.seed, batch_size=batch)
        return build_problem(
            self.model,
            source(self.dataset),
            self.loss,
            train_size=self.train_size,
            seed=self.seed,
            batch_size=batch,
            device=device,
        )


def desk() -> Iterator[Case]:
    """Yield the runs at desk scale, those that take longest first: no process waits at the end for another's."""
    yield Case("vgg5-max-relu", "mnist", "mse", 1e-3, 0, 500)
    yield Case("vit-mlp", "mnist", "mse", 1e-3, 0, 500)
    yield Case("vit-nomlp", "cifar10", "cross-entropy", 1e-3, 0, 500)
    yield Case("vit-nomlp", "mnist", "mse", 1e-3, 0, 500)
    losses = ("mse", "cross-entropy")
    for seed in (0, 1, 2):
        yield Case("perceptron", "friedman", "mse", 1e-3, seed, 1000)
    for loss, rate, seed in product(losses, (1e-3, 3e-3), (0, 1)):
        yield Case(PERCEPTRON, "digits", loss, rate, seed, 1442)
    for dataset, loss, rate in product(("digits", "mnist", "cifar10"), losses, (1e-3, 2e-3)):
        yield Case(SMALLEST, dataset, loss, rate, 0, 1000)
    for equation, seed in (("convection", 0), ("convection", 1), ("burgers", 0)):
        yield Case("perceptron", equation, "residual", 1e-3, seed, 1000)


def toy() -> Iterator[Case]:
    """Yield runs that take seconds and need no files."""
    for loss in ("mse", "cross-entropy"):
        yield Case(PERCEPTRON, "digits", loss, 3e-3, 0, 200)
    yield Case("perceptron", "friedman", "mse", 3e-3, 0, 100)


@dataclass(frozen=True)
class ValidationScale:
    """The frozen settings of a scale."""

    cases: list[Case]
    epochs: int
    every: int
    """Epochs between two switches of the oracle, and two measured points."""
    device: str = "cpu"

    def plan(self, case: Case) -> ValidationPlan:
        """Return how a run is made."""
        return ValidationPlan(
            self.epochs, case.rate, case.seed, steps=FULL_STEPS, switch_every=self.every, truth_every=self.every
        )


def paper() -> Iterator[Case]:
    """Yield the paper's rows with all their images, in three seeds."""
    for seed, dataset, model in product((0, 1, 2), FULL_SIZES, MODELS):
        yield Case(model, dataset, "mse", 1e-3, seed, FULL_SIZES[dataset])


SCALES = {
    "toy": ValidationScale(list(toy()), 12, 4),
    "desk": ValidationScale(list(desk()), 100, 10),
    "paper": ValidationScale(list(paper()), 700, 35, "auto"),
}


def perform(case: Case, scale: ValidationScale, folder: Path, rules: Sequence[Rule] = RULES) -> Row:
    """Make one run, or what an earlier one with the same settings lacks."""
    torch.set_num_threads(1)
    plan = scale.plan(case)
    file, identity = folder / f"{case.key}.json", {"case": asdict(case), "task": case.task, "plan": asdict(plan)}
    known = stored(file, identity)
    asked = decided(known, rules) if known is not None else None
    if asked is None:
        asked = identity | validate_run(case.build(scale.device), plan, rules, known=known)
        write_json(file, asked)
    return asked


@click.command()
@click.option("--scale", "name", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports/detector-validation.html"), show_default=True
)
@click.option("--jobs", type=int, default=2, show_default=True, help="Processes, of one thread each.")
def main(name: str, out: Path, jobs: int) -> None:
    """Make every run, and write one page."""
    scale, folder = SCALES[name], Path("runs/detector-validation") / name
    ordered = side_by_side(partial(perform, scale=scale, folder=folder), scale.cases, jobs=jobs)
    settings = {"scale": name, "runs": len(ordered), "epochs": scale.epochs, "switch_every": scale.every}
    study = validation_study(ordered, settings, f"python analyses/detector_validation.py --scale {name}")
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()

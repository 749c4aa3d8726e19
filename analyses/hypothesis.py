"""Claims 1 and 2 of the paper on its own networks: first non-convex, then convex, with the norm's peak between?

Claim: along training the loss is first non-convex, then convex around the minimum, with no patchwork in between. The
gradient norm rises in the non-convex part and falls in the convex one. Command: ``python analyses/hypothesis.py --scale
desk`` (an interrupted study goes on where it was). Run time: toy seconds; desk a quarter of an hour on two cores; paper
days on a GPU. Expected outcome: the page ``reports/hypothesis.html``. It counts the networks in which each claim is
supported, contradicted or undecided, with 95 % intervals. There are three networks at desk scale, else five, on MNIST,
CIFAR-10 and CIFAR-100. ``detector_validation.py`` asks the same of other networks, losses and learning rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import click
from detector_validation import PERCEPTRON, Case, ValidationScale, perform
from paper.pages.claims import claims_study
from paper.processes import side_by_side
from paper.table import FULL_SIZES, MODELS
from paper.validated_run import ValidationPlan

from convexlab.probing import ProbeOptions
from convexlab.reporting import write_study

# Frozen settings.
RATE = 1e-3
TRAIN_SIZE = 500
DESK_MODELS = ("vgg5-max-relu", "vit-mlp", "vit-nomlp")
PROBE = ProbeOptions(max_steps=32, density_probes=1)
"""A short Krylov run: enough for most witnesses of negative curvature; what it cannot decide is unresolved."""


@dataclass(frozen=True)
class Switched(ValidationScale):
    """Runs that are switched once, at half of the budget, to see how the loss is curved where the second phase ends."""

    def plan(self, case: Case) -> ValidationPlan:
        """Return how a run is made."""
        return replace(super().plan(case), switch_every=self.epochs // 2, probe=PROBE)


def toy() -> Iterator[Case]:
    """Yield runs that take seconds and need no files."""
    for seed in (0, 1):
        yield Case(PERCEPTRON, "digits", "mse", 3e-3, seed, 200)


def rows(models: Sequence[str], train_size: int | None, seeds: int) -> Iterator[Case]:
    """Yield the paper's rows of some networks."""
    for seed, model, dataset in product(range(seeds), models, FULL_SIZES):
        yield Case(model, dataset, "mse", RATE, seed, train_size or FULL_SIZES[dataset])


SCALES = {
    "toy": Switched(list(toy()), 12, 4),
    "desk": Switched(list(rows(DESK_MODELS, TRAIN_SIZE, 1)), 60, 10),
    "paper": Switched(list(rows(MODELS, None, 3)), 700, 35, "auto"),
}


@click.command()
@click.option("--scale", "name", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/hypothesis.html"), show_default=True)
@click.option("--jobs", type=int, default=2, show_default=True, help="Processes, of one thread each.")
def main(name: str, out: Path, jobs: int) -> None:
    """Make every run, and write one page."""
    scale = SCALES[name]
    work = partial(perform, scale=scale, folder=Path("runs/hypothesis") / name, rules=())
    runs = side_by_side(work, scale.cases, jobs=jobs)
    settings = {
        "runs": len(runs),
        "epochs": scale.epochs,
        "points_every": scale.every,
        "adam_rate": sorted({case.rate for case in scale.cases}),
        "train_size": sorted({case.train_size for case in scale.cases}),
        "krylov_steps": PROBE.max_steps,
    }
    study = claims_study(runs, settings, f"python analyses/hypothesis.py --scale {name}")
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()

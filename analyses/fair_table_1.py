"""Table 1 of the paper at equal cost: does a second phase end lower than the best Adam?

Claim: Adam, then a second-order method, ends at a lower training loss than Adam alone. Every evaluation is charged, and
Adam has the best of three learning rates and of two schedules. Command: ``python analyses/fair_table_1.py --scale
desk`` (an interrupted study goes on where it was). Run time: toy seconds; desk ten minutes on two cores; paper days on
a GPU. Expected outcome: the page ``reports/fair-table-1.html``: the fifteen rows, each protocol at the best of the
learning rates. At desk scale they have few images and many epochs. The rows of ``table_1.py`` have the images but few
epochs. At one of the rates the paper's protocol is trained too, for its own accounting.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import click
from paper.pages.fair_table import fair_study
from paper.processes import side_by_side
from paper.table import FULL_SIZES, MODELS, TableCase, train_case

from convexlab.reporting import write_study
from convexlab.runs import Row

# Frozen settings.
RATES = (1e-3, 2e-3, 3e-4)
PAPERS_RATE = 1e-3
SWITCH = 0.3
"""Of the epochs, as in the paper."""
DATASETS = tuple(FULL_SIZES)


def toy() -> Iterator[TableCase]:
    """Yield two networks on digits, which need no files."""
    for rate, model in product(RATES[:2], MODELS[-2:]):
        yield TableCase("digits", model, 30, 4, 1, 10, 0, rate)


def desk() -> Iterator[TableCase]:
    """Yield the rows with 250 images and one seed, of each rate the costly ones first."""
    for rate, model, dataset in product(RATES, sorted(MODELS), DATASETS):
        yield TableCase(dataset, model, 250, 50, round(SWITCH * 50), 16, 0, rate)


def paper() -> Iterator[TableCase]:
    """Yield the rows with all images and the paper's epochs, three seeds."""
    for seed, model, rate, dataset in product((0, 1, 2), MODELS, RATES, DATASETS):
        epochs = 700 if model == "vit-mlp" else 1000
        yield TableCase(dataset, model, FULL_SIZES[dataset], epochs, round(SWITCH * epochs), 512, seed, rate, "auto")


SCALES = {"toy": toy, "desk": desk, "paper": paper}


def train(case: TableCase, folder: Path) -> Row:
    """Train a row by every protocol, the paper's among them at one rate."""
    return train_case(case, folder, paper=case.rate == PAPERS_RATE)


@click.command()
@click.option("--scale", "name", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/fair-table-1.html"), show_default=True)
@click.option("--jobs", type=int, default=2, show_default=True, help="Processes, of one thread each.")
def main(name: str, out: Path, jobs: int) -> None:
    """Train every row by every protocol at every rate, and write one page."""
    cases = list(SCALES[name]())
    rows = side_by_side(partial(train, folder=Path("runs/fair-table-1") / name), cases, jobs=jobs)
    study = fair_study(rows, f"python analyses/fair_table_1.py --scale {name}")
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()

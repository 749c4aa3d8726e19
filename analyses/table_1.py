"""Table 1 of the paper: does Adam followed by conjugate gradients end at a lower training loss than Adam alone?

Claim: it does, in 15 rows: five networks on MNIST, CIFAR-10 and CIFAR-100, squared error.
Command: ``python analyses/table_1.py --scale desk`` (an interrupted study goes on where it was).
Run time: toy seconds; desk about an hour on two cores; paper days on a GPU.
Expected outcome: the page ``reports/table-1.html``. Every row is trained in the paper's protocol (a fixed switch,
conjugate gradients with the golden-section search, a step counted as an epoch) and in ours (a detected switch, the
default second phase), and judged twice: epoch against epoch, as the paper counts, and at equal cost against the better
of Adam with a constant and with a cosine rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import click
from paper.pages.table import table_study
from paper.processes import side_by_side
from paper.table import FULL_SIZES, MODELS, TableCase, least_train_size, train_case

from convexlab.reporting import write_study

# Frozen settings.
RATE = 1e-3
DATASETS = ("mnist", "cifar10", "cifar100")
SWITCH = 0.3
"""Of the epochs, as in the paper."""
LEAST, MOST = 2000, {"mnist": 60_000, "cifar10": 10_000, "cifar100": 10_000}
"""Examples at desk scale: what keeps Q at 1, but at least so many, and no more than there are."""
DESK_EPOCHS = {10_000: 10, 4_000: 20, 0: 30}
"""From so many examples on: what a row of the desk scale may cost is about the same."""
DESK_BATCHES = {10_000: 128, 0: 64}
PAPER_EPOCHS, PAPER_EPOCHS_MLP, PAPER_BATCH = 1000, 700, 512


@dataclass(frozen=True)
class TableScale:
    """The frozen settings of a scale."""

    cases: list[TableCase]


def toy() -> Iterator[TableCase]:
    """Yield two of the networks on digits, which need no files."""
    for model in MODELS[-2:]:
        yield case("digits", model, 30, 4, 10, 0, "cpu")


def desk() -> Iterator[TableCase]:
    """Yield the rows with so much data that Q is at least 1 where there is as much; the costly ones first."""
    for seed in (0, 1, 2):
        sizes = {
            (dataset, model): min(MOST[dataset], max(LEAST, least_train_size(dataset, model)))
            for dataset, model in product(DATASETS, MODELS)
        }
        for (dataset, model), size in sorted(sizes.items(), key=lambda row: -row[1]):
            yield case(dataset, model, size, _from(DESK_EPOCHS, size), _from(DESK_BATCHES, size), seed, "cpu")


def paper() -> Iterator[TableCase]:
    """Yield the rows as the paper has them: all data, its epochs and its switch."""
    for seed, dataset, model in product((0, 1, 2), DATASETS, MODELS):
        epochs = PAPER_EPOCHS_MLP if model == "vit-mlp" else PAPER_EPOCHS
        yield case(dataset, model, FULL_SIZES[dataset], epochs, PAPER_BATCH, seed, "auto")


def case(dataset: str, model: str, size: int, epochs: int, batch_size: int, seed: int, device: str) -> TableCase:
    """Return a case with the paper's switch."""
    return TableCase(dataset, model, size, epochs, max(1, round(SWITCH * epochs)), batch_size, seed, RATE, device)


def _from(table: dict[int, int], size: int) -> int:
    return table[max(least for least in table if least <= size)]


SCALES = {"toy": toy, "desk": desk, "paper": paper}


@click.command()
@click.option("--scale", "name", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/table-1.html"), show_default=True)
@click.option("--jobs", type=int, default=2, show_default=True, help="Processes, of one thread each.")
def main(name: str, out: Path, jobs: int) -> None:
    """Train every row by every protocol, and write one page."""
    cases = list(SCALES[name]())
    rows = side_by_side(partial(train_case, folder=Path("runs/table-1") / name), cases, jobs=jobs)
    study = table_study(rows, f"python analyses/table_1.py --scale {name}")
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()

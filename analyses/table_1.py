"""Table 1 of the paper: does Adam followed by conjugate gradients end at a lower training loss than Adam alone?

Claim: it does, in 15 rows: five networks on MNIST, CIFAR-10 and CIFAR-100, squared error. Command: ``python
analyses/table_1.py --scale desk`` (an interrupted study goes on where it was). Run time: toy seconds; desk about an
hour on two cores; paper see below. Expected outcome: the page ``reports/table-1.html``. Every row is trained by two
protocols. The paper's has a fixed switch and conjugate gradients with the golden-section search, and counts a step as
an epoch. Ours has a detected switch and the default second phase. Both are judged twice: epoch against epoch, as the
paper counts, and at equal cost against the better of Adam with a constant and with a cosine rate.

At the paper's own scale every block has a page, such as ``reports/table-1-mnist.html``: five rows of 60,000 images.
Adam has 1,000 epochs, or 300 and then 700 steps of conjugate gradients; with an MLP 700, or 210 and then 490. The page
also has our second phase from the same switch, and Adam with a cosine rate. The curvature is measured at twelve points
of each row on the whole training set. The work is cut for a GPU that is available for half an hour at a time:

1. ``export CONVEXLAB_DATA=FOLDER`` with the data sets, and check the device: ``python -m pytest -m gpu tests``.
2. ``python analyses/table_1.py --scale paper --block mnist --jobs 5 --stop-after 1740``, again and again until it says
   that all rows are finished. The five rows run side by side. Each leaves a file of at most 16 MB in
   ``runs/table-1/mnist``, from which it goes on. Copy these files to the next machine: without its file, a row starts
   anew.
3. ``--stop-after 0`` trains nothing, and writes the page from the stored files. It marks unfinished rows.
4. ``--block cifar10`` and ``--block cifar100`` likewise; with ten thousand images of each (``cifar10-10k.npz``) their Q
   is a fifth of the paper's, and the page says so.

``--row vit-nomlp`` trains some of the rows, ``--seeds 3`` more seeds. Where a stage says that it needs more seconds in
one stretch, give it these: ``--row vit-mlp --jobs 1``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import click
from paper.full_scale import Clock, FullScale, train_row
from paper.pages.full_scale import FullRow, full_scale_study
from paper.pages.table import table_study
from paper.processes import side_by_side
from paper.row_file import read_row
from paper.table import MODELS, TableCase, least_train_size, train_case

from convexlab.reporting import Study, write_study
from convexlab.runs import Row

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
FULL = FullScale()
TOY = "digits"
"""A block for tests: two networks, 30 images, four epochs."""


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


def block(name: str, seeds: int, rows: Sequence[str], device: str) -> list[TableCase]:
    """Return the rows of a block as the paper has them: all data, its epochs, its switch; a row's seeds in turn."""
    if name == TOY:
        return [
            case("digits", model, 30, 4, 10, seed, device) for model in rows or MODELS[-2:] for seed in range(seeds)
        ]
    return [
        case(
            name,
            model,
            0,
            PAPER_EPOCHS_MLP if model == "vit-mlp" else PAPER_EPOCHS,
            PAPER_BATCH,
            seed,
            device,
        )
        for model in rows or MODELS
        for seed in range(seeds)
    ]


def case(dataset: str, model: str, size: int, epochs: int, batch_size: int, seed: int, device: str) -> TableCase:
    """Return a case with the paper's switch."""
    return TableCase(dataset, model, size, epochs, max(1, round(SWITCH * epochs)), batch_size, seed, RATE, device)


def _from(table: dict[int, int], size: int) -> int:
    return table[max(least for least in table if least <= size)]


SCALES = {"toy": toy, "desk": desk}


@click.command()
@click.option("--scale", "name", type=click.Choice([*SCALES, "paper"]), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=None, help="The page; under reports/ by default.")
@click.option("--jobs", type=int, default=2, show_default=True, help="Processes, of one thread each.")
@click.option("--block", "data", type=click.Choice([*DATASETS, TOY]), default="mnist", help="Of the paper's scale.")
@click.option("--row", "rows", type=click.Choice(MODELS), multiple=True, help="Of the block, these rows alone.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Of the block.")
@click.option("--device", default="auto", show_default=True, help="Of the block: auto, cpu, cuda ...")
@click.option("--stop-after", type=click.FloatRange(0), help="Seconds after which the block is left to another call.")
def main(
    name: str,
    out: Path | None,
    jobs: int,
    data: str,
    rows: Sequence[str],
    seeds: int,
    device: str,
    stop_after: float | None,
) -> None:
    """Train every row by every protocol, and write one page."""
    if name == "paper":
        study = _block_study(data, jobs, rows, seeds, device, Clock(stop_after))
        page = write_study(study, out or Path(f"reports/table-1-{data}.html"))
    else:
        cases = list(SCALES[name]())
        records = side_by_side(partial(train_case, folder=Path("runs/table-1") / name), cases, jobs=jobs)
        study = table_study(records, f"python analyses/table_1.py --scale {name}")
        page = write_study(study, out or Path("reports/table-1.html"))
    click.echo("\n".join([*study.answer, str(page)]))


def _block_study(data: str, jobs: int, rows: Sequence[str], seeds: int, device: str, clock: Clock) -> Study:
    """Go on with the rows that are asked for, and return the page of all rows of the block that there are."""
    folder = Path("runs/table-1") / data
    cases = block(data, seeds, rows, device)
    if not clock.over:
        work = partial(_train_place, folder=folder, clock=clock, jobs=jobs, cases=cases)
        side_by_side(work, range(len(cases)), jobs=min(jobs, len(cases)))
    every = [FullRow(case, read_row(case, folder)) for case in block(data, seeds, (), device)]
    return full_scale_study(every, f"python analyses/table_1.py --scale paper --block {data}")


def _train_place(place: int, *, folder: Path, clock: Clock, jobs: int, cases: Sequence[TableCase]) -> Row:
    return train_row(cases[place], folder, FULL, clock, jobs=jobs, place=place, rows=len(cases))


if __name__ == "__main__":
    main()

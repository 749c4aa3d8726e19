"""Figure 2 of the paper: does the gradient norm rise and then fall over the falling loss, and where does it peak?

Claim: along each branch to the minimum the norm first rises (non-convex), then falls (convex); its peak is the swap.
Command: ``python analyses/figure_2.py --scale desk`` Run time: toy and paper seconds; desk under a minute on one core.
Expected outcome: the page ``reports/figure-2.html``. With one parameter the norm is |L'|, so it must peak where L''
changes its sign. That is confirmed to the square root of the rounding, on every branch. No theorem says that it rises
and falls exactly once. It does on about half of the branches over -10 ≤ p ≤ 10, and on nine in ten within the basin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from paper.pages.landscape_charts import scalar_norm_chart
from paper.scalar_landscape import Branch, ScalarLandscape, norm_peaks, random_losses, survey

from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.tables import Column, make_table
from convexlab.wording.numbers import number
from convexlab.wording.proportion import Proportion

# Frozen settings: the tasks and the range of figure_1.py.
SEED = 0
UNITS = 100
DRAWN = 5
HALF_WIDTH = 10.0
POINTS = 801
SCALES = {"toy": {"tasks": 20}, "desk": {"tasks": 1000}, "paper": {"tasks": DRAWN}}


@dataclass(frozen=True)
class Seen:
    """A branch and the peaks of the norm along it, which were found without the second derivative."""

    branch: Branch
    peaks: tuple[float, ...]

    @property
    def rises_then_falls_once(self) -> bool:
        """Whether the norm has one peak and does not fall before it."""
        return len(self.peaks) == 1 and not self.branch.starts_convex

    @property
    def distances(self) -> list[float]:
        """How far in p each peak is from the entry into a convex region; infinite if their numbers differ."""
        if len(self.peaks) != len(self.branch.entries):
            return [float("inf")]
        return [abs(peak - entry) for peak, entry in zip(self.peaks, self.branch.entries, strict=True)]


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/figure-2.html"), show_default=True)
def main(scale: str, out: Path) -> None:
    """Follow both branches of every task and write the page."""
    tasks = SCALES[scale]["tasks"]
    losses = random_losses(tasks, units=UNITS, seed=SEED)
    grid = np.linspace(-HALF_WIDTH, HALF_WIDTH, POINTS)
    found = [survey(loss, grid) for loss in losses]
    seen = [Seen(b, norm_peaks(loss, s, b)) for loss, s in zip(losses, found, strict=True) for b in s.basin]
    distances = [distance for branch in seen for distance in branch.distances]
    drawn = {f"task {i + 1}": landscape for i, landscape in enumerate(found[:DRAWN])}
    write(scale, out, tasks, drawn, seen, distances)


def write(
    scale: str,
    out: Path,
    tasks: int,
    drawn: dict[str, ScalarLandscape],
    seen: Sequence[Seen],
    distances: Sequence[float],
) -> None:
    """Write the page."""
    # Where the basin reaches the margin the loss falls all the way from it; elsewhere it has to climb.
    once = Proportion.of(b.rises_then_falls_once and abs(b.branch.start) == HALF_WIDTH for b in seen)
    once_in_basin = Proportion.of(b.rises_then_falls_once for b in seen)
    peaks = [len(branch.peaks) for branch in seen]
    charts = [
        scalar_norm_chart(
            drawn,
            key=f"norm-{name}",
            title=f"Gradient norm over loss, {name} branch",
            caption="Solid where the loss is convex, dotted where it is not; rings: it becomes convex. "
            "Training goes from right to left.",
            side=side,
        )
        for side, name in enumerate(("left", "right"))
    ]
    kinds = make_table(
        f"Branches within the basin of the minimum, by the number of peaks of the norm ({tasks:,} tasks, two "
        "branches each where the range has a minimum).",
        [Column("Peaks", False), Column("Branches", False)],
        [
            (
                "none: the norm falls from the start" if n == 0 else str(n),
                str(Proportion.of(peak == n for peak in peaks)),
            )
            for n in sorted(set(peaks))
        ],
    )
    study = Study(
        title="Figure 2: does the gradient norm rise, then fall, and peak at the swap?",
        claim="On each branch the norm rises in the non-convex part and falls in the convex one; the peak is the swap.",
        answer=[
            f"The peak is the swap, always: at each of {len(distances):,} peaks the second derivative changes sign, at "
            f"most {number(max(distances, default=0.0), 2)} away in p.",
            f"That there is exactly one is no rule: from the margins of −{HALF_WIDTH:g} ≤ p ≤ {HALF_WIDTH:g} the norm "
            f"rises and then falls once on {once} branches.",
            f"From starts that descent leads to the minimum: on {once_in_basin}.",
        ],
        command=f"python analyses/figure_2.py --scale {scale}",
        parts=[
            Part(
                "The five tasks of figure 1",
                [
                    "Agrees with the paper: wherever a branch starts non-convex, the norm rises until the loss becomes "
                    "convex, then falls.",
                    "Does not agree: not every branch has that pattern. Some start convex: the norm only falls. "
                    "Some have two peaks, of which the first is no sign that what follows is convex to the end.",
                    "With one parameter this says nothing about training: the norm is |L′|, its derivative is ±L″, so "
                    "peak and sign change must coincide. Figure 3 shows what is left of it with two parameters.",
                ],
                charts,
            ),
            Part(
                "How many",
                [
                    "Peaks were found from first derivatives alone, sign changes from the second derivative. A maximum "
                    "is flat, so its place is known to the square root of the rounding only, about 10⁻⁸ of the scale.",
                ],
                tables=[kinds],
            ),
        ],
        settings={
            "seed": SEED,
            "units": UNITS,
            "tasks": tasks,
            "range_of_p": f"−{HALF_WIDTH:g} to {HALF_WIDTH:g}",
            "points_of_the_grid": POINTS,
        },
        dtype="float64",
    )
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()

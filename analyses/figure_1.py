"""Figure 1 of the paper: is the loss of its random tasks convex around the minimum and non-convex at the margins?

Claim: the squared error of Σ tanh(p xᵢ) over p has a convex region around its minimum and is non-convex at the margins
(equations 3 and 4). Command: ``python analyses/figure_1.py --scale desk`` Run time: toy and paper seconds; desk under a
minute on one core. Expected outcome: the page ``reports/figure-1.html``. It draws the first five tasks and counts
1,000. Fewer than half have the paper's picture over -10 ≤ p ≤ 10, a fifth over ±40. In the others the loss turns and
falls again towards a margin. For starts from which descent reaches the minimum alone, the picture holds in nearly nine
of ten tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from paper.pages.landscape_charts import loss_chart
from paper.scalar_landscape import ScalarLandscape, random_losses, survey

from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.tables import Column, make_table
from convexlab.wording.numbers import percent
from convexlab.wording.proportion import Proportion

# Frozen settings. The paper names no range. At p = 10 the largest input gives tanh(5), the typical one tanh(2.5), 0.99.
# Beyond, only inputs near zero still move the output.
SEED = 0
UNITS = 100
DRAWN = 5
HALF_WIDTH = 10.0
OTHER_HALF_WIDTHS = (2.5, 5.0, 20.0, 40.0)
NEAR = 2.0  # how far up the second chart goes
POINTS = 801  # with 401 and 3,201 every count is the same
SCALES = {
    "toy": {"tasks": 20, "tasks_elsewhere": 10},
    "desk": {"tasks": 1000, "tasks_elsewhere": 300},
    "paper": {"tasks": DRAWN, "tasks_elsewhere": DRAWN},  # no more than it draws
}


def look(half_width: float, tasks: int) -> list[ScalarLandscape]:
    """Survey the first tasks over a range."""
    grid = np.linspace(-half_width, half_width, POINTS)
    return [survey(loss, grid) for loss in random_losses(tasks, units=UNITS, seed=SEED)]


def basin_is_simple(landscape: ScalarLandscape) -> bool:
    """Tell whether all starts that descent leads to the lowest minimum see non-convex first, then convex."""
    return bool(landscape.basin) and all(branch.is_simple for branch in landscape.basin)


CRITERIA: dict[str, Callable[[ScalarLandscape], bool]] = {
    "the paper's picture: falls from both margins, one convex region, around the minimum": lambda s: s.is_simple,
    "a minimum inside the range": lambda s: s.minimum is not None,
    "non-convex at both margins": lambda s: not s.regions[0].convex and not s.regions[-1].convex,
    "exactly one convex region": lambda s: len(s.convex_regions) == 1,
    "exactly one local minimum": lambda s: len(s.minima) == 1,
    "no local maximum: the loss falls all the way from both margins": lambda s: not s.maxima,
    "within the basin of the minimum: non-convex, then convex, from either side": basin_is_simple,
}


def half_width_rows(surveys: dict[float, list[ScalarLandscape]]) -> list[tuple[str, ...]]:
    """Return the two main counts for every range."""
    return [
        (
            f"−{half_width:g} to {half_width:g}",
            str(Proportion.of(s.is_simple for s in found)),
            str(Proportion.of(not s.regions[0].convex and not s.regions[-1].convex for s in found)),
            str(Proportion.of(basin_is_simple(s) for s in found)),
        )
        for half_width, found in sorted(surveys.items())
    ]


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/figure-1.html"), show_default=True)
def main(scale: str, out: Path) -> None:
    """Survey the tasks and write the page."""
    tasks, elsewhere = SCALES[scale]["tasks"], SCALES[scale]["tasks_elsewhere"]
    surveys = {HALF_WIDTH: look(HALF_WIDTH, tasks)}
    surveys |= {half_width: look(half_width, elsewhere) for half_width in OTHER_HALF_WIDTHS}
    found = surveys[HALF_WIDTH]
    drawn = {f"task {i + 1}": landscape for i, landscape in enumerate(found[:DRAWN])}
    picture, basin = Proportion.of(s.is_simple for s in found), Proportion.of(basin_is_simple(s) for s in found)
    margins = Proportion.of(not s.regions[0].convex and not s.regions[-1].convex for s in found)
    narrow, wide = (Proportion.of(s.is_simple for s in surveys[w]) for w in (5.0, 40.0))
    of_drawn = f"{sum(s.is_simple for s in drawn.values())} of these {len(drawn)} tasks"
    charts = [
        loss_chart(
            drawn,
            key="loss",
            title="Loss over the scaling parameter p",
            caption=f"Solid where the loss is convex, dotted where it is not; points are local minima. {of_drawn} have "
            "the paper's picture.",
        ),
        loss_chart(
            drawn,
            key="loss-low",
            title="The same near the minima",
            caption="A loss can have two exact fits: the output passes the target, turns and passes it again.",
            top=NEAR,
        ),
    ]
    criteria = make_table(
        f"Random tasks over −{HALF_WIDTH:g} ≤ p ≤ {HALF_WIDTH:g}; in brackets the share and its 95 % interval "
        "(Clopper-Pearson).",
        [Column("What holds", False), Column("Tasks", False)],
        [(text, str(Proportion.of(test(s) for s in found))) for text, test in CRITERIA.items()],
    )
    ranges = make_table(
        "The same over other ranges of p.",
        [
            Column("Range of p", False),
            Column("The paper's picture", False),
            Column("Non-convex at both margins", False),
            Column("Within the basin of the minimum", False),
        ],
        half_width_rows(surveys),
    )
    study = Study(
        title="Figure 1: are random one-parameter losses convex inside and non-convex outside?",
        claim="The loss of a random task has one convex region around its minimum and is non-convex at the margins.",
        answer=[
            f"Often, not typically: {picture} random tasks have the paper's picture over −{HALF_WIDTH:g} ≤ p ≤ "
            f"{HALF_WIDTH:g}.",
            f"It depends on the range: {narrow} within ±5, {wide} within ±40.",
            f"Seen only from starts that descent leads to the minimum, it holds in {basin}.",
        ],
        command=f"python analyses/figure_1.py --scale {scale}",
        parts=[
            Part(
                "Five tasks",
                [
                    "Agrees with the paper: around every minimum at which the output moves with p there is a convex "
                    f"region. That all of five tasks have the picture, as in the paper, has a probability of "
                    f"{percent(round(picture.share**5, 3))} over this range and "
                    f"{percent(round(narrow.share**5, 3))} over ±5.",
                    f"Does not agree: the margins are non-convex on both sides in {margins} only. The inputs have both "
                    "signs, so the output need not be monotone in p. Where it overshoots its limit, the loss turns and "
                    "falls again towards the margin, and is convex there. Some tasks have several minima.",
                ],
                charts,
            ),
            Part(
                "How many",
                [
                    "A task has the paper's picture if the loss falls from both margins to the minimum, first "
                    "non-convex, then convex, with one swap. The basin of the minimum ends at the next local "
                    "maximum, or at the margin where there is none.",
                    f"The paper names no range. At p = {HALF_WIDTH:g} the largest input gives tanh(5), a typical one "
                    "tanh(2.5) = 0.99; beyond, only inputs near zero still move the output.",
                ],
                tables=[criteria, ranges],
            ),
        ],
        settings={
            "seed": SEED,
            "units": UNITS,
            "inputs": "uniform on (−0.5, 0.5)",
            "target": "uniform on (0, 1)",
            "tasks": tasks,
            "tasks_over_other_ranges": elsewhere,
            "points_of_the_grid": POINTS,
        },
        dtype="float64",
    )
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()

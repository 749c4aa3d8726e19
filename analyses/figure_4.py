"""Figure 4 of the paper: how many convex regions and local minima has the two-layer model's loss, for which C?

Claim: at C = 0.40 there is one convex region; at 0.45 and 0.50 another on the left slope; at 0.55 and 0.60 another
local minimum. Command: ``python analyses/figure_4.py --scale desk`` Run time: toy and paper seconds; desk under a
minute on one core. Expected outcome: the page ``reports/figure-4.html``. With the printed plus sign there is one region
and one minimum for every C. With minus and the target 0.1 all five curves are as the paper says. The second region
arises at C = 0.420, the second minimum at exactly 1/2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from paper.pages.landscape_charts import loss_chart
from paper.scalar_landscape import (
    Change,
    Derivatives,
    ScalarLandscape,
    count_changes,
    differentiate,
    squared_error,
    survey,
)

from convexlab.architectures import TwoLayerTanh
from convexlab.reporting import Part, Study, write_study
from convexlab.reporting.tables import Column, make_table
from convexlab.wording.numbers import number

# Frozen settings. The paper names neither target nor range; beyond |p| = 4 the hidden unit is saturated: 0.9993.
WEIGHTS = [0.40, 0.45, 0.50, 0.55, 0.60]
PAPER = {0.40: (1, 1), 0.45: (2, 1), 0.50: (2, 1), 0.55: (2, 2), 0.60: (2, 2)}
TARGET = 0.1
TARGETS = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5]
HALF_WIDTH = 4.0
NEAR = 0.03, 1.8  # how far up and aside the closer chart goes
GRID = np.linspace(-HALF_WIDTH, HALF_WIDTH, 8001)
# For the sweeps: pairs of inflections closer than its step 0.008 are missed, which moves a change by some 10⁻⁵.
COARSE = np.linspace(-HALF_WIDTH, HALF_WIDTH, 1001)
SWEEP = (0.0, 0.65)
SCALES = {"toy": {"sweep": 14}, "desk": {"sweep": 131}, "paper": {"sweep": 14}}

Floats = npt.NDArray[np.float64]


def look(signed_weight: float, target: float = TARGET, grid: Floats = GRID) -> ScalarLandscape:
    """Survey y = tanh(h) - C tanh(2h), or plus with a negative C."""
    return survey(loss_of(signed_weight, target), grid)


def loss_of(signed_weight: float, target: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the squared error of the one unit x = 1."""
    return squared_error(TwoLayerTanh(weight=signed_weight), torch.ones(1), target)


def counts(landscape: ScalarLandscape) -> tuple[int, int]:
    """Return the numbers of convex regions and of local minima."""
    return len(landscape.convex_regions), len(landscape.minima)


def closed_form(p: Floats, signed_weight: float, target: float) -> Floats:
    """Return L″ = 2(y′² + (y - r)y″), derived by hand: with s = sech², tanh′ = s and s′ = -2 tanh s."""
    h = np.tanh(p)
    slope, bend = 1 / np.cosh(p) ** 2, -2 * h / np.cosh(p) ** 2
    inner, outer = 1 / np.cosh(h) ** 2, 1 / np.cosh(2 * h) ** 2
    y = np.tanh(h) - signed_weight * np.tanh(2 * h)
    dy = inner - 2 * signed_weight * outer
    ddy = -2 * np.tanh(h) * inner + 8 * signed_weight * np.tanh(2 * h) * outer
    result: Floats = 2 * ((dy * slope) ** 2 + (y - target) * (ddy * slope**2 + dy * bend))
    return result


def check(found: Derivatives, signed_weight: float) -> float:
    """Return the largest difference of the second derivative from the closed form, relative to its largest value."""
    expected = closed_form(GRID, signed_weight, TARGET)
    return float(np.abs(found.curvature - expected).max() / np.abs(expected).max())


def places(landscape: ScalarLandscape) -> str:
    """Return the convex regions as intervals."""
    # An inflection at zero is found to the rounding.
    ends = [[number(round(end, 9)) for end in (region.low, region.high)] for region in landscape.convex_regions]
    return ", ".join(" to ".join(pair) for pair in ends)


def agrees(found: ScalarLandscape, weight: float) -> bool:
    """Tell whether both counts are the paper's and what is additional lies left of the lowest minimum."""
    if counts(found) != PAPER[weight] or found.minimum is None:
        return False
    others = [region for region in found.convex_regions if not region.low < found.minimum < region.high]
    return all(region.high < found.minimum for region in others) and all(p <= found.minimum for p in found.minima)


def row(sign: str, weight: float, found: ScalarLandscape) -> tuple[str, ...]:
    """Return a line of the table."""
    regions, minima = counts(found)
    paper_regions, paper_minima = PAPER[weight]
    verdict = "agrees" if agrees(found, weight) else "does not"
    at = ", ".join(number(p) for p in found.minima)
    heading = f"C = {weight:.2f}, {sign}"
    return heading, str(regions), str(paper_regions), str(minima), str(paper_minima), verdict, places(found), at


def changes(steps: int, which: int, sign: int) -> tuple[Change, ...]:
    """Return where one of the counts changes with C."""
    values = np.linspace(*SWEEP, steps)
    return count_changes(lambda c: counts(look(sign * c, grid=COARSE))[which], values.tolist(), tolerance=1e-6)


def change_rows(steps: int) -> list[tuple[str, ...]]:
    """Return every change as a line."""
    return [
        (what, text, f"{change.at:.4f}", str(change.before), str(change.after))
        for sign, text in ((1, "minus"), (-1, "plus"))
        for which, what in enumerate(("convex regions", "local minima"))
        for change in changes(steps, which, sign)
    ]


def target_rows() -> list[tuple[str, ...]]:
    """Return the counts of the minus reading for other targets."""
    rows = []
    for target in TARGETS:
        found = [look(weight, target, COARSE) for weight in WEIGHTS]
        cells = ["{} / {}".format(*counts(landscape)) for landscape in found]
        agreeing = sum(agrees(landscape, weight) for landscape, weight in zip(found, WEIGHTS, strict=True))
        rows.append((f"{target:g}", *cells, f"{agreeing} of {len(WEIGHTS)}"))
    return rows


def agreeing_targets() -> tuple[float, float]:
    """Return between which targets all five curves are as the paper says, with minus."""

    def all_agree(target: float) -> int:
        return all(agrees(look(weight, target, COARSE), weight) for weight in WEIGHTS)

    low, high = count_changes(all_agree, TARGETS, tolerance=1e-4)
    return low.at, high.at


@click.command()
@click.option("--scale", type=click.Choice(list(SCALES)), default="desk", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/figure-4.html"), show_default=True)
def main(scale: str, out: Path) -> None:
    """Count and write the page."""
    steps = SCALES[scale]["sweep"]
    minus, plus = ({weight: look(sign * weight) for weight in WEIGHTS} for sign in (1, -1))
    agree_minus, agree_plus = (
        sum(agrees(landscape, weight) for weight, landscape in found.items()) for found in (minus, plus)
    )
    error = max(check(differentiate(loss_of(s * w, TARGET), GRID), s * w) for s in (1, -1) for w in WEIGHTS)
    moves = change_rows(steps)
    first = {what: at for what, sign, at, _, _ in reversed(moves) if sign == "minus"}
    low, high = agreeing_targets()
    named = {f"C = {weight:.2f}": landscape for weight, landscape in minus.items()}
    near = loss_chart(
        named,
        key="loss-near",
        title="The same with minus, near the minima",
        caption="The solid pieces on the left are the additional convex regions; from C = 0.55 on they hold a minimum.",
        top=NEAR[0],
        sides=(-NEAR[1], NEAR[1]),
    )
    charts = [
        loss_chart(
            {f"C = {weight:.2f}": landscape for weight, landscape in found.items()},
            key=f"loss-{sign}",
            title=f"Loss of the two-layer model, y = tanh(h) {symbol} C tanh(2h)",
            caption=f"Solid where convex, dotted where not; points are local minima. {note}",
        )
        for sign, symbol, found, note in (
            ("minus", "−", minus, f"{agree_minus} of 5 curves are as the paper says."),
            ("plus", "+", plus, f"As printed in equation 6: {agree_plus} of 5 are as the paper says."),
        )
    ]
    table = make_table(
        f"Counts for target {TARGET:g} over −{HALF_WIDTH:g} ≤ p ≤ {HALF_WIDTH:g}, beside the paper's words.",
        [
            Column("Model", False), "Convex regions", "Paper", "Local minima", "Paper", Column("Verdict", False),
            Column("Convex in", False), Column("Minima at", False),
        ],
        [row(text, w, found[w]) for text, found in (("minus", minus), ("plus", plus)) for w in WEIGHTS],
    )  # fmt: skip
    sweep = make_table(
        f"Where a count changes, C from {SWEEP[0]:g} to {SWEEP[1]:g}; bisected to 10⁻⁶.",
        [Column("Count", False), Column("Sign", False), "At C", "Before", "After"],
        moves,
    )
    other = make_table(
        "Minus, other targets: convex regions / local minima.",
        [Column("Target", False), *(f"C = {weight:.2f}" for weight in WEIGHTS), "As the paper"],
        target_rows(),
    )
    study = Study(
        title="Figure 4: when does the two-layer model get more convex regions, and when more minima?",
        claim="One convex region at C = 0.40, another on the left slope from 0.45, another minimum from 0.55.",
        answer=[
            f"With a minus before C and target {TARGET:g}, {agree_minus} of 5 curves are as the paper says; with the "
            f"plus that equation 6 prints, {agree_plus} of 5.",
            f"The second convex region arises at C = {first.get('convex regions', '–')}, the second minimum at "
            f"{first.get('local minima', '–')}.",
        ],
        command=f"python analyses/figure_4.py --scale {scale}",
        parts=[
            Part(
                "Both readings of the sign",
                [
                    "Agrees with the paper, if C enters with a minus. A convex region splits off on the left slope "
                    "before it holds a minimum. So a patchwork of regions is an early stage of several minima.",
                    "Does not agree as printed. With a plus the output is monotone in p, so the squared error has one "
                    "minimum at every C, and one convex region.",
                ],
                [charts[0], near, charts[1]],
                [table],
            ),
            Part(
                "Where the counts change",
                [
                    "The minimum's threshold is exact: dy/dh = sech²h − 2C sech²2h first vanishes, at h = 0, for "
                    "C = 1/2. There the slope only touches zero, so C = 0.50 is the last curve with one minimum.",
                    f"The second derivative was checked against a closed form at {len(GRID):,} points of all ten "
                    f"curves: the largest difference is {number(error, 2)} of the largest value.",
                    f"The paper does not name the target; all five curves fit its words for targets from {low:.3f} to "
                    f"{high:.3f}.",
                ],
                tables=[sweep, other],
            ),
        ],
        settings={
            "target": TARGET,
            "input": "one unit, x = 1",
            "weights_C": WEIGHTS,
            "range_of_p": f"−{HALF_WIDTH:g} to {HALF_WIDTH:g}",
            "points_of_the_grid": len(GRID),
            "points_in_sweeps": len(COARSE),
            "steps_of_the_sweep": steps,
        },
        dtype="float64",
    )
    click.echo("\n".join([*study.answer, str(write_study(study, out))]))


if __name__ == "__main__":
    main()

"""The charts draw what the landscape says, and say it in words."""

from __future__ import annotations

import numpy as np
import torch
from paper.pages.landscape_charts import loss_chart, scalar_norm_chart
from paper.scalar_landscape import survey


def well(p: torch.Tensor) -> torch.Tensor:
    return -1 / (1 + p**2)


def test_a_loss_is_solid_where_convex_and_told_in_words() -> None:
    found = {"well": survey(well, np.linspace(-3, 3, 601))}
    chart = loss_chart(found, key="loss", title="A loss", caption="It has a well.", top=-0.1, sides=(-2, 2))
    assert chart.description == "well: convex in [−0.577, 0.577], minima at 0."
    # Dotted on both sides.
    assert chart.svg.count("stroke-dasharray") == 2


def test_a_norm_has_its_peak_in_words() -> None:
    found = {"well": survey(well, np.linspace(-3, 3, 6001)), "line": survey(lambda p: 2 * p, [0.0, 1.0, 2.0])}
    left, right = (
        scalar_norm_chart(found, key="norm", title="A norm", caption="It peaks.", side=side) for side in (0, 1)
    )
    # |2p / (1 + p²)²| and -1 / (1 + p²) at p² = 1/3; a line has no minimum and is left out.
    assert left.description == right.description == "well: norm peaks 0.650 at loss −0.750."
    assert ">line<" not in left.svg

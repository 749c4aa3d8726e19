"""Algorithm 1 on curves whose switch is known by hand."""

from __future__ import annotations

import math

import pytest

from convexlab.detection import Algorithm1
from tests.verification.conftest import Record

pytestmark = pytest.mark.verify

# Loss and gradient norm after each of 40 epochs: vit-nomlp on 500 of scikit-learn's digits, Adam with rate 1e-3 and
# batches of 64, seed 0. The norm collapses from the random head, has its trough at epoch 9, then rises and falls.
RECORDED = (
    (0.09136, 0.1817), (0.08949, 0.1032), (0.08817, 0.04448), (0.08768, 0.04773), (0.08714, 0.04468),
    (0.08651, 0.03482), (0.08589, 0.03273), (0.0851, 0.03211), (0.08382, 0.0194), (0.08183, 0.03472),
    (0.07798, 0.04557), (0.07327, 0.05486), (0.06975, 0.09125), (0.06592, 0.1201), (0.06181, 0.1633),
    (0.05583, 0.141), (0.05168, 0.08864), (0.04846, 0.126), (0.04546, 0.1657), (0.04029, 0.1044),
    (0.03945, 0.2023), (0.03705, 0.1934), (0.03438, 0.1461), (0.03306, 0.1972), (0.03035, 0.1813),
    (0.03045, 0.2878), (0.02536, 0.08291), (0.02542, 0.1551), (0.02536, 0.1991), (0.0238, 0.1578),
    (0.02157, 0.1138), (0.0219, 0.1409), (0.02144, 0.1864), (0.0205, 0.1814), (0.01957, 0.2145),
    (0.01901, 0.2205), (0.01758, 0.1465), (0.01788, 0.1707), (0.01674, 0.1473), (0.01625, 0.1792),
)  # fmt: skip

NORMS = tuple(norm for _, norm in RECORDED)

# Norms, factor, and the epoch of the switch, counted from 1; None: never.
CASES: dict[str, tuple[tuple[float, ...], float, int | None]] = {
    "rise and fall": ((1, 2, 3, 4, 3.7, 3.5), 0.9, 6),  # 3.7 > 3.6 >= 3.5
    "exactly at the factor": ((1, 2, 4, 2), 0.5, 4),  # norm <= factor * largest
    "just above the factor": ((1, 2, 4, 2.0000001), 0.5, None),
    "only rising": ((1, 2, 3, 4), 0.9, None),
    "only falling": ((4, 3.9, 3.5, 1), 0.9, 3),  # 3.9 > 3.6 >= 3.5
    "constant": ((2, 2, 2, 2), 0.9, None),
    "a dip, then a higher peak": ((1, 5, 4.6, 9, 8.2, 8.1), 0.9, 6),  # 4.6 > 4.5; 8.2 > 8.1 >= 8.1
    "an epoch that is not finite": ((1, math.nan, 4, math.inf, 3.7, 3.5), 0.9, 6),
    "a norm of zero": ((0.0,), 0.9, 1),
    "recorded": (NORMS, 0.9, 2),  # 0.1032 <= 0.9 × 0.1817: the collapse from the random head
    "recorded from the trough on": (NORMS[8:], 0.9, 8),  # 0.141 <= 0.9 × 0.1633, at epoch 16
    "recorded from the trough on, factor 0.5": (NORMS[8:], 0.5, 19),  # 0.08291 <= 0.5 × 0.2878, at epoch 27
}


@pytest.mark.parametrize("case", CASES)
def test_the_switch(record: Record, case: str) -> None:
    norms, factor, expected = CASES[case]
    detector, found = Algorithm1(factor), None
    for epoch, norm in enumerate(norms, start=1):
        if detector.update(loss=1 / epoch, gradient_norm=norm) and found is None:
            found = epoch
    assert detector.fired is (expected is not None)
    told = "never" if found is None else f"epoch {found}"
    record(
        f"Algorithm 1, {case}: {told}", "by hand", abs((found or math.inf) - expected) if expected else found or 0, 0
    )

"""A detector of the curvature itself."""

from __future__ import annotations

import math

from convexlab.detection.base import Detector, Signals, at_least, fraction
from convexlab.errors import MisuseError

__all__ = ["NoNegativeCurvature"]


class NoNegativeCurvature(Detector):
    """Curvature: positive along the gradient, and the Hessian's negative end is small beside its positive one.

    It measures what the peak of the gradient norm is supposed to show. It fires when gᵀHg / gᵀg > 0 and smallest >=
    -``enter`` * largest in ``patience`` measurements in a row. It looks at the state and not at a change: a run that
    begins where there is no negative curvature switches after ``patience`` measurements.

    The smallest eigenvalue counts relative to the largest, because it never reaches zero. It stays slightly negative
    long after the peak, and is more negative on a sample of the data than on all of them. Therefore ``enter`` is a
    twentieth. It may hover there, therefore ``leave``: a measurement between -``enter`` and -``leave`` leaves the count
    as it is. One below -``leave``, or with gᵀHg <= 0, sets it back to zero. Negative curvature of a twentieth is
    possible at the switch: a second phase still has to cope with it.

    Where gᵀHg is NaN, the last known one is used. Nothing counts before both ends are measured again. gᵀHg <= 0 alone
    sets the count back. Costs what `convexlab.Watch` spends on measuring.

    Args:
        enter: how far the smallest eigenvalue may be below zero, as a share of the largest.
        leave: share beyond which the count is set back to zero; at least ``enter``.
        patience: measurements in a row.

    Raises:
        MisuseError: a setting out of range.
    """

    cost = 0.05
    needs = frozenset({"gradient_curvature", "smallest", "largest"})

    def __init__(self, *, enter: float = 0.05, leave: float = 0.1, patience: int = 2) -> None:
        super().__init__()
        self.enter = fraction("enter", enter)
        self.leave = fraction("leave", leave)
        if leave < enter:
            raise MisuseError(f"expected leave of at least enter, {enter!r}, got {leave!r}.")
        self.patience = at_least("patience", patience, 1, "measurement")
        self._along = math.nan
        self._counted = 0

    def _decide(self, signals: Signals) -> tuple[bool, str]:
        values = (signals.gradient_curvature, signals.smallest, signals.largest)
        along, smallest, largest = (math.nan if value is None else value for value in values)
        self._along = along if math.isfinite(along) else self._along
        if self._along <= 0.0:
            self._counted = 0
            return False, f"the curvature along the gradient, {self._along:.3g}, is not positive"
        if not (math.isfinite(self._along) and math.isfinite(smallest) and math.isfinite(largest)):
            return False, self.reason if self._counted else "the curvature has not been measured"
        if smallest < -self.leave * largest:
            self._counted = 0
        elif smallest >= -self.enter * largest:
            self._counted += 1
        ends = f"the smallest eigenvalue is {smallest:.3g}, the largest {largest:.3g}"
        if self._counted < self.patience:
            return False, f"{ends}: {self._counted} of {self.patience} measurements without negative curvature"
        return True, (
            f"{ends}, and the curvature along the gradient {self._along:.3g}: no negative curvature below "
            f"{self.enter:g} of the largest in {self.patience} measurements in a row"
        )

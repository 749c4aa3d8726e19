"""A run's oracle, read once from its directory: where every switch that was tried ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from convexlab.runs.rows import Outcome, Row, mapping_of, number_of

__all__ = ["Oracle", "TriedSwitch", "neighbour_factor", "read_oracle"]


@dataclass(frozen=True)
class TriedSwitch:
    """One switch from Adam at a constant rate, followed to the end of the budget."""

    epoch: float
    """Epoch of Adam at which it switched."""
    train_loss: float
    """At its best epoch."""
    outcome: Outcome
    resort: float | None
    """Epoch after which phase two gave up and Adam took the rest; None if it did not."""


@dataclass(frozen=True)
class Oracle:
    """Every switch that was tried; at least one."""

    switches: tuple[TriedSwitch, ...]
    """The switches, by epoch."""
    cost: float | None
    """Gradient equivalents that they took beside Adam's epochs, which they share with the baseline."""

    @property
    def best(self) -> TriedSwitch:
        """The one that ended lowest; of equal ones the earliest."""
        return min(self.switches, key=lambda switch: switch.train_loss)


def read_oracle(summary: Row, rows: Iterable[Row]) -> Oracle | None:
    """Return the oracle of `summary.json` and `oracle.jsonl`; None where none was asked, or it is not done."""
    result = mapping_of(summary, "oracle")
    switches = sorted(filter(None, map(_switch, rows)), key=lambda switch: switch.epoch)
    return Oracle(tuple(switches), number_of(result, "gradient_equivalents")) if result and switches else None


def _switch(row: Row) -> TriedSwitch | None:
    epoch, loss = number_of(row, "switch_epoch"), number_of(row, "train_loss")
    if epoch is None or loss is None:
        return None
    return TriedSwitch(epoch, loss, Outcome.from_row(row), number_of(mapping_of(row, "safe_resort"), "epoch"))


def neighbour_factor(losses: Sequence[float]) -> float:
    """Return the median factor, at least 1, between successive losses (all positive): what the next switch changes."""
    logarithms = [math.log(loss) for loss in losses]
    changes = [abs(after - before) for before, after in pairwise(logarithms)]
    return math.exp(median(changes)) if changes else 1.0

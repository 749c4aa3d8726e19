"""How often something happened, with the uncertainty of so many trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Not scipy.stats, which takes a second to import.
from scipy.special import betaincinv

from convexlab.errors import MisuseError
from convexlab.wording.numbers import count, decimals

__all__ = ["Proportion"]


@dataclass(frozen=True)
class Proportion:
    """A count among independent trials, with its exact (Clopper-Pearson 1934) confidence interval.

    Raises:
        MisuseError: the count is not between 0 and the number of trials, or there is no trial.
    """

    count: int
    trials: int
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not (0 <= self.count <= self.trials and self.trials > 0):
            raise MisuseError(
                f"a proportion needs 0 <= count <= trials with at least one trial, got {self.count} of {self.trials}"
            )

    @classmethod
    def of(cls, hits: Iterable[bool]) -> Proportion:
        """Count the trials that are hits."""
        trials = list(hits)
        return cls(sum(map(bool, trials)), len(trials))

    @property
    def share(self) -> float:
        """The count over the trials."""
        return self.count / self.trials

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the confidence interval of the probability."""
        tail = (1 - self.confidence) / 2
        hits, misses = self.count, self.trials - self.count
        low = betaincinv(hits, misses + 1, tail) if hits else 0.0
        high = betaincinv(hits + 1, misses, 1 - tail) if misses else 1.0
        return float(low), float(high)

    def __str__(self) -> str:
        """As in ``38 of 40 (95 %; 83.1 to 99.4 %)``: the count, its share, and the interval."""
        space = "\N{NO-BREAK SPACE}"
        share, low, high = (decimals(100 * value, 1) for value in (self.share, *self.interval))
        return f"{count(self.count)} of {count(self.trials)} ({share}{space}%; {low} to {high}{space}%)"

"""The sentences on what a sample says of the loss of all training examples."""

from __future__ import annotations

from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import count, signed, with_interval

__all__ = ["beyond_the_sample", "sampling_sentence"]


_THERE = {
    "open": ": its sign there is open",
    "negative": ": negative there too",
    "not negative": ": not negative there",
}


Estimate = tuple[float | None, float | None, float | None]
"""A value with the ends of its interval."""


def beyond_the_sample(checkpoint: ProbedCheckpoint) -> tuple[Estimate, str]:
    """Return curvature along the smallest eigenvector on all examples, or else on fresh ones, and its sign.

    The sign is "negative", "not negative" or "open"; "" where nothing is known.
    """
    c = checkpoint
    if c.fresh_examples is None or c.smallest is None:
        return (None, None, None), ""
    estimate = c.smallest_fresh, c.smallest_fresh_low, c.smallest_fresh_high
    if _of_the_training_set(c):
        estimate = c.smallest_full, c.smallest_full_low, c.smallest_full_high
    value, low, high = estimate
    floor = c.rounding_floor
    if value is None or low is None or high is None or (low <= floor and high >= -floor):
        return estimate, "open"
    return estimate, "negative" if value < 0 else "not negative"


def sampling_sentence(checkpoint: ProbedCheckpoint) -> str:
    """Return the size of the sample, and what other examples say of its curvature; empty where the size is unknown.

    The other examples are evaluated along the direction of smallest curvature. An eigenvector of a sample was chosen
    for its curvature on that sample.
    """
    examples, population = checkpoint.examples, checkpoint.population or checkpoint.train_size
    if examples is None or population is None:
        return ""
    of = f"all {count(examples)}" if examples >= population else f"{count(examples)} of {count(population)}"
    return f"The loss is that of {of} training examples. {_on_others(checkpoint, population)}".rstrip()


def _on_others(checkpoint: ProbedCheckpoint, population: int) -> str:
    c, floor = checkpoint, checkpoint.rounding_floor
    if c.fresh_examples is None or c.smallest is None:
        return ""
    subset, (estimate, sign) = _of_the_training_set(c), beyond_the_sample(c)
    sentence = (
        f"On {count(c.fresh_examples)} {'other training' if subset else 'validation'} examples the direction of "
        f"smallest curvature ({signed(c.smallest, floor)}) has "
        f"{_curvature(c, c.smallest_fresh, c.smallest_fresh_low, c.smallest_fresh_high)}"
    )
    if subset:
        sentence += f", hence on all {count(population)} {with_interval(*estimate, floor)}"
    return f"{sentence}{_THERE[sign] if c.verdict == 'non-convex' else ''}."


def _of_the_training_set(c: ProbedCheckpoint) -> bool:
    """Return whether the fresh examples are of the training set: only then do they speak for all of it."""
    population = c.population or c.train_size
    return c.examples is not None and population is not None and c.examples < population and c.smallest_full is not None


def _curvature(c: ProbedCheckpoint, value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "no finite curvature"
    known = low is not None and high is not None
    return with_interval(value, low, high, c.rounding_floor, c.interval_level) + ("" if known else " (error unknown)")

"""The sentences on what a sample says of the loss of all training examples."""

from __future__ import annotations

from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import count, signed, with_interval

__all__ = ["sampling_sentence"]


def sampling_sentence(checkpoint: ProbedCheckpoint) -> str:
    """Return over how many training examples the loss is, and what others say of it; empty where nothing counts them.

    What others say is about the direction of smallest curvature: an eigenvector that was found on a sample was chosen
    for its curvature there.
    """
    examples, population = checkpoint.examples, checkpoint.population or checkpoint.train_size
    if examples is None or population is None:
        return ""
    of = f"all {count(examples)}" if examples >= population else f"{count(examples)} of {count(population)}"
    return f"The loss is that of {of} training examples. {_on_others(checkpoint, examples, population)}".rstrip()


def _on_others(checkpoint: ProbedCheckpoint, examples: int, population: int) -> str:
    c, floor = checkpoint, checkpoint.rounding_floor
    if c.fresh_examples is None or c.smallest is None:
        return ""
    estimate = c.smallest_fresh, c.smallest_fresh_low, c.smallest_fresh_high
    # Only where the fresh examples are of the training set do they say anything of all of it.
    subset = examples < population and c.smallest_full is not None
    sentence = (
        f"On {count(c.fresh_examples)} {'other training' if subset else 'validation'} examples the direction of "
        f"smallest curvature ({signed(c.smallest, floor)}) has {_curvature(c, *estimate)}"
    )
    if subset:
        estimate = c.smallest_full, c.smallest_full_low, c.smallest_full_high
        sentence += f", hence on all {count(population)} {with_interval(*estimate, floor)}"
    return f"{sentence}{f': {_sign(*estimate, floor)}' if c.verdict == 'non-convex' else ''}."


def _curvature(c: ProbedCheckpoint, value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "no finite curvature"
    known = low is not None and high is not None
    return with_interval(value, low, high, c.rounding_floor, c.interval_level) + ("" if known else " (error unknown)")


def _sign(value: float | None, low: float | None, high: float | None, floor: float) -> str:
    if value is None or low is None or high is None or (low <= floor and high >= -floor):
        return "its sign there is open"
    return "negative there too" if value < 0 else "not negative there"

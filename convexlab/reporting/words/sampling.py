"""The sentences on what a sample says of the loss of all training examples."""

from __future__ import annotations

from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import count, plus_minus, signed

__all__ = ["sampling_sentence"]

# Standard errors within which no sign is stated: about 95 %.
_SIGNIFICANT = 2.0


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
    value, error = c.smallest_fresh, c.smallest_fresh_standard_error
    # Only where the fresh examples are of the training set do they say anything of all of it.
    subset = examples < population and c.smallest_full is not None
    sentence = (
        f"On {count(c.fresh_examples)} {'other training' if subset else 'validation'} examples the direction of "
        f"smallest curvature ({signed(c.smallest, floor)}) has {_estimate(value, error, floor)}"
    )
    if subset:
        value, error = c.smallest_full, c.smallest_full_standard_error
        sentence += f", hence on all {count(population)} {plus_minus(value, error, floor)}"
    return f"{sentence}{f': {_sign(value, error, floor)}' if c.verdict == 'non-convex' else ''}."


def _estimate(value: float | None, error: float | None, floor: float) -> str:
    if value is None:
        return "no finite curvature"
    known = "standard error" if error is not None else "standard error unknown"
    return f"{plus_minus(value, error, floor)} ({known})"


def _sign(value: float | None, error: float | None, floor: float) -> str:
    if value is None or error is None or abs(value) <= _SIGNIFICANT * error + floor:
        return "its sign there is open"
    return "negative there too" if value < 0 else "not negative there"

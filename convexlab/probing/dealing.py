"""Checkpoints under torchrun: dealt to the ranks, or every one shared out to all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from convexlab.errors import MisuseError
from convexlab.machine.memory import available_memory
from convexlab.machine.ranks import ALONE, Ranks, together
from convexlab.objective.batches import rows_of
from convexlab.probing.loss import ProbedLoss
from convexlab.runs.rows import ProbedCheckpoint

__all__ = ["checkpoints_to_deal", "examples_of", "has_room", "measure_dealt", "words_of"]

# What the decision counts on. It is made of these and of sizes alone, so that it is the same every time. They are rough
# estimates, measured on a processor in docs/scale.md. A product with the Hessian takes twelve operations a parameter
# and example: two gradients, each of a forward pass (2) and a backward pass (4).
_OPERATIONS = 12
_PER_SECOND = 1e10
"""Operations of a rank."""
_BYTES_PER_SECOND = 1e9
"""Of an all-reduce, of 8 bytes a parameter, each sent and received once."""
_MICRO_BATCH, _EVERY_MICRO_BATCH, _MEETING = 128, 2e-3, 1e-3
"""Examples that are evaluated at a time; seconds that these take however few parameters there are; and those in which
ranks meet."""
# A rank that waits for another cannot tell a slow one from a lost one: so none waits for longer than about this.
_LONGEST_WAIT = 60.0


def checkpoints_to_deal(
    checkpoints: int, ranks: int, *, parameters: int, examples: int | None, products: int, fits: bool
) -> int:
    """Return how many checkpoints are dealt to the ranks, one each at a time; the others are shared out.

    Shared out, a product takes each rank its part of the examples, and an all-reduce. A round of as many checkpoints
    as ranks is dealt without that. Of what is left over fewer ranks would be at work, which pays where products are
    small.

    Args:
        checkpoints: to be measured.
        ranks: that measure them.
        parameters: n.
        examples: that the loss is the mean over; None is not known, and nothing is dealt then.
        products: of a checkpoint, about.
        fits: whether each rank has the memory for a whole Krylov basis.
    """
    if ranks == 1 or not fits or examples is None:
        return 0
    work, batches = _OPERATIONS * parameters * examples / _PER_SECOND, -(-examples // _MICRO_BATCH)
    alone = work + batches * _EVERY_MICRO_BATCH
    shared = work / ranks + -(-batches // ranks) * _EVERY_MICRO_BATCH
    shared += _MEETING + 2 * 8 * parameters / _BYTES_PER_SECOND
    if alone * products > _LONGEST_WAIT:
        return 0
    left = checkpoints % ranks
    return checkpoints if alone < left * shared else checkpoints - left


def examples_of(loss: ProbedLoss) -> int | None:
    """Return the examples that a loss is the mean over; None where nothing counts them."""
    if loss.examples is not None:
        return loss.examples
    try:
        return sum(map(rows_of, loss.objective.data))
    except MisuseError:
        return None


def words_of(dealt: int, checkpoints: int, ranks: int) -> str:
    """Return what was decided, in a line."""
    parts = [f"{dealt} dealt to {ranks} ranks, one each at a time" if dealt else ""]
    parts += [f"{checkpoints - dealt} shared out to all {ranks} ranks" if dealt < checkpoints else ""]
    return f"of {checkpoints} checkpoints {', '.join(filter(None, parts))}"


def has_room(ranks: Ranks, losses: Sequence[ProbedLoss], need: Callable[[], int]) -> bool:
    """Return whether every rank has the bytes free that it says it needs to measure by itself."""

    def is_short() -> bool:
        free = available_memory(losses[0].objective.device)
        with _alone(losses):
            return free is not None and need() > free

    return not ranks.any(ranks.alike(is_short))


def measure_dealt(
    ranks: Ranks, losses: Sequence[ProbedLoss], measures: Sequence[Callable[[], ProbedCheckpoint]]
) -> list[ProbedCheckpoint]:
    """Return the rows of as many checkpoints as there are ranks, or fewer: each measured by one rank alone.

    Args:
        ranks: all of which call this.
        losses: of the checkpoints, which ranks share at other times.
        measures: the measurement of each, in the order of the ranks; each writes its own files.

    Raises:
        ConvexLabError: what one of them raised, in all ranks.
    """

    def ours() -> ProbedCheckpoint | None:
        if ranks.rank >= len(measures):
            return None
        with _alone(losses):
            return measures[ranks.rank]()

    return [row for row in ranks.gathered(ranks.alike(ours)) if row is not None]


@contextmanager
def _alone(losses: Sequence[ProbedLoss]) -> Iterator[None]:
    """Within the block, losses are evaluated and files written by this rank alone."""
    before = [loss.objective.ranks for loss in losses]
    for loss in losses:
        loss.objective.ranks = ALONE
    try:
        with together(ALONE):
            yield
    finally:
        for loss, ranks in zip(losses, before, strict=True):
            loss.objective.ranks = ranks

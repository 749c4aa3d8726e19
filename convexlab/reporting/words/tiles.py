"""The answer at a glance: did switching pay, when was it, and what was the curvature there and at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from convexlab.reporting.facts.comparison import BaselineComparison, compare, geometric_mean
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.comparison import cost_clause, loss_factor
from convexlab.reporting.words.run import counted, has_paid, has_switched, place, verdict_name
from convexlab.reporting.words.several import switch_range
from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import count, lower_bound, number, percent, signed

__all__ = ["Tile", "joint_tiles", "tiles"]


class Tile(NamedTuple):
    """A figure that answers at a glance."""

    label: str
    value: str
    note: str


def tiles(facts: RunFacts) -> list[Tile]:
    """Return the tiles of one run or of one probe; facts that are not known have no tile."""
    known = [_paid(facts), _when(facts), *_curvatures(facts), _along(facts)]
    return [tile for tile in known if tile is not None]


def _paid(facts: RunFacts) -> Tile | None:
    comparison = compare(facts)
    if comparison is not None:
        losses = f"{number(comparison.two_phase_loss)}, better Adam {number(comparison.baseline_loss)}"
        return Tile(
            "Did switching pay?", _answer(facts, comparison), f"training loss {losses}, {cost_clause(comparison)}"
        )
    if facts.two_phase is None or facts.two_phase.train_loss is None:
        return None
    return Tile("Training loss, two-phase", number(facts.two_phase.train_loss), "no baseline to compare with")


def _answer(facts: RunFacts, comparison: BaselineComparison) -> str:
    if not has_switched(facts):
        return "not tried"
    if not comparison.is_conclusive:
        return "not decided"
    word = {"better": "yes", "worse": "no", "equal": "no difference"}[comparison.result]
    level = "lower" if comparison.result == "better" else "higher"
    return f"{word}, {loss_factor(comparison)}× {level}" if loss_factor(comparison) else word


def _when(facts: RunFacts) -> Tile | None:
    switch = facts.switch
    if switch is None:
        return None
    if switch.epoch is None:
        return Tile("When did it switch?", "never", switch.detector)
    share = facts.switch_share
    notes = ([] if share is None else [f"{percent(share, 0)} of the budget"]) + [switch.detector]
    return Tile("When did it switch?", f"epoch {count(switch.epoch)}", ", ".join(filter(None, notes)))


def _curvatures(facts: RunFacts) -> list[Tile]:
    """The curvature at the switch and at the end, in one tile where they are the same checkpoint."""
    if not facts.probe:
        return []
    last, there = facts.probe[-1], facts.probe_at_switch
    if there is None:
        return [_curvature("Curvature at the end", last)]
    if there is last:
        return [_curvature("Curvature at the switch and at the end", last)]
    name = "at" if facts.switch is not None and there.epoch == facts.switch.epoch else "near"
    return [_curvature(f"Curvature {name} the switch", there), _curvature("Curvature at the end", last)]


def _curvature(name: str, checkpoint: ProbedCheckpoint) -> Tile:
    note = _measured(checkpoint)
    return Tile(name, verdict_name(checkpoint.verdict), f"{place(checkpoint)}: {note}" if note else place(checkpoint))


def _measured(checkpoint: ProbedCheckpoint) -> str:
    """The number on which the verdict rests."""
    floor = checkpoint.rounding_floor
    if checkpoint.verdict == "non-convex" and checkpoint.smallest is not None:
        return f"{signed(checkpoint.smallest, floor)} along a direction found"
    bound = checkpoint.smallest_lower_bound
    return "" if bound is None else f"no eigenvalue below {lower_bound(bound, floor)}{_confidence(checkpoint)}"


def _confidence(checkpoint: ProbedCheckpoint) -> str:
    return "" if checkpoint.confidence is None else f", confidence {percent(checkpoint.confidence)}"


def _along(facts: RunFacts) -> Tile | None:
    negative = [checkpoint for checkpoint in facts.probe if checkpoint.verdict == "non-convex"]
    if len(facts.probe) < 2:
        return None
    note = f"checkpoints probed, last at {place(negative[-1])}" if negative else "checkpoints probed"
    return Tile("Proven non-convex at", f"{len(negative)} of {len(facts.probe)}", note)


def joint_tiles(runs: Sequence[RunFacts]) -> list[Tile]:
    """Return the tiles of several runs together."""
    there = [facts.probe_at_switch for facts in runs]
    last = [facts.probe[-1] for facts in runs if facts.probe]
    known = [
        _joint_paid(runs),
        _joint_when(runs),
        _joint_curvature("Non-convex at the switch", [checkpoint for checkpoint in there if checkpoint is not None]),
        _joint_curvature("Non-convex at the end", last),
    ]
    return [tile for tile in known if tile is not None]


def _joint_paid(runs: Sequence[RunFacts]) -> Tile | None:
    switched = [facts for facts in runs if has_switched(facts) and compare(facts) is not None]
    if not switched:
        return None
    mean = geometric_mean(comparison for comparison in map(compare, switched) if comparison is not None)
    note = "" if mean is None else f"two-phase loss over the better Adam's, geometric mean: {number(mean)}"
    return Tile("Did switching pay?", f"in {sum(map(has_paid, switched))} of {len(switched)} runs", note)


def _joint_when(runs: Sequence[RunFacts]) -> Tile | None:
    decided = [facts for facts in runs if facts.switch is not None]
    if not decided:
        return None
    epochs, shares = switch_range(decided)
    never = len(decided) - sum(map(has_switched, decided))
    notes = [
        f"{shares} of the budget" if shares else "",
        f"{never} of {len(decided)} never" if epochs and never else "",
    ]
    return Tile("When did they switch?", f"epoch {epochs}" if epochs else "never", ", ".join(filter(None, notes)))


def _joint_curvature(name: str, checkpoints: Sequence[ProbedCheckpoint]) -> Tile | None:
    if not checkpoints:
        return None
    verdicts = Counter(checkpoint.verdict for checkpoint in checkpoints)
    others = Counter({verdict_name(verdict): times for verdict, times in verdicts.items() if verdict != "non-convex"})
    return Tile(name, f"{verdicts['non-convex']} of {len(checkpoints)}", counted(others))

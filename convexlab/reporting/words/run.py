"""The sentences of a report: what was reached, when it switched, and what may be said about convexity."""

from __future__ import annotations

from collections import Counter

import numpy as np

from convexlab.reporting.facts.comparison import Comparison, compare
from convexlab.reporting.facts.run import TWO_PHASE, Digest
from convexlab.reporting.numbers import count, lower_bound, number, percent, signed
from convexlab.reporting.words.hindsight import oracle_sentence
from convexlab.reporting.words.sampling import sampling_sentence
from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.verdict import verdict_sentence

__all__ = [
    "algorithm_name",
    "has_paid",
    "has_switched",
    "headline",
    "judgement",
    "place",
    "switch_sentence",
    "verdict_clause",
    "verdict_name",
]

_ALGORITHMS = {"adam-constant": "Adam, constant rate", "adam-cosine": "Adam, cosine rate"}
_VERDICTS = {
    "non-convex": "non-convex",
    "no-negative-curvature": "no negative curvature found",
    "unresolved": "unresolved",
}

_ANSWERS = {
    "better": "Switching paid here. ",
    "worse": "Switching did not pay here. ",
    "equal": "Switching made no difference here. ",
}


def verdict_name(verdict: str) -> str:
    """Return a verdict in words."""
    return _VERDICTS.get(verdict, verdict or "not judged")


def algorithm_name(run: str, digest: Digest) -> str:
    """Return the name of a training run for a table or a legend."""
    if run != TWO_PHASE:
        return _ALGORITHMS.get(run, run)
    if digest.switch is not None and digest.switch.epoch is None:
        return "Two-phase, never switched"
    return f"Adam + {digest.phase_two}"


def place(checkpoint: ProbedCheckpoint) -> str:
    """Return where a checkpoint lies in training."""
    return checkpoint.checkpoint if checkpoint.epoch is None else f"epoch {count(checkpoint.epoch)}"


def headline(digest: Digest) -> list[str]:
    """Return the sentences that answer the page's question, the result first."""
    first = [_probe_sentence(digest)] if digest.is_probe else [_outcome_sentence(digest), switch_sentence(digest)]
    verdicts = (_verdict_at_switch(digest), _last_verdict(digest), _last_sample(digest))
    return [part for part in (*first, oracle_sentence(digest), *verdicts) if part]


def has_paid(digest: Digest) -> bool:
    """Tell whether there was a switch and the run ended better than the better Adam at no more cost."""
    comparison = compare(digest)
    if comparison is None or not has_switched(digest):
        return False
    return comparison.is_conclusive and comparison.word == "better"


def has_switched(digest: Digest) -> bool:
    """Tell whether training is known to have left Adam."""
    return digest.switch is not None and digest.switch.epoch is not None


def _outcome_sentence(digest: Digest) -> str:
    comparison = compare(digest)
    if comparison is not None:
        return f"{_answer(digest, comparison)}{_comparison_sentence(comparison)}"
    if digest.two_phase is not None and digest.two_phase.train_loss is not None:
        return (
            f"Two-phase training reached a training loss of {number(digest.two_phase.train_loss)}. "
            "No Adam baseline was run, so this says nothing about better or worse."
        )
    curve = digest.curve
    if curve is None or not np.isfinite(curve.loss).any():
        return "No epoch is recorded yet."
    last = np.flatnonzero(np.isfinite(curve.loss))[-1]
    state = "ended at" if digest.finished else "stands at"
    return f"After epoch {count(curve.epoch[last])} training {state} a training loss of {number(curve.loss[last])}."


def _answer(digest: Digest, comparison: Comparison) -> str:
    """The answer in a few words: for this run, of which there may be others."""
    if not has_switched(digest):
        return ""
    if not comparison.is_conclusive:
        return "Whether switching paid cannot be told here. "
    return _ANSWERS[comparison.word]


def _comparison_sentence(comparison: Comparison) -> str:
    rate = _ALGORITHMS.get(comparison.baseline, comparison.baseline)
    losses = f"training loss {number(comparison.two_phase_loss)} against {number(comparison.baseline_loss)}"
    factor = f", a factor of {comparison.factor}" if comparison.factor else ""
    facts = f"the better Adam baseline ({rate}): {losses}{factor}, {comparison.cost_clause}"
    if not comparison.is_conclusive:
        return f"Two-phase training cannot be compared fairly with {facts}."
    word = "level with" if comparison.word == "equal" else f"{comparison.word} than"
    return f"Two-phase training ended {word} {facts}."


def switch_sentence(digest: Digest) -> str:
    """Return when training left Adam."""
    switch = digest.switch
    if switch is None:
        return "" if digest.finished or digest.is_probe else "It has not switched from Adam yet."
    if switch.epoch is None:
        return "It never switched, so the whole run is Adam."
    at = [
        f"{what} {number(value)}"
        for what, value in (("training loss", switch.train_loss), ("gradient norm", switch.gradient_norm))
        if value is not None
    ]
    share = digest.switch_share
    spent = "" if share is None else f", with {percent(round(share, 2))} of the budget spent"
    told = (
        f"It switched from Adam to {digest.phase_two} after epoch {count(switch.epoch)}"
        f"{' at ' + ' and '.join(at) if at else ''}{spent}."
    )
    if digest.safe_resort is None:
        return told
    return f"{told} After epoch {count(digest.safe_resort.epoch)} phase two gave up, and training went back to Adam."


def _verdict_at_switch(digest: Digest) -> str:
    there = digest.probe_at_switch
    if there is None or there is digest.probe[-1] or digest.switch is None:
        return ""
    where = "At the switch" if there.epoch == digest.switch.epoch else "At the checkpoint nearest the switch"
    return f"{where} ({place(there)}): {verdict_clause(there)}."


def _last_verdict(digest: Digest) -> str:
    if not digest.probe:
        return ""
    last = digest.probe[-1]
    where = "At the last checkpoint probed"
    if digest.switch is not None and last.epoch is not None and last.epoch == digest.switch.epoch:
        where = "At the switch, the last checkpoint probed"
    return f"{where} ({place(last)}): {verdict_clause(last)}."


def _last_sample(digest: Digest) -> str:
    return sampling_sentence(digest.probe[-1]) if digest.probe else ""


def _probe_sentence(digest: Digest) -> str:
    if not digest.probe:
        return "No checkpoint is probed yet."
    counts = Counter(verdict_name(checkpoint.verdict) for checkpoint in digest.probe)
    total = len(digest.probe)
    if total == 1:
        return f"The one checkpoint: {next(iter(counts))}."
    told = ", ".join(f"{found}\N{NO-BREAK SPACE}× {name}" for name, found in counts.most_common())
    return f"Verdicts over {total} checkpoints: {told}."


def judgement(checkpoint: ProbedCheckpoint) -> str:
    """Return all that is said of one checkpoint: the verdict, and what the sample says of the full loss."""
    return f"{_verdict(checkpoint)} {sampling_sentence(checkpoint)}".rstrip()


def _verdict(checkpoint: ProbedCheckpoint) -> str:
    c = checkpoint
    if c.verdict in _VERDICTS and c.smallest is not None:
        return verdict_sentence(
            c.verdict,
            smallest=c.smallest,
            smallest_lower_bound=c.smallest_lower_bound,
            largest=c.largest,
            rounding_floor=c.rounding_floor,
            confidence=c.confidence,
            steps=c.steps,
            second_difference=c.second_difference,
        )
    if c.failure:
        return f"Nothing can be said about curvature here: {c.failure}"
    if c.verdict == "unresolved" and (c.train_loss is None or c.gradient_norm is None):
        what = "loss" if c.train_loss is None else "gradient"
        return f"The {what} is not finite here: curvature has no meaning."
    return f"{verdict_name(c.verdict)}."


def verdict_clause(checkpoint: ProbedCheckpoint) -> str:
    """Return the verdict and the number it rests on, as a clause without a full stop."""
    clause = {
        "non-convex": _non_convex,
        "no-negative-curvature": _no_negative_curvature,
        "unresolved": _unresolved,
    }.get(checkpoint.verdict)
    return clause(checkpoint) if clause else verdict_name(checkpoint.verdict)


def _non_convex(checkpoint: ProbedCheckpoint) -> str:
    if checkpoint.smallest is None:
        return "non-convex"
    return (
        f"non-convex, with curvature {signed(checkpoint.smallest, checkpoint.rounding_floor)} along a direction found"
    )


def _no_negative_curvature(checkpoint: ProbedCheckpoint) -> str:
    below = ""
    if checkpoint.floor is not None and checkpoint.largest is not None:
        threshold = max(checkpoint.floor * abs(checkpoint.largest), checkpoint.rounding_floor)
        below = f" below {number(-threshold)} ({number(checkpoint.floor, 1)} of the largest eigenvalue)"
    return f"no negative curvature{below}{_confidence(checkpoint)}"


def _unresolved(checkpoint: ProbedCheckpoint) -> str:
    parts = []
    if checkpoint.smallest is not None:
        parts.append(f"the smallest eigenvalue found is {signed(checkpoint.smallest, checkpoint.rounding_floor)}")
    if checkpoint.smallest_lower_bound is not None:
        bound = lower_bound(checkpoint.smallest_lower_bound, checkpoint.rounding_floor)
        parts.append(f"none is below {bound}{_confidence(checkpoint)}")
    return "unresolved" + (": " + ", ".join(parts) if parts else "")


def _confidence(checkpoint: ProbedCheckpoint) -> str:
    if checkpoint.confidence is None:
        return ""
    return f", with confidence {percent(checkpoint.confidence)} over the random start"

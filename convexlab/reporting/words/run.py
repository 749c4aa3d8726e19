"""The sentences of a report: what was reached, when it switched, and what may be said about convexity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from convexlab.reporting.facts.comparison import BaselineComparison, compare
from convexlab.reporting.facts.run import TWO_PHASE, RunFacts
from convexlab.reporting.words.comparison import cost_clause, loss_factor
from convexlab.reporting.words.hindsight import oracle_sentence
from convexlab.reporting.words.sampling import sampling_sentence
from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import count, lower_bound, number, percent, signed
from convexlab.wording.verdict import verdict_sentence

__all__ = [
    "algorithm_name",
    "counted",
    "curvature_headline",
    "has_paid",
    "has_switched",
    "headline",
    "judgement",
    "place",
    "result_sentence",
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


def algorithm_name(run: str, facts: RunFacts) -> str:
    """Return the name of a training run for a table or a legend."""
    if run != TWO_PHASE:
        return _ALGORITHMS.get(run, run)
    if facts.switch is not None and facts.switch.epoch is None:
        return "Two-phase, never switched"
    if facts.switch is None and facts.two_phase is not None and facts.two_phase.diverged is not None:
        return "Two-phase, before any switch"
    return f"Adam + {facts.phase_two}"


def place(checkpoint: ProbedCheckpoint) -> str:
    """Return where a checkpoint lies in training."""
    return checkpoint.checkpoint if checkpoint.epoch is None else f"{axis_of([checkpoint])} {count(checkpoint.epoch)}"


def axis_of(probe: Sequence[ProbedCheckpoint]) -> str:
    """Return the unit of the checkpoints' places, "epoch" or "step", whatever else a file says."""
    return "step" if any(checkpoint.axis == "step" for checkpoint in probe) else "epoch"


def headline(facts: RunFacts) -> list[str]:
    """Return the sentences that answer the page's question, the result first."""
    outcome = [*_divergences(facts), result_sentence(facts), switch_sentence(facts)]
    first = [_probe_sentence(facts)] if facts.is_probe else outcome
    verdicts = (_verdict_at_switch(facts), _last_verdict(facts), _last_sample(facts))
    return [part for part in (*first, oracle_sentence(facts), *verdicts) if part]


def curvature_headline(facts: RunFacts) -> list[str]:
    """Return the sentences on curvature alone."""
    return [part for part in (_probe_sentence(facts), _verdict_at_switch(facts), _last_verdict(facts)) if part]


def has_paid(facts: RunFacts) -> bool:
    """Return whether the run switched, and ended better than the better Adam at no more cost."""
    comparison = compare(facts)
    if comparison is None or not facts.has_second_phase:
        return False
    return comparison.is_conclusive and comparison.result == "better"


def has_switched(facts: RunFacts) -> bool:
    """Return whether training is known to have left Adam."""
    return facts.switch is not None and facts.switch.epoch is not None


def _divergences(facts: RunFacts) -> list[str]:
    """Return which training runs diverged, and the weights that stand for them."""
    return [
        f"{algorithm_name(run, facts)} diverged: in epoch {count(outcome.diverged)} its loss or gradient became "
        f"infinite or NaN. Its best weights, of epoch {count(outcome.epoch)}, stand for it."
        for run, outcome in reversed(facts.outcomes.items())
        if outcome.diverged is not None
    ]


def result_sentence(facts: RunFacts) -> str:
    """Return what the run reached, beside its better Adam baseline where there is one."""
    comparison = compare(facts)
    if comparison is not None:
        return f"{_answer(facts, comparison)}{_comparison_sentence(comparison)}"
    if facts.two_phase is not None and facts.two_phase.train_loss is not None:
        return (
            f"Two-phase training reached a training loss of {number(facts.two_phase.train_loss)}. "
            "No Adam baseline was run, so there is nothing to compare it with."
        )
    curve = facts.curve
    if curve is None or not np.isfinite(curve.loss).any():
        return "No epoch has been recorded yet."
    last = np.flatnonzero(np.isfinite(curve.loss))[-1]
    return f"After epoch {count(curve.epoch[last])} the training loss is {number(curve.loss[last])}."


def _answer(facts: RunFacts, comparison: BaselineComparison) -> str:
    """Return the answer in a few words, for this run alone."""
    if not has_switched(facts):
        return ""
    if not facts.has_second_phase:
        return "Phase two made no step, so nothing is known of switching. "
    if not comparison.is_conclusive:
        return "This run does not show whether switching paid. "
    return _ANSWERS[comparison.result]


def _comparison_sentence(comparison: BaselineComparison) -> str:
    baseline = f"the better Adam baseline ({_ALGORITHMS.get(comparison.baseline, comparison.baseline)})"
    losses = f"{number(comparison.two_phase_loss)} against {number(comparison.baseline_loss)}"
    factor = f", a factor of {loss_factor(comparison)}" if loss_factor(comparison) else ""
    numbers = f"{losses}{factor}, {cost_clause(comparison)}"
    if not comparison.is_conclusive:
        return f"Two-phase training cannot be compared fairly with {baseline}: training loss {numbers}."
    reached = {
        "better": "a lower training loss than",
        "worse": "a higher training loss than",
        "equal": "the training loss of",
    }
    return f"Two-phase training reached {reached[comparison.result]} {baseline}: {numbers}."


def switch_sentence(facts: RunFacts) -> str:
    """Return when training left Adam."""
    switch = facts.switch
    if switch is None:
        return "" if facts.finished or facts.is_probe else "It has not switched from Adam yet."
    if switch.epoch is None:
        return "It never switched, so the whole run is Adam."
    at = [
        f"{what} {number(value)}"
        for what, value in (("training loss", switch.train_loss), ("gradient norm", switch.gradient_norm))
        if value is not None
    ]
    share = facts.switch_share
    spent = "" if share is None else f", with {percent(share, 0)} of the budget spent"
    sentence = (
        f"It switched from Adam to {facts.phase_two} after epoch {count(switch.epoch)}"
        f"{' at ' + ' and '.join(at) if at else ''}{spent}."
    )
    if facts.phase_two_reason:
        sentence = f"{sentence} That second phase was chosen for its size: {facts.phase_two_reason}."
    if facts.expectation:
        sentence = f"{sentence} What was expected then: {facts.expectation}"
    if facts.safe_resort is None:
        return sentence
    return f"{sentence} After epoch {count(facts.safe_resort.epoch)} phase two gave up, and training went back to Adam."


def _verdict_at_switch(facts: RunFacts) -> str:
    there = facts.probe_at_switch
    if there is None or there is facts.probe[-1] or facts.switch is None:
        return ""
    where = "At the switch" if there.epoch == facts.switch.epoch else "At the checkpoint nearest the switch"
    return f"{where} ({place(there)}): {verdict_clause(there)}."


def _last_verdict(facts: RunFacts) -> str:
    if not facts.probe:
        return ""
    last = facts.probe[-1]
    where = "At the last checkpoint probed"
    if facts.switch is not None and last.epoch is not None and last.epoch == facts.switch.epoch:
        where = "At the switch, the last checkpoint probed"
    return f"{where} ({place(last)}): {verdict_clause(last)}."


def _last_sample(facts: RunFacts) -> str:
    return sampling_sentence(facts.probe[-1]) if facts.probe else ""


def _probe_sentence(facts: RunFacts) -> str:
    if not facts.probe:
        return "No checkpoint has been probed yet."
    counts = Counter(verdict_name(checkpoint.verdict) for checkpoint in facts.probe)
    total = len(facts.probe)
    if total == 1:
        return f"The one checkpoint: {next(iter(counts))}."
    return f"Verdicts over {total} checkpoints: {counted(counts)}."


def counted(counts: Counter[str]) -> str:
    """Return the counts in words, the most frequent first."""
    return ", ".join(f"{times}\N{NO-BREAK SPACE}× {name}" for name, times in counts.most_common())


def judgement(checkpoint: ProbedCheckpoint) -> str:
    """Return the sentences on one checkpoint: verdict, precision, and what the sample says of the full loss."""
    sentences = _verdict(checkpoint), _precision(checkpoint), sampling_sentence(checkpoint)
    return " ".join(filter(None, sentences))


def _precision(checkpoint: ProbedCheckpoint) -> str:
    if not checkpoint.precision or checkpoint.deviation is None:
        return ""
    allowed = number(checkpoint.deviation, 2)
    return f"Products were made in {checkpoint.precision}: the bound allows for an error of {allowed}."


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

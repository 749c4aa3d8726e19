"""The sentences of a report on several runs: how often switching paid, when the switches were, and the verdicts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from convexlab.reporting.facts.comparison import BaselineComparison, compare, geometric_mean
from convexlab.reporting.facts.run import RunFacts
from convexlab.reporting.words.hindsight import joint_oracle_sentence
from convexlab.reporting.words.run import counted, has_paid, has_switched, headline, verdict_name
from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import count, number, percent

__all__ = ["headline_of", "joint_headline", "switch_range", "title_of"]

_WORDS = {"better": "better", "equal": "level", "worse": "worse", "": "not comparable in cost"}
_ALWAYS_NAMED = ("better", "worse")


def title_of(runs: Sequence[RunFacts]) -> str:
    """Return what runs are about."""
    subjects = Counter(facts.subject for facts in runs)
    subject = next(iter(subjects)) if len(subjects) == 1 else f"{len(runs)} runs"
    return subject if len(runs) == 1 or len(subjects) > 1 else f"{subject}, {len(runs)} runs"


def headline_of(runs: Sequence[RunFacts]) -> list[str]:
    """Return the sentences that answer for one run, or for several together."""
    return headline(runs[0]) if len(runs) == 1 else joint_headline(runs)


def joint_headline(runs: Sequence[RunFacts]) -> list[str]:
    """Return the sentences that answer for several runs together."""
    there = [checkpoint for facts in runs if (checkpoint := facts.probe_at_switch) is not None]
    ends = [facts.probe[-1] for facts in runs if facts.probe]
    sentences = [
        _paid(runs),
        _when(runs),
        joint_oracle_sentence(runs),
        _verdicts("at or nearest the switch", there),
        _verdicts("at the last checkpoint probed", ends),
    ]
    return [sentence for sentence in sentences if sentence] or ["No run has anything to compare yet."]


def _paid(runs: Sequence[RunFacts]) -> str:
    compared = {index: comparison for index, facts in enumerate(runs) if (comparison := compare(facts))}
    if not compared:
        return ""
    words = Counter(comparison.result if comparison.is_conclusive else "" for comparison in compared.values())
    counts = [f"{word} in {words[key]}" for key, word in _WORDS.items() if words[key] or key in _ALWAYS_NAMED]
    switched = [runs[index] for index in compared if has_switched(runs[index])]
    answer = "None of them switched."
    if switched:
        answer = f"Switching paid in {sum(map(has_paid, switched)) or 'none'} of {_runs(len(switched), len(compared))}."
    return (
        f"{answer} Against the better Adam baseline of each run, two-phase training ended {', '.join(counts)} "
        f"of {len(compared)}.{_range(list(compared.values()))}"
    )


def _runs(switched: int, compared: int) -> str:
    if switched == compared:
        return "1 run" if switched == 1 else f"{switched} runs"
    return "the one run that switched" if switched == 1 else f"the {switched} runs that switched"


def _range(comparisons: Sequence[BaselineComparison]) -> str:
    mean = geometric_mean(comparisons)
    if mean is None:
        return ""
    ratios = [comparison.ratio for comparison in comparisons if not math.isnan(comparison.ratio)]
    return (
        f" Its training loss is {number(mean)} times Adam's in the geometric mean "
        f"({number(min(ratios))} to {number(max(ratios))})."
    )


def switch_range(runs: Sequence[RunFacts]) -> tuple[str, str]:
    """Return the ranges of the switch epochs and of the shares of the budget spent by then; empty if unknown."""
    epochs = [d.switch.epoch for d in runs if d.switch is not None and d.switch.epoch is not None]
    shares = [share for share in (facts.switch_share for facts in runs) if share is not None]
    spent = [percent(share, 0) for share in (shares and (min(shares), max(shares)))]
    return _span([count(end) for end in (epochs and (min(epochs), max(epochs)))]), _span(spent)


def _span(ends: Sequence[str]) -> str:
    return " to ".join(dict.fromkeys(ends))


def _when(runs: Sequence[RunFacts]) -> str:
    decided = [facts for facts in runs if facts.switch is not None]
    never = len(decided) - sum(map(has_switched, decided))
    if not decided:
        return ""
    epochs, shares = switch_range(decided)
    if not epochs:
        return ""
    spent = f", with {shares} of the budget spent" if shares else ""
    return f"They switched after epoch {epochs}{spent}{f'; {never} of {len(decided)} never did' if never else ''}."


def _verdicts(where: str, checkpoints: Sequence[ProbedCheckpoint]) -> str:
    if not checkpoints:
        return ""
    counts = Counter(verdict_name(checkpoint.verdict) for checkpoint in checkpoints)
    return f"Verdicts {where}: {counted(counts)}."

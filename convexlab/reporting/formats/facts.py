"""The facts of a page as JSON, its numbers with all their digits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convexlab._version import __version__
from convexlab.reporting.facts.claims import OUTCOMES, Evidence, evidence_of, judge
from convexlab.reporting.facts.comparison import compare
from convexlab.reporting.facts.run import RunFacts, value_at
from convexlab.reporting.parts.claims import judgements_of
from convexlab.reporting.words.claims import CLAIM_TEXTS, measured, reason_clause
from convexlab.reporting.words.run import axis_of, headline
from convexlab.reporting.words.several import headline_of, title_of
from convexlab.runs.rows import Outcome, without_density
from convexlab.wording.proportion import Proportion

__all__ = ["SCHEMA", "facts_text"]

SCHEMA = 1
"""Version of the JSON object. New fields leave it as it is; a field that changes its meaning increases it."""


def facts_text(runs: Sequence[RunFacts]) -> str:
    """Return the facts of the page as one JSON object; what is not known is null."""
    value = {
        "schema": SCHEMA,
        "convexlab": __version__,
        "title": title_of(runs),
        "headline": headline_of(runs),
        "claims": _claims(runs),
        "runs": [_run(facts) for facts in runs],
    }
    return json.dumps(_plain(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _claims(runs: Sequence[RunFacts]) -> dict[str, Any]:
    known = [evidence for _, evidence in measured(runs)]
    return {
        "runs": len(known),
        "points": sum(len(evidence.points) for evidence in known),
        "proven_non_convex": sum(evidence.proven for evidence in known),
        "outcomes": {
            claim: _shares(Counter(judgement.outcome for judgement in judgements))
            for claim, judgements in judgements_of(runs).items()
        },
    }


def _shares(counts: Counter[Any]) -> dict[str, Any]:
    """Return counts of runs with the ends of their 95 % intervals."""
    runs = counts.total()
    shares = {outcome: Proportion(counts[outcome], runs) for outcome in OUTCOMES} if runs else {}
    return {
        outcome: {"count": share.count, "low": share.interval[0], "high": share.interval[1]}
        for outcome, share in shares.items()
    }


def _run(facts: RunFacts) -> dict[str, Any]:
    comparison, evidence = compare(facts), evidence_of(facts)
    names = (
        "label",
        "finished",
        "is_probe",
        "model",
        "parameters",
        "overdetermination",
        "dataset",
        "train_size",
        "seed",
    )
    return {name: getattr(facts, name) for name in names} | {
        "headline": headline(facts),
        "budget": facts.budget,
        "phase_two": facts.phase_two,
        "switch": facts.switch,
        "switch_share": facts.switch_share,
        "safe_resort": facts.safe_resort,
        "outcomes": {run: _outcome(outcome) for run, outcome in facts.outcomes.items()},
        "comparison": comparison
        and {
            "baseline": comparison.baseline,
            "ratio": comparison.ratio,
            "result": comparison.result,
            "conclusive": comparison.is_conclusive,
            "gradient_equivalents": comparison.costs,
        },
        "claims": {
            claim: {
                "claim": CLAIM_TEXTS[claim],
                "outcome": judgement.outcome,
                "reason": reason_clause(judgement, axis_of(facts.probe)),
            }
            for claim, judgement in (judge(evidence).items() if evidence.points else ())
        },
        "norm_peak": _peak(facts, evidence),
        "checkpoints": [without_density(checkpoint.as_row()) for checkpoint in facts.probe],
        "switches_tried": [
            {"epoch": tried.epoch, "train_loss": tried.train_loss}
            for tried in (facts.oracle.switches if facts.oracle else ())
        ],
        "settings": facts.config,
        "environment": facts.environment,
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    fields = dict(vars(outcome))
    return {"gradient_equivalents": fields.pop("cost")} | fields


def _peak(facts: RunFacts, evidence: Evidence) -> dict[str, float | None] | None:
    """Return where the gradient norm peaks after its first trough."""
    if evidence.peak is None:
        return None
    at = {"epoch": evidence.peak, "gradient_norm": evidence.norms[evidence.epochs.index(evidence.peak)]}
    curve = facts.curve
    return at | {"train_loss": None if curve is None else value_at(curve.epoch, curve.loss, evidence.peak)}


def _plain(value: Any) -> Any:
    """Return the value in types that JSON has; numbers that are not finite become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dict(vars(value)))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)

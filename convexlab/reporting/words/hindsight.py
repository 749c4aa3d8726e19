"""The sentences on the best switch in hindsight; they always say among how many it is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from convexlab.reporting.facts.comparison import level
from convexlab.reporting.facts.run import RunFacts
from convexlab.runs.oracle import Oracle, neighbour_factor
from convexlab.wording.numbers import count, number

__all__ = ["joint_oracle_sentence", "oracle_paragraphs", "oracle_sentence"]

_CHANCE = "The best of several is partly luck."


def oracle_sentence(facts: RunFacts) -> str:
    """Return how the best switch compares with the run's own decision and with Adam alone; empty without an oracle."""
    ratio, oracle = _ratio(facts), facts.oracle
    if ratio is None or oracle is None:
        return ""
    several = len(oracle.switches) > 1
    parts = (_best_switch(facts, oracle, ratio), _adam_alone(facts), _CHANCE if several else "")
    return " ".join(part for part in parts if part)


def _best_switch(facts: RunFacts, oracle: Oracle, ratio: float) -> str:
    at, tried = f"at epoch {count(oracle.best.epoch)}", f"{len(oracle.switches)} switches"
    times = f"{number(ratio)} times the loss of {_decision(facts)}"
    if len(oracle.switches) == 1:
        return f"The one switch tried, {at}, ended at {times}."
    if not level(ratio, 1.0):
        if ratio < 1:
            return f"The best of {tried} was {at}: {times}."
        return (
            f"None of {tried} ended lower than {_decision(facts)}: the best, {at}, has {number(ratio)} times its loss."
        )
    if facts.switch is not None and facts.switch.epoch == oracle.best.epoch:
        return f"The best of {tried} was {at}, where this run switched."
    return f"The best of {tried} was {at}, level with {_decision(facts)}."


def _ratio(facts: RunFacts) -> float | None:
    """The best switch's loss over the run's own; None where either is unknown or not positive."""
    ours = None if facts.two_phase is None else facts.two_phase.train_loss
    if facts.oracle is None or ours is None or min(ours, facts.oracle.best.train_loss) <= 0:
        return None
    return facts.oracle.best.train_loss / ours


def _decision(facts: RunFacts) -> str:
    switch = facts.switch
    if switch is None or switch.epoch is None:
        return "this run without a switch"
    return f"the {'chosen' if switch.detector == 'switch-epoch' else 'detected'} switch at epoch {count(switch.epoch)}"


def _adam_alone(facts: RunFacts) -> str:
    """Whether to have switched at all."""
    better = facts.better_baseline
    if facts.oracle is None or better is None or better[1].train_loss is None:
        return ""
    ratio = better[1].train_loss / facts.oracle.best.train_loss
    ended = "level with" if level(ratio, 1.0) else f"at {number(ratio)} times the loss of"
    return f"Adam alone, the better of constant and cosine rate, ended {ended} the best switch."


def oracle_paragraphs(facts: RunFacts) -> list[str]:
    """Return what was tried, what it cost, and how much two neighbours differ."""
    oracle = facts.oracle
    if oracle is None:
        return []
    epochs = [count(switch.epoch) for switch in oracle.switches]
    span = f"epoch {epochs[0]}" if len(epochs) == 1 else f"{len(epochs)} epochs, {epochs[0]} to {epochs[-1]},"
    sentences = [
        f"Phase two was also started from {span} of Adam at a constant rate, and followed to the end of the same "
        "budget. Each counts at its best epoch."
    ]
    losses = [switch.train_loss for switch in oracle.switches]
    if len(losses) > 1 and min(losses) > 0:
        sentences.append(
            f"From one switch to the next the loss changes by a median factor of {number(neighbour_factor(losses))}."
        )
    resorts = sum(switch.resort is not None for switch in oracle.switches)
    if resorts:
        sentences.append(f"In {resorts} of them phase two gave up, and Adam went on.")
    own = None if facts.switch is None else facts.switch.epoch
    if own is not None and oracle.best.epoch > own:
        sentences.append(
            f"After epoch {count(own)} the curvature charts show this run's second phase, not Adam, from which the "
            "best switch began."
        )
    sentences.append(
        f"These trials cost {count(oracle.cost)} gradient equivalents beside the run, and had no part in its decision."
    )
    return [" ".join(sentences)]


def joint_oracle_sentence(runs: Sequence[RunFacts]) -> str:
    """Return how the best switches of several runs compare with their own decisions; empty without any oracle."""
    ratios = [ratio for ratio in map(_ratio, runs) if ratio is not None]
    if not ratios:
        return ""
    mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
    return (
        f"Over {len(ratios)} runs, the best switch ended at {number(mean)} times the loss of the run's own decision "
        f"(geometric mean; {number(min(ratios))} to {number(max(ratios))}). {_CHANCE}"
    )

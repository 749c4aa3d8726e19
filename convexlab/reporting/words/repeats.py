"""Whether the same command gives the same numbers again, and what may differ."""

from __future__ import annotations

from collections.abc import Sequence

from convexlab.reporting.facts.run import RunFacts
from convexlab.wording.numbers import count

__all__ = ["repeats_sentences"]

_SAME = (
    "The same command on the same machine gives the same numbers again, to the last digit. Only seconds, memory and "
    "the charts over seconds differ."
)


def repeats_sentences(runs: Sequence[RunFacts]) -> list[str]:
    """Return the settings that decide whether runs repeat; empty for older runs, which do not record them."""
    by_text: dict[str, list[str]] = {}
    for facts in runs:
        if text := _sentence(facts):
            by_text.setdefault(text, []).append(facts.label)
    if len(by_text) < 2:
        return list(by_text)
    return [f"{', '.join(labels)}: {text}" for text, labels in by_text.items()]


def _sentence(facts: RunFacts) -> str:
    made_by = facts.made_by
    exact = made_by.get("repeats_exactly")
    if not isinstance(exact, bool):
        return ""
    open_points = []
    if not exact:
        open_points.append(
            f"Not deterministic: kernels of {made_by.get('device', 'the device')} may add in another order each time. "
            "Torch's deterministic algorithms were off (torch.use_deterministic_algorithms)."
        )
    if made_by.get("threads_set") is False:
        threads = made_by.get("threads")
        number = f", {count(threads)} here" if isinstance(threads, int) and not isinstance(threads, bool) else ""
        open_points.append(
            f"Not set: the number of threads. It was the machine's own{number}; with another one sums round otherwise "
            "(OMP_NUM_THREADS)."
        )
    return " ".join([_SAME] * exact + open_points)

"""Names and numbers of the measures beside the training loss, for people."""

from __future__ import annotations

from convexlab.wording.numbers import accuracy, number

__all__ = ["is_share", "measure_heading", "measure_name", "measure_value"]

_NAMES = {"train_accuracy": "training accuracy"}


def measure_name(name: str) -> str:
    """Return what a measure is called: its own name, as words."""
    return _NAMES.get(name) or name.replace("_", " ").strip() or "unnamed"


def measure_heading(name: str, of: str = "") -> str:
    """Return the heading of a column or of a chart: the measure, and the data that it was measured on."""
    words = measure_name(name)
    return words[0].upper() + words[1:] + (f", {of}" if of else "")


def is_share(name: str) -> bool:
    """Return whether a measure is a share between 0 and 1, by its name."""
    return name.endswith("accuracy")


def measure_value(name: str, value: float | None) -> str:
    """Return a measure's number."""
    # Some count accuracy in per cent.
    return accuracy(value) if is_share(name) and value is not None and 0 <= value <= 1 else number(value)

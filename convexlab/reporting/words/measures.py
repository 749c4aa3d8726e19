"""What runs measure beside the training loss: the names and the numbers, for people."""

from __future__ import annotations

from convexlab.wording.numbers import accuracy, number

__all__ = ["is_share", "measure_heading", "measure_name", "measure_value"]

_NAMES = {"train_accuracy": "training accuracy"}


def measure_name(name: str) -> str:
    """Return what a measure is called: its own name, as words."""
    return _NAMES.get(name) or name.replace("_", " ").strip() or "unnamed"


def measure_heading(name: str, of: str = "") -> str:
    """Return it for the head of a column or of a chart, with what it was measured of."""
    words = measure_name(name)
    return words[0].upper() + words[1:] + (f", {of}" if of else "")


def is_share(name: str) -> bool:
    """Tell whether a measure is a share between 0 and 1, by its name."""
    return name.endswith("accuracy")


def measure_value(name: str, value: float | None) -> str:
    """Return a measure's number."""
    # Some count accuracy in per cent.
    return accuracy(value) if is_share(name) and value is not None and 0 <= value <= 1 else number(value)

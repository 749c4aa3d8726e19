"""Which comes when along training, as a checkpoint says in its content, its metadata or its name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["NO_TIME", "TIME_KEYS", "Time", "time_in", "time_of_name"]

_NUMBER = r"[=_-]?(\d+)(?![\d.]*\d*e[+-]?\d)"
_EPOCH = re.compile(rf"(?:^|[^a-z])(?:epochs?|ep){_NUMBER}", re.IGNORECASE)
_STEP = re.compile(rf"(?:^|[^a-z])(?:global_?step|steps?|iterations?|iters?){_NUMBER}", re.IGNORECASE)
# A bare number stands for whatever the row is in; `checkpoint-100` of Hugging Face is a step.
_SAVED = re.compile(rf"(?:^|[^a-z])(?:checkpoint){_NUMBER}", re.IGNORECASE)
_LAST = re.compile(r"(?:^|(?<!\de)[=_\-])(\d+)$")
_EPOCH_KEYS, _STEP_KEYS = ("epoch", "epochs"), ("global_step", "step", "iteration", "iter", "steps")
TIME_KEYS = frozenset(_EPOCH_KEYS + _STEP_KEYS)
"""Under which names a file says when along training it was stored."""


@dataclass(frozen=True)
class Time:
    """When along training; None where that is not said."""

    epoch: int | None = None
    step: int | None = None

    def or_else(self, other: Time) -> Time:
        """Return this with what it lacks from another."""
        return Time(
            self.epoch if self.epoch is not None else other.epoch, self.step if self.step is not None else other.step
        )


NO_TIME = Time()


def time_in(content: Any) -> Time:
    """Return what a file's content, or its metadata, say beside the weights."""
    if not isinstance(content, Mapping):
        return Time()
    return Time(_first(content, _EPOCH_KEYS), _first(content, _STEP_KEYS))


def time_of_name(path: Path) -> Time:
    """Return what the name of a file says, or that of its folder; and what a trainer's state beside it says."""
    own = path.stem if path.is_file() else path.name
    time = Time(_number(_LAST, own))  # Of its own alone: a folder such as `run-2` is another run.
    for name in (own, path.parent.name):
        epoch, step, saved = (_number(pattern, name) for pattern in (_EPOCH, _STEP, _SAVED))
        if epoch is not None or step is not None or saved is not None:
            time = Time(epoch, step if step is not None else saved)
            break
    folder = path if path.is_dir() else path.parent
    return time.or_else(_trainer_state(folder / "trainer_state.json"))


def _trainer_state(path: Path) -> Time:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return Time()
    return Time(step=time_in(content).step)  # Its epochs are fractions.


def _first(content: Mapping[Any, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = content.get(key)
        if isinstance(value, str) and value.isdecimal() and len(value) < 19:
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18:
            return value
    return None


def _number(pattern: re.Pattern[str], name: str) -> int | None:
    match = pattern.search(name)
    return int(match.group(1)) if match and len(match.group(1)) < 19 else None

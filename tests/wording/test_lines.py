"""Progress as lines of a log."""

from __future__ import annotations

import time

import pytest

from convexlab.progress import Progress
from convexlab.wording.lines import Lines
from convexlab.wording.numbers import duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_last_state_with_what_is_left_and_landmarks_at_once(clock: list[float]) -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines.tell()
    lines(Progress("probe", 1, 5, "a.pt"))
    lines(Progress("probe", 1.2, 5, "b.pt: loss 2", within=True))
    assert said == []
    clock[0] += 30
    lines.tell()
    # 30 s for a half, and 3.5 are left.
    lines(Progress("probe", 1.5, 5, "c.pt", landmark=True))
    # Within a step, less than a whole one says nothing.
    lines(Progress("probe", 1.9, 5, "c.pt", within=True, landmark=True))
    lines(Progress("plane", 0, 9))
    lines.tell()
    lines(Progress("adam", 0, 100, planned=True))  # which begins later
    lines(Progress("two-phase", 45.3, 100, "loss 2", unit="cost"))
    lines.tell()
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in said] == [
        "probe: 24 % done, 30 s gone; b.pt: loss 2",
        "probe: 30 % done, 30 s gone, about 3.5 min left; c.pt",
        "probe: 38 % done, 30 s gone; c.pt",
        "plane: 0 % done, 0 s gone",
        "two-phase: 45 % done, cost 45 of 100, 0 s gone; loss 2",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.043, "0.043 s"), (12.3, "12 s"), (89, "89 s"), (100, "1.7 min"), (7200, "2.0 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds).replace("\N{NO-BREAK SPACE}", " ") == text

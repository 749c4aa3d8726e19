"""Progress as bars on a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from convexlab.progress import Listener, Progress
from convexlab.wording.bars import bars

NOTE = "lbfgs-adam-scaled, epoch 31, loss 0.00123 [bold] \\x1b[31m"  # Names are printed, and obeyed by nobody.


def drawn(width: int, **settings: object) -> tuple[str, list[str]]:
    """Return what a terminal is sent while a run goes on, and the lines that stand there at its end."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, legacy_windows=False, **settings)  # type: ignore[arg-type]
    with bars(console) as listener:
        report(listener)
    sent = file.getvalue()
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", re.sub(r"\x1b\[[0-9;]*m", "", sent)).replace(
        "\N{NO-BREAK SPACE}", " "
    )
    return sent, [line.rstrip() for line in last.splitlines() if line.strip()][-3:]


def report(listener: Listener) -> None:
    for name in ("two-phase", "adam-constant", "probe"):
        listener(Progress(name, 0, 100, planned=True))
    listener(Progress("two-phase", 45.3, 100, NOTE.replace("\\x1b", "\x1b"), unit="cost"))
    # The budget may end below its total: then the time stands still as well.
    listener(Progress("adam-constant", 100, 100, "adam, epoch 100, loss 0.0012", unit="cost"))


@pytest.mark.parametrize(("width", "note"), [(80, "lbfgs-adam-scaled, epoch 31, l…"), (120, NOTE)])
def test_a_bar_a_task_on_one_line_with_cost_time_and_loss(width: int, note: str) -> None:
    _, (first, second, third) = drawn(width)
    assert max(map(len, (first, second, third))) <= width
    assert re.fullmatch(rf"two-phase +━+╸━+ cost 45 of 100 +[\d.e-]+ s +{re.escape(note)}", first)
    assert re.fullmatch(r"adam-constant ━+ cost 100 of 100 [\d.e-]+ s +adam, epoch 100, loss 0.0012", second)
    assert re.fullmatch(r"probe +━+ +to come", third)


def test_without_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m")
    assert colour.search(drawn(80, color_system="standard")[0])
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(drawn(80, color_system="standard")[0])

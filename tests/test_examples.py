"""Every example runs, warns of nothing, and shows what it is there to show."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
# What needs another trainer, which may say what it likes while it starts.
HOSTS = {"deepxde_hand_over": "deepxde", "huggingface_two_phases": "accelerate", "lightning_two_phases": "lightning"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDE_BACKEND", "pytorch")
    host = HOSTS.get(path.stem)
    with warnings.catch_warnings(action="ignore" if host else "error"):
        if host:
            pytest.importorskip(host)
        runpy.run_path(str(path), run_name="__main__")
    printed, complaints = capfd.readouterr()
    assert host or not complaints
    losses = [float(loss) for loss in re.findall(r"loss (\S+)$", printed, re.MULTILINE)]
    assert len(losses) == 3, "an example prints the losses at the switch, after it, and of Adam alone at equal cost"
    switch, lbfgs, adam = losses
    assert lbfgs < 0.5 * switch
    assert lbfgs < adam


def test_there_are_examples_and_they_are_short() -> None:
    assert EXAMPLES
    assert [path.name for path in EXAMPLES if len(path.read_text(encoding="utf-8").splitlines()) >= 60] == []

"""Every example runs, warns of nothing, and shows what it is there to show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def _run(path: Path) -> str:
    # The source beside tests stays off the path: what runs is the convexlab that is installed or being tested.
    done = subprocess.run(
        [sys.executable, "-W", "error", path.name], cwd=path.parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path) -> None:
    losses = [float(loss) for loss in re.findall(r"loss (\S+)$", _run(path), re.MULTILINE)]
    assert len(losses) == 3, "an example prints the losses at the switch, after it, and of Adam alone at equal cost"
    switch, lbfgs, adam = losses
    assert lbfgs < 0.5 * switch
    assert lbfgs < adam


def test_there_are_examples() -> None:
    assert EXAMPLES

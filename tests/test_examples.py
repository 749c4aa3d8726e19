"""Every example runs, warns of nothing, and shows what it is there to show."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    printed, complaints = capfd.readouterr()
    assert not complaints
    losses = [float(loss) for loss in re.findall(r"loss (\S+)$", printed, re.MULTILINE)]
    assert len(losses) == 3, "an example prints the losses at the switch, after it, and of Adam alone at equal cost"
    switch, lbfgs, adam = losses
    assert lbfgs < 0.5 * switch
    assert lbfgs < adam


def test_there_are_examples() -> None:
    assert EXAMPLES

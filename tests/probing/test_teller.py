"""What is said of checkpoints while they are measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import convexlab as cl
from convexlab import cli
from convexlab.cli import main
from convexlab.probing import teller
from convexlab.progress import Progress


@pytest.fixture
def objective() -> cl.Objective:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    return cl.Objective(model, [(torch.randn(20, 3), torch.randint(0, 2, (20,)))], nn.CrossEntropyLoss())


@pytest.fixture
def files(objective: cl.Objective, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"ckpt-{epoch}.pt" for epoch in (1, 2)]
    for path in paths:
        torch.save(objective.model.state_dict(), path)
    return paths


def test_numbers_as_they_come(
    objective: cl.Objective, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teller, "_PATIENCE", 0.0)
    steps: list[Progress] = []
    cl.probe(files, objective=objective, out=tmp_path / "out", progress=steps.append, slice_points=0)
    told = [step for step in steps if step.task == "probe"]
    places = [step.done for step in told]
    assert places == sorted(places)
    assert (places[0], places[-1], {step.total for step in told}) == (0, 2, {2})
    first = [step.note.replace("\N{NO-BREAK SPACE}", " ") for step in told if step.within and step.done < 1]
    patterns = [
        r"ckpt-1\.pt: loss 0\.\d+, gradient 0\.\d+$",
        r", a product takes [\d.e-]+ s, the checkpoint [\d.e-]+ s or more and [\d.e-]+ s at most, and there are 2$",
        r", curvature −?[\d.]+ to [\d.]+ after \d products$",
        r", (non-convex|no negative curvature|unresolved), curvature −?[\d.]+ to [\d.]+$",
    ]
    found = [next((place for place, note in enumerate(first) if re.search(p, note)), -1) for p in patterns]
    assert found == sorted(found)
    assert found[0] == 0
    # The forecast is made once, for all; a verdict that took its time is worth a line.
    assert [step.done < 1 for step in told if step.landmark] == [True, True, False]


def test_a_line_now_and_then_where_there_is_no_terminal(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import time, torch\n"
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))\n"
        "def batches():\n    return [(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))]\n"
        "def slow(output, target):\n"
        "    time.sleep(0.01)\n    return torch.nn.functional.cross_entropy(output, target)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    named = ("--model", "mine.py:net", "--data", "mine.py:batches", "--loss", "mine.py:slow")
    words = ["probe", *map(str, files), *named, "--max-steps", "3", "--out", "out"]
    monkeypatch.setattr(cli, "_HALF_A_MINUTE", 0.02)
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert re.search(r"probe: \d+\s% done, .* gone.*; .*ckpt-1\.pt: loss 0\.\d+, gradient", done.stderr)
    assert "probe:" not in done.stdout
    monkeypatch.setattr(cli, "_HALF_A_MINUTE", 30.0)
    quiet = CliRunner().invoke(main, [*words, "--resume"])
    assert (quiet.exit_code, quiet.stderr) == (0, "")

"""Every study runs to its end at toy size and leaves its page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STUDIES = sorted((Path(__file__).parents[1] / "analyses").glob("[!_]*.py"))


@pytest.mark.analyses
@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_study_runs_at_toy_size(study: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(study), "--scale", "toy"]
    # In a folder of its own: reports/ of the repository keeps the published pages.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.html")), f"{study.name} left no page\n{done.stdout}"

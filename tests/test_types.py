"""The types of everything but the tests hold, strictly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.analyses
def test_mypy_has_no_objection() -> None:
    pytest.importorskip("mypy")  # Only the environment of Python 3.11 has it.
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

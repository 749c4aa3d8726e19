from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import write_problem


@pytest.fixture(autouse=True)
def _undrawn(undrawn: None) -> None:
    """What charts look like is tested elsewhere."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options of a run that takes a fraction of a second; nothing is probed."""
    named = write_problem(tmp_path_factory.mktemp("tiny"))
    return named | {"epochs": 12, "switch_epoch": 4, "lr": 1e-2, "probe_every": 0}


@pytest.fixture(scope="session")
def models(tiny: dict[str, Any]) -> Path:
    return Path(tiny["model"].rpartition(":")[0])


@pytest.fixture
def saved_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a save takes: an interrupted run goes on exactly where it was."""
    monkeypatch.setattr("convexlab.training.journal.Journal.due", True)


@pytest.fixture
def hardly_ever_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where saving takes long: an interrupted run goes on far behind its rows."""
    monkeypatch.setattr("convexlab.training.journal.Journal.due", False)

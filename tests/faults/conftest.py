from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import convexlab as cl
from convexlab.progress import Progress


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second phase, with its states."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    options: dict[str, Any] = {"objective": "friedman", "train_size": 20, "epochs": 8, "switch_epoch": 2}
    options |= {"phase_two": "lbfgs-adam-scaled", "probe_every": 0}

    def stop(step: Progress) -> None:
        if step.note.startswith("lbfgs") and step.done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cl.train_two_phase(out=folder, progress=stop, **options)
    return folder


@pytest.fixture
def asked(request: pytest.FixtureRequest) -> bool:
    """Whether the faults are what is tested, and not one part of all."""
    return bool(request.config.getoption("-m") == "faults")

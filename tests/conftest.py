"""What every test relies on: one thread, no window, and the package that is meant to be tested."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

# Before NumPy and torch are imported; what the tests start inherits it. One thread: the tests' matrices are small, and
# sums come out the same on every machine.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
if os.environ.get("CONVEXLAB_DATA"):
    # It may be relative to the repository, and tests change the directory.
    os.environ["CONVEXLAB_DATA"] = str(Path(os.environ["CONVEXLAB_DATA"]).absolute())

import pytest
import torch
from hypothesis import settings
from matplotlib.figure import Figure

import convexlab
from convexlab.runs import Run

torch.set_num_threads(1)
# A test that takes long on a busy machine is none that fails.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

SOURCE = Path(convexlab.__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="10,000 cases of each kind of damaged file, not 40")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of an objective of ours, with every file that a run can have; to be copied before it is changed."""
    return convexlab.train_two_phase(
        out=tmp_path_factory.mktemp("finished") / "run",
        objective="friedman",
        train_size=20,
        epochs=6,
        switch_epoch=2,
        oracle_every=3,
    )


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("long"))


def pytest_report_header() -> str:
    return f"convexlab: {SOURCE}, torch {torch.__version__}"


def pytest_configure() -> None:
    if "TOX_ENV_NAME" in os.environ and not SOURCE.is_relative_to(sys.prefix):
        raise pytest.UsageError(f"tox tests the installed wheel, but convexlab was imported from {SOURCE}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Here, since the process that prints loads no conftest of a folder whose tests run in others.
    from tests.verification.table import print_table

    print_table(terminalreporter)


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """A network of a test has the same weights each time, alone, in the suite and on any machine."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the time of a tiny run is the disk's; no power fails here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts stay empty, where a test looks at what else is on a page: drawing them takes most of its time."""

    def save(_: Figure, file: BinaryIO, **__: Any) -> None:
        file.write(b'<svg xmlns="http://www.w3.org/2000/svg"/>')

    monkeypatch.setattr(Figure, "savefig", save)


# Folders and files that take ten seconds and more, the longest first: at the end no process waits for another.
LONG = (
    "test_types.py",
    "test_analyses.py",
    "test_examples.py",
    "training/test_objectives.py",
    "test_cli.py",
    "training/",
    "probing/",
    "curvature/test_verdict.py",
    "verification/test_products.py",
    "verification/test_curvature.py",
    "test_models.py",
    "test_trust.py",
    "faults/",
    "curvature/",
    "reporting/",
)


def _turn(item: pytest.Item) -> int:
    path = item.path.relative_to(Path(__file__).parent).as_posix()
    return next((turn for turn, name in enumerate(LONG) if path.startswith(name)), len(LONG))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)
    missing = {}
    if not torch.accelerator.is_available():
        missing["gpu"] = "no accelerator on this machine"
    if not os.environ.get("CONVEXLAB_DATA"):
        missing["data"] = "CONVEXLAB_DATA is not set: it names the folder with the data sets"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))

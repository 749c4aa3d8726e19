"""Every study runs to its end at toy size and leaves its page."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from convexlab.importing import load_object

STUDIES = sorted((Path(__file__).parents[1] / "analyses").glob("[!_]*.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of their own: reports/ of the repository keeps the published pages. Some studies share runs."""
    return tmp_path_factory.mktemp("studies")


QUICK = {"figure_1", "figure_2", "index"}


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_study_says_what_it_does_and_at_which_scales(study: Path) -> None:
    done = CliRunner().invoke(load_object(f"{study}:main"), ["--help"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "--scale [toy|" in done.output


@pytest.mark.analyses
@pytest.mark.parametrize(
    "study",
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow) for path in STUDIES],
    ids=lambda path: path.stem,
)
def test_study_runs_at_toy_size(study: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    main = load_object(f"{study}:main")
    jobs = ["--jobs", "1"] if any(parameter.name == "jobs" for parameter in main.params) else []
    done = CliRunner().invoke(main, ["--scale", "toy", *jobs], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = folder / "reports" / f"{study.stem.replace('_', '-')}.html"
    assert page.is_file(), f"{study.name} left no page\n{done.output}"

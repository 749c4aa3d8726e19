"""What the pages show works: Python runs, commands have these options, and nothing that is made is out of date."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch

import convexlab as cl
from convexlab.cli import main
from tests.ranks import torchrun_environment

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md") if PAGES)]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Pages whose lines are about a model that the reader has.
FRAGMENTS = {"switching", "training"}
# Pages whose lines are of trainers that take seconds to start: the examples run them.
HOSTED = {"integrations"}

pytestmark = pytest.mark.skipif(not PAGES, reason="the pages are in the repository alone")


def blocks(path: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(path.read_text(encoding="utf-8")) if kind == language]


def readers_own() -> dict[str, Any]:
    """Return what pages of fragments take as given."""
    torch.manual_seed(0)
    x = torch.rand(40, 3)
    y = x.sum(dim=1, keepdim=True)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    objective = cl.Objective(model, [(x[:20], y[:20]), (x[20:], y[20:])], torch.nn.MSELoss())
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)

    def train_one_epoch(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> float:
        return float(optimizer.step(objective.closure))

    adam.step(objective.closure)
    return {
        "torch": torch,
        "cl": cl,
        "model": model,
        "objective": objective,
        "adam": adam,
        "closure": objective.closure,
        "train_one_epoch": train_one_epoch,
        "epochs": 3,
    }


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_python_on_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks(path, "python")
    if path.stem in HOSTED or not code:
        pytest.skip("no Python of its own")
    if "import transformers" in "".join(code):
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    if "init_process_group(" in "".join(code):
        for name, value in torchrun_environment(1).items():
            monkeypatch.setenv(name, value)
    names = readers_own() if path.stem in FRAGMENTS else {}
    for block in code:
        exec(compile(block, str(path), "exec"), {**names, "__name__": "page"} if path.stem in FRAGMENTS else names)


@pytest.mark.parametrize("path", [path for path in PAGES if path.stem in HOSTED], ids=lambda path: path.stem)
def test_calls_that_a_page_shows_are_in_an_example_or_public(path: Path) -> None:
    folders = [ROOT / "examples", ROOT / "convexlab" / "integrations"]
    sources = "".join(file.read_text(encoding="utf-8") for folder in folders for file in folder.glob("*.py"))
    public = {*cl.__all__}.union(*(vars(owner) for owner in (cl.Run, cl.Probe, cl.Watch, cl.Objective)))
    for block in blocks(path, "python"):
        for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func).rpartition(".")[2]
            assert name in public or re.search(rf"\b{name}\b", sources), ast.unparse(call)


def commands() -> list[tuple[str, str]]:
    lines = []
    for path in TEXTS:
        for block in blocks(path, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                lines += [(path.stem, part) for part in line.split("&&") if "convexlab " in part.split("#")[0]]
    return lines


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: value.strip()[:60])
def test_command_on_a_page_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[words.index("convexlab") + 1 :]
    command: click.Command = main
    while isinstance(command, click.Group):
        name = words.pop(0)
        if name.startswith("-"):
            return
        command = command.commands[name]
    command.make_parser(click.Context(command, **main.context_settings)).parse_args(words)


def site_module(name: str) -> ModuleType:
    path = ROOT / "docs" / "_site" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line_page_is_what_the_program_says() -> None:
    module = site_module("command_line")
    written = module.PAGE.read_text(encoding="utf-8")
    assert written == module.page(), "make it again: python docs/_site/command_line.py"


def test_reference_has_every_public_name() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md")))
    shown = re.findall(r"^::: convexlab\.(\w+)$", pages, re.MULTILINE)
    assert sorted(shown) == sorted(set(cl.__all__) - {"__version__"})


def test_readme_fits_a_reader() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120
    screen = "\n".join(lines[:25])
    assert all(word in screen for word in ("pip install", "convexlab train", "convexlab probe", "![", "0.72 times"))
    (ten,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in ten.splitlines() if line]) <= 13


def test_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {cl.__version__}\n" in citation

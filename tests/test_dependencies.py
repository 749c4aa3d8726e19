"""What is imported is declared: by the package, and by the extra that its tests and benchmarks install."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What no test environment has installed, so that nothing tells which distribution brings it.
ELSEWHERE = {
    "hessian_eigenthings": "hessian-eigenthings",
    "pyhessian": "pyhessian",
    "torchmin": "pytorch-minimize",
    "pytorch_optimizer": "pytorch-optimizer",
    "atheris": "atheris",
}
# Of other people's trainers and loggers: imported in one room alone.
HOSTS = ("deepxde", "huggingface", "lightning", "tensorboard")
EXTRAS: dict[str, tuple[str, ...]] = {
    "tests": ("test", "fuzz", *HOSTS),
    "benchmarks": ("bench",),
    "examples": HOSTS,
    "convexlab/integrations": HOSTS,
}
# tests/paper puts the folder of the studies on the path.
STUDIES = {path.stem for path in (ROOT / "analyses").iterdir()}
FOLDERS = ["convexlab", "convexlab/integrations", "tests", "benchmarks", "analyses", "examples", "models"]


def imported(folder: Path) -> set[str]:
    """Return the modules from elsewhere that the files of a folder import, whether at the top or in a function."""
    files = list(folder.rglob("*.py"))
    if folder.name == "convexlab":
        files = [path for path in files if path.parent.name != "integrations"]
    ours = {path.stem for path in files} | {path.parent.name for path in files} | {"convexlab", "tests"} | STUDIES
    names: set[str] = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
                names.add(node.module.partition(".")[0])
    return names - ours - sys.stdlib_module_names


def declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {canonical(re.split(r"[<>=\[; ]", line, maxsplit=1)[0]) for line in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_imported_is_declared(folder: str) -> None:
    distributions = packages_distributions()
    brought = {module: distributions.get(module, [ELSEWHERE.get(module, module)]) for module in imported(ROOT / folder)}
    known = declared(*EXTRAS.get(folder, ()))
    assert [module for module, names in brought.items() if not known & {canonical(name) for name in names}] == []


def test_the_package_imports_all_that_it_declares() -> None:
    distributions = packages_distributions()
    used = {canonical(name) for module in imported(ROOT / "convexlab") for name in distributions[module]}
    assert declared() <= used

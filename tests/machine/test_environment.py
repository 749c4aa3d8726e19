"""Devices and precisions by name, and the description of where numbers were made."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import convexlab
from convexlab.errors import MisuseError
from convexlab.machine.environment import describe_environment, describe_source, resolve_device, resolve_dtype


def test_the_cpu_can_always_be_had() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_fastest_device_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto") == torch.device(expected)


# Whatever torch was built with, none of these can hold a number here; "meta" is a device that holds none anywhere.
@pytest.mark.parametrize(
    "name",
    ["meta", "cuda:99", "cuda:-1", "xla", "hpu", "vulkan", "fpga", "ipu", "privateuseone", "gpu", "", "cpu;", "AUTO"],
)
def test_devices_that_cannot_be_used_are_refused_with_a_reason(name: str) -> None:
    with pytest.raises(MisuseError, match=r"cannot be used here \(.+\)\. Use 'auto' or 'cpu'\.") as caught:
        resolve_device(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_auto_is_an_accelerator_where_there_is_one() -> None:
    assert resolve_device("auto").type == torch.accelerator.current_accelerator().type


def test_precisions() -> None:
    assert resolve_dtype("float32") is torch.float32
    assert resolve_dtype("float64") is torch.float64
    with pytest.raises(
        MisuseError, match=r"unknown dtype 'float46'\. Did you mean 'float64'\? Known: float32, float64\."
    ):
        resolve_dtype("float46")


def test_the_description_can_be_stored_and_is_true() -> None:
    described = describe_environment(torch.device("cpu"), "float32")
    assert json.loads(json.dumps(described)) == described
    assert described["convexlab"] == convexlab.__version__
    assert described["torch"] == torch.__version__
    assert described["python"] == platform.python_version()
    assert described["device"] == "cpu"
    assert described["dtype"] == "float32"
    assert described["threads"] == torch.get_num_threads()
    assert described["processor"]
    assert described["platform"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with a package of one module, committed."""
    if shutil.which("git") is None:
        pytest.skip("no git on the PATH")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package.parent / "page.html").write_text("old")
    for command in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        _git(package.parent, *command)
    return package


def _git(folder: Path, *arguments: str) -> str:
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", "-C", folder, *author, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_is_described_by_its_commit(checkout: Path) -> None:
    commit = _git(checkout, "rev-parse", "HEAD")
    assert describe_source(checkout) == commit[:12]
    # A page made again is no change of what makes it.
    (checkout.parent / "page.html").write_text("new")
    assert describe_source(checkout) == commit[:12]
    (checkout / "__init__.py").write_text("changed = True\n")
    assert describe_source(checkout) == f"{commit[:12]} with changes"
    _git(checkout, "commit", "-q", "-a", "-m", "second")
    assert describe_source(checkout) == _git(checkout, "rev-parse", "HEAD")[:12] != commit[:12]


def test_a_file_of_code_that_is_not_committed_is_a_change(checkout: Path) -> None:
    (checkout.parent / "analyses").mkdir()
    (checkout.parent / "analyses" / "study.py").write_text("")
    assert str(describe_source(checkout)).endswith(" with changes")


def test_outside_a_checkout_there_is_no_commit(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "__init__.py").write_text("")
    assert describe_source(outside) is None
    # Nor where a package is installed within the checkout of another project, as in its .venv.
    installed = checkout.parent / ".venv" / "package"
    shutil.copytree(checkout, installed)
    assert describe_source(installed) is None
    # A hook's variables name another checkout.
    monkeypatch.setenv("GIT_DIR", str(checkout.parent / ".git"))
    assert describe_source(outside) is None
    monkeypatch.setenv("PATH", "")
    assert describe_source(checkout) is None


def test_the_commit_is_part_of_the_description(monkeypatch: pytest.MonkeyPatch) -> None:
    for commit in ("0123456789ab with changes", None):
        monkeypatch.setattr("convexlab.machine.environment.describe_source", lambda folder, commit=commit: commit)
        assert describe_environment(torch.device("cpu"), "float32").get("commit") == commit

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from convexlab.errors import FailureError, MisuseError
from convexlab.importing import call_accepted, is_spec, load_object

SOURCE = """
from dataclasses import dataclass

@dataclass
class Thing:
    size: int = 3

    @staticmethod
    def make():
        return Thing(4)

constant = 5
def factory():
    return Thing()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(("name", "expected"), [("mse", False), ("a.b:c", True), ("f.py:c", True)])
def test_a_colon_makes_a_spec(name: str, expected: bool) -> None:
    assert is_spec(name) is expected


def test_module_attribute() -> None:
    assert load_object("collections.abc:Mapping") is sys.modules["collections.abc"].Mapping


def test_file_attribute_and_dotted_attribute(source: Path) -> None:
    assert load_object(f"{source}:factory")().size == 3
    assert load_object(f"{source}:Thing.make")().size == 4


def test_file_is_run_once(source: Path) -> None:
    assert load_object(f"{source}:Thing") is load_object(f"{source}:Thing")


def test_files_of_the_same_name_are_kept_apart(tmp_path: Path) -> None:
    for folder, size in [("a", 1), ("b", 2)]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"def factory(): return {size}")
    assert [load_object(f"{tmp_path / folder / 'same.py'}:factory")() for folder in "ab"] == [1, 2]


def test_relative_file_and_module_of_the_current_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    (source.parent / "module_of_the_current_folder.py").write_text("def factory(): return 7")
    assert load_object("mine.py:factory")().size == 3
    assert load_object("module_of_the_current_folder:factory")() == 7


def test_file_may_import_its_neighbour_and_the_path_is_restored(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_a_file.py").write_text("def factory(): return 8")
    (tmp_path / "importer.py").write_text("from neighbour_of_a_file import factory")
    before = list(sys.path)
    assert load_object(f"{tmp_path / 'importer.py'}:factory")() == 8
    assert sys.path == before


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nocolon", "expected 'package.module:factory' or 'file.py:factory', got 'nocolon'"),
        (":factory", "expected 'package.module:factory'"),
        ("json:", "expected 'package.module:factory'"),
        ("no_such_package_here:f", "no module 'no_such_package_here' for .* Install it"),
        ("json.no_such_module:f", "no module 'json.no_such_module'"),
        ("json:no_such_attribute", "no 'no_such_attribute' for .* Defined there: .*JSONDecoder"),
        ("json:JSONDecoder.nope", "no 'nope' for"),
        ("sys:maxsize", "'sys:maxsize' is not callable: expected a function or class, got int"),
        ("no_such_file.py:f", "no file '.*no_such_file.py' for .* Check the path"),
        ("..json:f", "importing '..json:f' failed: TypeError"),
    ],
)
def test_misuse_says_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        load_object(spec)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_dependency", "failed: ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("def (", "failed: SyntaxError"),
        ("1 / 0", "failed: ZeroDivisionError"),
    ],
)
def test_failing_file_says_so_and_is_run_again(source: Path, code: str, message: str) -> None:
    broken = source.with_name("broken.py")
    broken.write_text(code)
    with pytest.raises(MisuseError, match=message):
        load_object(f"{broken}:factory")
    broken.write_text(SOURCE + "# mended, and of another length than before\n")
    assert load_object(f"{broken}:factory")().size == 3


def test_missing_dependency_of_a_module_is_not_taken_for_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_with_a_missing_dependency.py").write_text("import no_such_dependency")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MisuseError, match=r"importing .* failed: ModuleNotFoundError: No module named 'no_such_dep"):
        load_object("module_with_a_missing_dependency:factory")


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (lambda: {}, {}),
        (lambda classes: {"classes": classes}, {"classes": 10}),
        (lambda *, channels, classes=2: {"channels": channels, "classes": classes}, {"channels": 3, "classes": 10}),
        (lambda depth=4: {"depth": depth}, {"depth": 4}),
        (lambda *rest, **others: {"rest": rest, "others": others}, {"rest": (), "others": {}}),
        (lambda classes=2, /: {"classes": classes}, {"classes": 2}),
        (dict, {}),  # written in C, without a signature
    ],
)
def test_factory_receives_what_it_names(factory: object, expected: dict[str, object]) -> None:
    assert call_accepted(factory, "spec", channels=3, classes=10) == expected


@pytest.mark.parametrize("factory", [lambda depth: depth, lambda classes, /: classes, lambda *, depth: depth])
def test_factory_that_requires_more_is_refused(factory: object) -> None:
    with pytest.raises(MisuseError, match=r"'m:f' requires (depth|classes): expected .* channels, classes\. Give"):
        call_accepted(factory, "m:f", channels=3, classes=10)


def test_error_of_the_factory_is_a_failure_with_its_cause() -> None:
    with pytest.raises(FailureError, match="'m:f' raised ZeroDivisionError: division by zero") as caught:
        call_accepted(lambda classes: classes / 0, "m:f", classes=10)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_misuse_that_the_factory_reports_passes_unchanged() -> None:
    def factory() -> None:
        raise MisuseError("as it is")

    with pytest.raises(MisuseError, match=r"^as it is$"):
        call_accepted(factory, "m:f")

"""A stranger's run directory or checkpoint runs nothing: a name of code in any field leaves no mark."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convexlab as cl
from convexlab.cli import main
from convexlab.reporting import summary_lines
from convexlab.runs import Run
from tests.slowly import mostly_slow

NAMES = ("model", "dataset", "data", "loss", "objective")
QUICK = ("--max-steps", "2", "--density-probes", "1", "--density-steps", "2")

PLANTED = """
import pathlib
pathlib.Path({mark!r}).touch()

def factory(**_):
    pathlib.Path({mark!r}).touch()
"""


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    return Run(shutil.copytree(finished.path, tmp_path / "run"))


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the planted code leaves; it lies in the folder that the commands are called in."""
    mark = tmp_path / "mark"
    (tmp_path / "planted.py").write_text(PLANTED.format(mark=str(mark)), encoding="utf-8")
    (tmp_path / "planted_module.py").write_text(PLANTED.format(mark=str(mark)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield mark
    assert not mark.exists()


def command(*arguments: object) -> None:
    """Call the command line: done or refused, never a traceback."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code in (0, 1, 2), result.output


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are made of what is read, and drawing it takes most of the time: here it is only read."""

    def read(runs: list[Run], out: Path | None = None, **_: Any) -> Path:
        summary_lines(runs)
        return Path("unwritten.html")

    monkeypatch.setattr("convexlab.reporting.write_report", read)


def python(call: Callable[[], object]) -> None:
    with contextlib.suppress(cl.ConvexLabError):
        call()


def read_all(path: Path) -> None:
    run = cl.Run.open(path)
    for part in ("config", "summary", "metrics", "probe", "oracle", "members", "checkpoints"):
        getattr(run, part)


def every_door(run: Run) -> None:
    command("probe", run.path, *QUICK)
    command("report", run.path)
    command("train", "two-phase", "--resume", "--out", run.path)
    python(lambda: cl.probe(run.checkpoints, out=run.path.parent / "out", max_steps=2, density_probes=1))
    python(lambda: read_all(run.path))


def names_of_code(folder: Path) -> dict[str, str]:
    return {
        "absolute": f"{folder / 'planted.py'}:factory",
        "relative": "planted.py:factory",
        "module": "planted_module:factory",
    }


@pytest.mark.usefixtures("unwritten")
@pytest.mark.parametrize("form", ["absolute", "relative", "module"])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_names_code(name: str, form: str, run: Run, mark: Path, tmp_path: Path) -> None:
    for file in run.checkpoints:
        with safe_open(file, framework="pt") as opened:
            stored = opened.metadata()
        images = {"model": "vit-mlp", "dataset": "digits", "loss": "mse"}
        kept = stored if name == "objective" else {k: v for k, v in stored.items() if k != "objective"} | images
        save_file(load_file(file), file, metadata=kept | {name: names_of_code(tmp_path)[form]})
    every_door(run)


@pytest.mark.usefixtures("unwritten")
@pytest.mark.parametrize(
    ("name", "form"),
    # Which form it is does not depend on whose name it is.
    mostly_slow([*((name, "module") for name in NAMES), ("objective", "absolute"), ("objective", "relative")], quick=5),
)
def test_the_settings_name_code(name: str, form: str, run: Run, mark: Path, tmp_path: Path) -> None:
    kept = run.config if name == "objective" else run.config | {"objective": None}
    run.config_path.write_text(json.dumps(kept | {name: names_of_code(tmp_path)[form]}))
    every_door(run)
    run.summary_path.unlink()
    command("train", "two-phase", "--resume", "--out", run.path)


def planted(value: Any, name: str) -> Any:
    """Every text and number of a file, one after the other, replaced by the name of code."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from (value | {key: changed} for changed in planted(item, name))
    elif isinstance(value, list):
        yield from ([changed, *value[1:]] for changed in planted(value[0], name)) if value else ()
    else:
        yield name


@pytest.mark.parametrize("file", ["config.json", "summary.json", "landscape.json"])
def test_any_other_field_names_code(file: str, run: Run, mark: Path, tmp_path: Path) -> None:
    original = json.loads((run.path / file).read_text())
    for changed in planted(original, names_of_code(tmp_path)["absolute"]):
        (run.path / file).write_text(json.dumps(changed))
        python(lambda: summary_lines([run]))
        python(lambda: cl.train_two_phase(out=run.path, resume=True))
    command("report", run.path)


@pytest.mark.parametrize("file", ["metrics.jsonl", "probe.jsonl", "oracle.jsonl"])
def test_any_field_of_a_row_names_code(file: str, run: Run, mark: Path, tmp_path: Path) -> None:
    first, *others = (run.path / file).read_text().splitlines()
    for changed in planted(json.loads(first), names_of_code(tmp_path)["absolute"]):
        (run.path / file).write_text("\n".join([json.dumps(changed), *others]))
        python(lambda: summary_lines([run]))
    command("report", run.path)
    command("train", "two-phase", "--resume", "--out", run.path)
    command("probe", run.path, "--resume", *QUICK)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.usefixtures("unwritten")
@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_not_executed(save: Callable[[Any, Path], None], run: Run, mark: Path, tmp_path: Path) -> None:
    run.summary_path.unlink()
    (run.path / "state").mkdir()
    for name in ("two-phase", "switch", "adam-constant", "adam-cosine", "oracle-00003"):
        save({"state": Bomb(mark)}, run.path / "state" / f"{name}.pt")
    save({"weight": Bomb(mark)}, tmp_path / "weights.pt")
    every_door(run)
    command("probe", tmp_path / "weights.pt", "--objective", "friedman", *QUICK)


def test_what_would_be_run_is_said_and_the_user_may_vouch_for_it(run: Run, mark: Path, tmp_path: Path) -> None:
    file, name = run.checkpoints[0], "planted.py:factory"
    save_file(load_file(file), file, metadata={"objective": name})
    expected = (
        r"names objective='planted.py:factory', which would run the code of 'planted.py' and call 'factory' there"
    )
    with pytest.raises(cl.MisuseError, match=expected):
        cl.probe(file, out=tmp_path / "out")
    # The factory returns nothing of use: that it is called is what is asked.
    for vouched in ({"trust": True}, {"objective": name}):
        with pytest.raises(cl.MisuseError, match="returned NoneType"):
            cl.probe(file, out=tmp_path / "out", **vouched)
        assert mark.exists()
        mark.unlink()


@pytest.mark.parametrize("name", ["npz:/dev/zero", "npz:../../secret.npz", "imagefolder:/"])
def test_paths_in_metadata_are_refused(name: str, run: Run, tmp_path: Path) -> None:
    file = run.checkpoints[0]
    save_file(load_file(file), file, metadata={"model": "vit-mlp", "loss": "mse", "dataset": name})
    with pytest.raises(cl.MisuseError, match=f"names dataset='{name}', which would read"):
        cl.probe(file, out=tmp_path / "out")

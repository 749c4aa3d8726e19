"""Batches, a model and a loss of the reader's own, by name: what is taken, how the loss is called, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import convexlab as cl
from convexlab.cli import main
from convexlab.errors import FailureError, MisuseError
from convexlab.importing import check_trusted, failure_in, load_object
from convexlab.problems import Problem, Setting
from convexlab.problems.loaders import build_from_batches
from convexlab.runs import Run

CODE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

def net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

def narrow():
    return nn.Linear(3, 3)

def sized(classes):
    return nn.Linear(4, classes)

class Slip(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        return self.inner(x[:, :3])

def rows(seed=0, train_size=30):
    generator = torch.Generator().manual_seed(5 + seed)
    return torch.randn(train_size, 4, generator=generator), torch.randint(0, 3, (train_size,), generator=generator)

def pairs(seed, train_size=30, batch_size=10):
    x, y = rows(0, train_size)
    return list(zip(x.split(batch_size), y.split(batch_size)))

def generator():
    yield from pairs(0)

def loader():
    return DataLoader(TensorDataset(*rows()), batch_size=10)

def dictionaries():
    return [{"x": x, "y": y} for x, y in pairs(0)]

def one_batch():
    return rows()

def examples():
    return TensorDataset(*rows())

def nothing():
    return []

def number():
    return 3

def needy(path):
    return path

def breaks():
    yield rows()
    raise KeyError("the second batch")

class Late:
    def __len__(self):
        return 2

    def __iter__(self):
        yield rows()
        raise KeyError("the second batch")

class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, place):
        raise ValueError(f"no example {place}")

def of_workers():
    return DataLoader(Broken(), num_workers=1)

def of_batch(model, batch):
    return cross_entropy(model(batch[0]), batch[1])

def of_dictionary(network_of_mine, batch):
    return cross_entropy(network_of_mine(batch["x"]), batch["y"])

def criterion(scores, labels):
    return cross_entropy(scores, labels)

def made():
    return criterion

def made_of_batch():
    return of_batch

def unclear(m, b):
    return of_batch(m, b)

def of_three(a, b, c):
    return a
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    return path


def build(code: Path, data: str, loss: str, model: str = "net", **others: Any) -> Problem:
    names = [f"{code}:{name}" if name.isidentifier() else name for name in (model, data, loss)]
    setting = Setting(None, names[0], "", names[2], others.pop("train_size", None), None, 0, None, data=names[1])
    return setting.build("cpu", **others)


# The same 30 examples and the same weights, whatever they come as.
@pytest.mark.parametrize(
    ("data", "loss"),
    [
        ("pairs", "criterion"),
        ("pairs", "made"),
        ("pairs", "made_of_batch"),
        ("pairs", "of_batch"),
        ("pairs", "cross-entropy"),
        ("pairs", "torch.nn:CrossEntropyLoss"),
        ("pairs", "torch.nn.functional:cross_entropy"),
        ("generator", "of_batch"),
        ("loader", "criterion"),
        ("dictionaries", "of_dictionary"),
    ],
)
def test_one_loss_in_every_form(code: Path, data: str, loss: str) -> None:
    problem = build(code, data, loss)
    space: dict[str, Any] = {}
    exec(CODE, space)
    x, y = space["rows"]()
    with torch.no_grad():
        expected = float(space["criterion"](problem.model(x), y))
    # Sums of 30 numbers in float32, in another order.
    assert problem.objective.value() == pytest.approx(expected, rel=1e-6)
    assert (problem.facts()["train_size"], problem.about) == (30, f"{code}:{data}")


def test_sizes_reach_the_loader(code: Path) -> None:
    assert build(code, "pairs", "criterion", train_size=7).examples == 7
    with pytest.raises(MisuseError, match=r"loader' takes no train_size, got 7: it decides that itself"):
        build(code, "loader", "criterion", train_size=7)


@pytest.mark.parametrize(
    ("model", "data", "loss", "message"),
    [
        ("net", "dictionaries", "criterion", r"pairs \(input, target\), got a dict with the keys x, y.*--loss file.py"),
        (
            "net",
            "dictionaries",
            "of_batch",
            r"a dict with x \(10, 4\) float32, y \(10,\) int64: .*mine.py:\d+, in of_b",
        ),
        ("net", "pairs", "unclear", r"called with \(output, target\).*TypeError.*mine.py:\d+, in of_batch"),
        (
            "net",
            "pairs",
            "of_three",
            r"of_three' requires a, b, c: expected a loss \(output, target\) or \(model, batch",
        ),
        ("net", "pairs", "cross-entropie", "unknown loss 'cross-entropie'. Did you mean"),
        ("narrow", "pairs", "criterion", r"the model '.*narrow' fails on the first batch.* of \(10, 4\) float32 and"),
        ("Slip", "pairs", "criterion", r"RuntimeError: mat1 and mat2 .*\(.*mine.py:\d+, in forward\)"),
        ("sized", "pairs", "criterion", r"sized' requires classes: expected a callable that needs no argument"),
        (
            "net",
            "one_batch",
            "criterion",
            r"a tuple of \(30, 4\) float32 and \(30,\) int64, which is one batch; put it",
        ),
        ("net", "examples", "criterion", "a TensorDataset of single examples; give it to a DataLoader"),
        ("net", "nothing", "criterion", "returned no batch: expected batches that"),
        ("net", "number", "criterion", "returned a int: expected batches that"),
        ("net", "needy", "criterion", "needy' requires path"),
        ("net", "digits!", "criterion", "'npy:FOLDER' or 'webdataset:PATTERN', got 'digits!'.*--dataset"),
    ],
)
def test_what_does_not_fit_is_named(code: Path, model: str, data: str, loss: str, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        build(code, data, loss, model)


def test_a_loader_that_fails(code: Path) -> None:
    with pytest.raises(FailureError, match=r"raised KeyError: 'the second batch' \(.*mine.py:\d+, in breaks\)"):
        build(code, "breaks", "criterion")


# On the command line.


def call(code: Path, *words: str) -> Any:
    return CliRunner().invoke(main, [word.replace("MINE", str(code)) for word in words])


@pytest.mark.parametrize(
    ("command", "data", "place"),
    [
        ("probe", "Late", "KeyError: 'the second batch' (MINE:"),
        ("train", "Late", "KeyError: 'the second batch' (MINE:"),
        ("probe", "of_workers", "ValueError: no example 0 (MINE"),
        pytest.param("train", "of_workers", "ValueError: no example 0 (MINE", marks=pytest.mark.slow),
    ],
)
def test_an_error_of_the_readers_code_is_one_message(command: str, data: str, place: str, code: Path) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).state_dict(), "c.pt")
    words = ["probe", "c.pt"] if command == "probe" else ["train", "two-phase", "--epochs", "2"]
    done = call(code, *words, "--model", "MINE:net", "--data", f"MINE:{data}", "--loss", "MINE:criterion", "--out", "o")
    assert done.exit_code in (1, 2)
    assert place.replace("MINE", str(code)) in done.output
    assert "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit)


def test_an_error_of_ours_is_not_blamed_on_the_reader(code: Path) -> None:
    load_object(f"{code}:net")
    load_object("convexlab.objective:Objective")  # Whoever names something of ours.
    with pytest.raises(TypeError) as raised:
        build_from_batches(None, "", "")  # type: ignore[arg-type]
    assert failure_in(raised.value) == ""


@pytest.mark.usefixtures("undrawn")
def test_train_probe_and_report(code: Path) -> None:
    named = ("--model", "MINE:net", "--data", "MINE:pairs", "--loss", "MINE:of_batch")
    done = call(
        code, "train", "two-phase", *named, "--epochs", "4", "--switch-epoch", "2", "--no-baseline", "--out", "r"
    )
    assert done.exit_code == 0, done.output
    run = Run(code.parent / "r")
    assert (run.summary or {})["dataset"] == {"name": f"{code}:pairs", "train_size": 30}
    assert run.config["data"] == f"{code}:pairs"
    assert len(run.probe) == 3
    done = call(code, "probe", "r", "--max-steps", "3", "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["rows"]) == 4


def test_names_in_the_settings_are_not_imported(code: Path) -> None:
    stranger = code.with_name("stranger.py")
    stranger.write_text("raise SystemExit('it was run')", encoding="utf-8")
    named = ("--model", "MINE:net", "--data", "MINE:pairs", "--loss", "MINE:of_batch")
    done = call(
        code, "train", "two-phase", *named, "--epochs", "2", "--no-baseline", "--probe-every", "0", "--out", "r"
    )
    assert done.exit_code == 0, done.output
    run = Run(code.parent / "r")
    run.config_path.write_text(json.dumps(run.config | {"data": f"{stranger}:pairs"}))
    run.summary_path.unlink()
    done = call(code, "train", "two-phase", "--resume", "--out", "r")
    assert (done.exit_code, "stranger.py" in done.output, "--trust" in done.output) == (2, True, True), done.output


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Files


def test_arrays_on_disk_are_probed_and_trained_on_as_batches_are(tmp_path: Path, code: Path) -> None:
    module = load_object(f"{code}:rows").__globals__
    x, y = module["rows"]()
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", y.numpy())
    names = (f"{code}:net", f"npy:{tmp_path}", "cross-entropy")
    problem, expected = (build_from_batches(names[0], data, names[2]) for data in (names[1], f"{code}:pairs"))
    assert problem.objective.value() == pytest.approx(expected.objective.value(), rel=1e-6)
    assert (problem.examples, problem.batch_size) == (30, 16)
    batches = list(problem.batches.epoch(torch.Generator().manual_seed(0)))
    assert [share for share, _ in batches] == [0, 16 / 30]
    drawn = torch.cat([inputs for _, (inputs, _) in batches])
    assert torch.equal(drawn.sort(dim=0).values, x.sort(dim=0).values)
    assert not torch.equal(drawn, x)
    assert problem.loss_of_rows(torch.tensor([3, 1])) > 0
    fewer = build_from_batches(*names, train_size=7, batch_size=5, seed=2)
    assert (fewer.examples, fewer.batch_size) == (7, 5)
    # A second phase on all of it, in a run that says where its data are.
    out = tmp_path / "run"
    options = {"model": names[0], "data": names[1], "loss": names[2], "epochs": 4, "switch_epoch": 2}
    run = cl.train_two_phase(out=out, no_baseline=True, probe_every=0, **options)
    assert run.config["data"] == names[1]
    assert cl.probe(run, max_steps=4, density_steps=2, slice_points=0, plane_points=0).rows[0]["train_loss"] > 0


def test_shards_are_batches_too(tmp_path: Path, code: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    x, y = load_object(f"{code}:rows").__globals__["rows"]()
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for k, (row, label) in enumerate(zip(x.numpy(), y.tolist(), strict=True)):
            writer.write({"__key__": f"{k:04}", "x.npy": row, "cls": label})
    names = (f"{code}:net", f"webdataset:{tmp_path / 'a.tar'}", "cross-entropy")
    problem, expected = (build_from_batches(names[0], data, names[2]) for data in (names[1], f"{code}:pairs"))
    assert problem.objective.value() == pytest.approx(expected.objective.value(), rel=1e-6)
    assert [len(batch) for _, (_, batch) in problem.batches.epoch(torch.Generator())] == [30]
    with pytest.raises(MisuseError, match="expected no train_size, got 7"):
        build_from_batches(*names, train_size=7)


def test_files_that_only_a_checkpoint_names_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"names data='npy:/nowhere', which would read '/nowhere'"):
        check_trusted({"data": "npy:/nowhere"}, tmp_path / "a.safetensors", trust=False)

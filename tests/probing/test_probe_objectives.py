"""Probing what is not of images and labels, by an objective's factory, and a sample of a training set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import convexlab as cl
from convexlab.checkpoints import write_checkpoint
from convexlab.cli import main
from convexlab.reporting import write_report
from convexlab.reporting.words.sampling import sampling_sentence
from convexlab.runs import Run
from convexlab.runs.rows import ProbedCheckpoint
from tests.tiny import TRAIN_SIZE, write_problem

# Its Hessian is diag(2 a) everywhere, of known eigenvalues.
FACTORY = """
import torch
from torch import nn
import convexlab as cl

class Point(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(size))

def saddle(train_size=5):
    weights = torch.linspace(-1, 3, train_size)
    return cl.Objective.from_batch_loss(Point(train_size), [weights], lambda model, a: (a * model.x.square()).sum())

def number():
    return 3.0
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "factory.py"
    path.write_text(FACTORY, encoding="utf-8")
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "epoch-00007.safetensors"
    write_checkpoint(path, {"x": torch.arange(5.0)}, {"phase": "adam"})
    return path


def call(*words: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_an_objective_of_known_curvature(factory: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = cl.probe(checkpoint, objective=f"{factory}:saddle", dtype="float64", out=tmp_path / "out")
    (row,) = result.rows
    x, a = np.arange(5.0), np.linspace(-1, 3, 5)
    # A few sums of numbers of the order of 1 in float64.
    assert row["train_loss"] == pytest.approx(float((a * x**2).sum()), rel=1e-12)
    assert row["gradient_norm"] == pytest.approx(float(np.linalg.norm(2 * a * x)), rel=1e-12)
    assert (row["smallest"], row["largest"]) == pytest.approx((-2.0, 6.0), abs=1e-9)
    assert (row["verdict"], row["epoch"], row["phase"]) == ("non-convex", 7, "adam")
    assert row["trace"] is not None
    assert (row["examples"], row["train_size"]) == (None, None)
    assert abs(load_file(result.run.path / row["witness"])["witness"][0]) == pytest.approx(1.0, abs=1e-6)
    assert result.run.config == {"kind": "probe", "objective": f"{factory}:saddle"}


def test_metadata_name_the_objective(factory: Path, tmp_path: Path) -> None:
    path = tmp_path / "epoch-00002.safetensors"
    write_checkpoint(path, {"x": torch.ones(6)}, {"objective": f"{factory}:saddle", "train_size": "6"})
    (row,) = cl.probe(path, out=tmp_path / "out", trust=True).rows
    assert row["smallest"] == pytest.approx(-2.0, abs=1e-5)
    assert row["train_size"] == 6


def test_its_page_speaks_of_no_classes_and_no_examples(factory: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = call("probe", checkpoint, "--objective", f"{factory}:saddle", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    printed = " ".join(result.output.split())
    assert re.search(r"epoch 7.*non-convex.*−2.00 along a direction found", printed, re.IGNORECASE)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    assert title is not None
    assert "saddle" in title[1]
    assert " on data" not in page
    table = page[page.index("Curvature at each checkpoint") :].partition("</table>")[0]
    assert not {"Examples", "Smallest, fresh", "Largest, fresh"} & set(re.findall(r"<th[^>]*>([^<]*)</th>", table))
    # Two runs side by side, one of which has no data set's name.
    assert write_report([Run(tmp_path / "out")], tmp_path / "again.html").is_file()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("--objective FILE:number", 2, "'.*:number' returned float: expected a convexlab.Objective"),
        ("--objective FILE:sadle", 2, "no 'sadle' for .* Defined there: .*saddle"),
        ("--objective pinn-convektion", 2, "unknown objective 'pinn-convektion'. Did you mean 'pinn-convection'"),
        ("--objective FILE:saddle --model vit-mlp", 2, "expected no model beside it, got 'vit-mlp'"),
        ("--objective FILE:saddle --probe-size 3", 2, "expected no probe_size beside it, got 3"),
        ("--objective FILE:saddle --train-size 6", 2, r"of another architecture: x is \(5,\), expected \(6,\)"),
        ("--objective pinn-burgers", 2, "of another architecture: missing"),
        ("", 2, "does not say which model it belongs to. Name it by --model, or a loss of another kind, .*--objective"),
    ],
)
def test_misuse(words: str, status: int, message: str, factory: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call("probe", checkpoint, "--out", out, *words.replace("FILE", str(factory)).split())
    assert result.exit_code == status, result.output
    assert re.search(message, " ".join(result.stderr.split())), result.stderr
    assert not out.exists()


def test_objectives_are_listed_and_explained() -> None:
    assert "pinn-convection" in call("objectives").output
    told = " ".join(call("probe", "--help").output.split()).replace("- ", "-")  # Lines are broken at hyphens too.
    assert "Any other loss with its model" in told
    assert "returns a convexlab.Objective. It may take seed, train_size and device" in told


# A sample of the training set


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tiny")
    options = write_problem(folder)
    run = cl.train_two_phase(
        out=folder / "run", epochs=3, switch_epoch=1, train_size=90, no_baseline=True, probe_every=0, **options
    )
    return run, options


def test_a_sample_is_of_the_training_examples_and_speaks_of_them(
    trained: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    run, options = trained
    (row,) = cl.probe(run.checkpoints[-1], probe_size=30, out=tmp_path / "out").rows
    assert (row["examples"], row["train_size"], row["population"]) == (30, 90, 90)
    sentence = sampling_sentence(ProbedCheckpoint.from_row(row))
    assert sentence.startswith("The loss is that of 30 of 90 training examples. On 30 other training")
    assert "hence on all 90" in sentence
    # Every example of the sample, and every fresh one, is of the 90 that were trained on, and none is in both.
    data = cl.load_dataset(options["dataset"], train_size=90)
    problem = cl.problems.build_problem(options["model"], options["dataset"], "mse", train_size=90, probe_size=30)
    known, sample, fresh = (
        {image.numpy().tobytes() for image in images}
        for images in (data.x_train, problem.dataset.x_train, problem.dataset.fresh[0])
    )
    assert (len(sample), len(fresh)) == (30, 30)
    assert sample < known
    assert fresh < known
    assert not sample & fresh


def test_metadata_decide_the_sample_and_an_option_undoes_it(
    trained: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    source = cl.checkpoints.read_checkpoint(trained[0].checkpoints[-1])
    path = tmp_path / "epoch-00003.safetensors"
    write_checkpoint(path, source.tensors, source.metadata | {"probe_size": "30"})
    sizes = {"probed": {}, "whole": {"probe_size": 90}, "named": {"train_size": TRAIN_SIZE}}
    rows = {name: cl.probe(path, out=tmp_path / name, **given).rows[0] for name, given in sizes.items()}
    assert [rows[name]["examples"] for name in sizes] == [30, 90, TRAIN_SIZE]
    # 90 are the run's own training loss again.
    assert rows["whole"]["train_loss"] == pytest.approx(trained[0].metrics[-1]["train_loss"], rel=1e-6)


@pytest.mark.parametrize("size", [0, 91])
def test_a_sample_larger_than_the_training_set_is_refused(
    size: int, trained: tuple[Run, dict[str, Any]], tmp_path: Path
) -> None:
    result = call("probe", trained[0].checkpoints[-1], "--probe-size", size, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "expected a probe_size from 1 to 90, the training examples of npz:" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()

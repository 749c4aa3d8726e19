"""The command line: exit status and output of every kind of call, and no trace of those that were refused."""

from __future__ import annotations

import inspect
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

import convexlab
from convexlab import cli
from convexlab.cli import main
from convexlab.reporting import summary_lines
from convexlab.reporting.facts.run import read_facts
from convexlab.reporting.facts.runs import read_runs
from convexlab.reporting.words.claims import claim_sentences
from convexlab.reporting.words.run import judgement, place, verdict_name
from convexlab.runs import Run
from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import number, signed
from tests.tiny import write_problem

pytestmark = pytest.mark.usefixtures("undrawn")  # But for the run of the module's fixture, which is drawn.

# click before 8.2 mixes the streams unless told not to, and later ones do not know the word.
SEPARATE = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


def call(*arguments: object) -> Result:
    runner = CliRunner(env={"COLUMNS": "100"}, **SEPARATE)  # What the tests are run in may have another width.
    result = runner.invoke(main, [str(argument) for argument in arguments], prog_name="convexlab")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, models, and files that are wrong in every way."""
    folder = tmp_path_factory.mktemp("tiny")
    write_problem(folder)
    with np.load(folder / "data.npz") as data:
        arrays = dict(data)
    holed = arrays["x_train"].astype(np.float32)
    holed[3, 2, 1] = np.nan
    np.savez(folder / "nan.npz", **arrays | {"x_train": holed, "x_test": arrays["x_test"].astype(np.float32)})
    (folder / "text.txt").write_text("not a checkpoint")
    return folder


@pytest.fixture(scope="module")
def options(folder: Path) -> list[str]:
    return ["--model", f"{folder / 'models.py'}:small", "--dataset", f"npz:{folder / 'data.npz'}", "--lr", "0.01"]


@pytest.fixture(scope="module")
def trained(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Run]:
    out = tmp_path_factory.mktemp("cli") / "run"
    return call("train", "two-phase", *options, "--epochs", 8, "--switch-epoch", 4, "--out", out), Run(out)


@pytest.fixture
def run(trained: tuple[Result, Run], tmp_path: Path) -> Run:
    return Run(shutil.copytree(trained[1].path, tmp_path / "run"))


# What there is


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--help"],
            [
                *("train two-phase", "probe", "report", "models", "datasets", "objectives", "detectors", "phases"),
                *("Train, and measure curvature:", "Look at runs again:", "List the names that options take:"),
                "Exit status: 0 done, 1 it went wrong, 2 wrong use, 130 interrupted",
            ],
        ),
        (["-h"], ["Usage: convexlab"]),
        (["train", "--help"], ["two-phase"]),
        (
            ["train", "two-phase", "--help"],
            [
                *("--model", "--dataset", "--loss", "--epochs", "--detector", "--switch-epoch", "--phase-two"),
                *("--batch-size", "--lr", "--train-size", "--seed", "--seeds", "--probe-every", "--no-baseline"),
                *("--dtype", "--device", "--out", "--resume", "--json", "vit-mlp", "digits", "--objective"),
                *("--checkpoint-every", "--oracle-every", "--quiet", "What is trained:", "Other options:"),
                "Exit status: 0 done",
            ],
        ),
        (
            ["probe", "--help"],
            ["PATHS", "--model", "--dataset", "--loss", "--confidence", "--out", "--resume", "--json", "How closely:"],
        ),
        (["report", "--help"], ["PATHS", "--out"]),
        (["models", "--help"], ["parameter counts"]),
        (["datasets", "--help"], ["data sets"]),
        (["detectors", "--help"], ["detectors"]),
        (["phases", "--help"], ["second phases"]),
        (["--version"], [f"convexlab, version {convexlab.__version__}"]),
        (["models"], ["vit-mlp", "162,250", "vgg5-max-relu", "122,570", "toy, one parameter"]),
        (["datasets"], ["digits", "mnist", "npz:FILE", "imagefolder:DIR", "set CONVEXLAB_DATA to change it"]),
        (["objectives"], ["pinn-convection", "pinn-burgers", "friedman", "physics-informed"]),
        (["detectors"], ["algorithm-1", "gradient-norm-peak"]),
        (["phases"], ["cg-golden", "the paper's"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) < 4 else "",
)
def test_what_there_is(arguments: list[str], expected: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    assert [text for text in expected if text not in result.stdout] == []
    assert result.stderr == ""


# Done


def test_train_names_the_report(trained: tuple[Result, Run]) -> None:
    result, run = trained
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"report: {run.report_path}"
    assert "Two-phase training reached" in result.stdout
    assert "It switched from Adam to" in result.stdout
    assert result.stderr == ""  # no bars where nobody watches
    assert run.report_path.read_text(encoding="utf-8").startswith("<!")
    assert run.config["epochs"] == 8
    assert len(run.probe) == 3


def test_train_json(options: list[str], tmp_path: Path) -> None:
    result = call("train", "two-phase", *options, "--epochs", 5, "--switch-epoch", 3, "--json", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == Run(tmp_path / "r").summary
    assert f"report: {tmp_path / 'r' / 'report.html'}" in result.stderr


def test_quiet_names_the_report_alone(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "r"
    line = ["train", "two-phase", *options, "--epochs", 4, "--switch-epoch", 2, "--probe-every", 0, "--no-baseline"]
    result = call(*line, "--quiet", "--out", out)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"report: {out / 'report.html'}\n", "")
    result = call("probe", out, "-q", "--json", "--max-steps", 2, "--density-probes", 1, "--density-steps", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["rows"] == Run(out).probe


@pytest.mark.parametrize(
    ("line", "begin", "expected"),
    [
        ("convexlab pr", 1, {"probe"}),
        ("convexlab train two-phase --model vit-no", 4, {"vit-nomlp", "vit-nomlp-wkewq"}),
        ("convexlab train two-phase --detector gradient-norm-p", 4, {"gradient-norm-peak"}),
        ("convexlab probe --loss cross", 3, {"cross-entropy"}),
        ("convexlab probe --objective mine.py", 3, {"mine.py"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_tab_key_completes_commands_and_names(
    line: str, begin: int, expected: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_CONVEXLAB_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(begin))
    with pytest.raises(SystemExit):
        main(prog_name="convexlab")
    offered = dict(reversed(each.split(",", 1)) for each in capsys.readouterr().out.splitlines())
    assert expected <= offered.keys()
    assert all(name.startswith(line.split()[-1]) for name in offered)
    assert offered[min(expected)] == ("file" if "." in line else "plain")


def test_train_with_an_oracle(options: list[str], tmp_path: Path) -> None:
    arguments = [*options, "--epochs", 6, "--switch-epoch", 2, "--probe-every", 0, "--oracle-every", 2]
    result = call("train", "two-phase", *arguments, "--json", "--out", tmp_path / "r")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["oracle"]["switches"] == 2
    assert re.search(r"of 2 switches .*epoch [24]", result.stderr)
    assert "When to have switched" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert call("train", "two-phase", "--resume", "--oracle-every", 2, "--out", tmp_path / "r").exit_code == 0


INFORMED = ("--objective", "pinn-convection", "--train-size", 20, "--epochs", 12, "--switch-epoch", 5)


def test_train_report_and_probe_an_objective(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call("train", "two-phase", *INFORMED, "--probe-every", 0, "--oracle-every", 5, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "Two-phase training reached" in result.stdout
    assert result.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert Run(out).config["objective"] == "pinn-convection"
    again = call("report", out, "--out", tmp_path / "page.html")
    assert (again.exit_code, again.stdout) == (0, f"report: {tmp_path / 'page.html'}\n")
    assert "Relative error" in (tmp_path / "page.html").read_text(encoding="utf-8")
    probed = call("probe", out, "--max-steps", 2, "--density-probes", 1, "--density-steps", 3)
    assert probed.exit_code == 0, probed.stderr
    assert len(Run(out).probe) == len(Run(out).checkpoints)
    assert call("train", "two-phase", "--resume", "--out", out).exit_code == 0
    for option, message in (
        (("--epochs", 13), "was begun with epochs=12, not 13"),
        (("--objective", "friedman"), "was begun with objective='pinn-convection', not 'friedman'"),
        (
            ("--model", "vit-mlp"),
            "was begun with objective='pinn-convection', which comes with its model: got 'vit-mlp'",
        ),
    ):
        refused = call("train", "two-phase", "--resume", "--out", out, *option)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert message in refused.stderr


def test_train_several_seeds_of_an_objective_as_json(tmp_path: Path) -> None:
    arguments = [*INFORMED, "--seeds", 2, "--no-baseline", "--probe-every", 0, "--json", "--out", tmp_path / "r"]
    result = call("train", "two-phase", *arguments)
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed == Run(tmp_path / "r").summary
    assert [outcome["relative_error"] > 0 for outcome in printed["two_phase"]] == [True, True]


def test_a_run_of_an_object_is_not_resumed_from_here(tmp_path: Path) -> None:
    run = convexlab.train_two_phase(
        out=tmp_path / "r",
        objective=convexlab.problems.friedman,
        train_size=40,
        epochs=4,
        switch_epoch=2,
        probe_every=0,
    )
    for line in (["train", "two-phase", "--resume", "--out", run.path], ["probe", run.path]):
        result = call(*line)
        assert result.exit_code == 2
        assert "Traceback" not in result.stderr
    assert call("report", run.path).exit_code == 0


def test_train_and_report_several_seeds(options: list[str], tmp_path: Path) -> None:
    arguments = [*options, "--epochs", "4", "--switch-epoch", "2", "--probe-every", "0", "--no-baseline"]
    result = call("train", "two-phase", *arguments, "--seeds", 2, "--out", tmp_path / "r")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"report: {tmp_path / 'r' / 'report.html'}"
    seeds = [tmp_path / "r" / "seed-0", tmp_path / "r" / "seed-1"]
    again = call("report", *seeds, "--out", tmp_path / "page.html")
    assert (again.exit_code, again.stdout) == (0, f"report: {tmp_path / 'page.html'}\n")
    # The directory stands for its seeds.
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "r" / "report.html").read_bytes()
    assert call("train", "two-phase", "--resume", "--out", tmp_path / "r").exit_code == 0


def test_train_without_out_makes_a_folder_under_runs(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [*options, "--epochs", "3", "--switch-epoch", "2", "--probe-every", "0", "--no-baseline"]
    result = call("train", "two-phase", *arguments)
    assert re.search(r"^report: runs/npz-small-\d{8}-\d{6}/report\.html$", result.stdout, re.MULTILINE), result.stdout


def _unwrapped(text: str) -> str:
    return " ".join(text.split())


def test_probe_a_run(run: Run) -> None:
    result = call("probe", run.path)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    checkpoints = [ProbedCheckpoint.from_row(row) for row in run.probe]
    for checkpoint in checkpoints:
        (row,) = (line for line in lines if line.strip().startswith(f"{place(checkpoint)} "))
        assert number(checkpoint.train_loss) in row
        assert verdict_name(checkpoint.verdict) in row
        assert signed(checkpoint.largest, checkpoint.rounding_floor) in row
    assert max(map(len, lines[:-1])) <= 100
    assert lines[-1] == f"report: {run.report_path}"
    assert len(run.probe) == len(run.checkpoints)
    assert "\x1b" not in result.stdout


def test_more_words_and_the_same_numbers_again(run: Run) -> None:
    verbose = _unwrapped(call("probe", run.path, "--resume", "--verbose").stdout)
    shown = call("show", run.path).stdout
    for checkpoint in map(ProbedCheckpoint.from_row, run.probe):
        assert _unwrapped(f"{place(checkpoint)}: {judgement(checkpoint)}") in verbose
        assert signed(checkpoint.smallest, checkpoint.rounding_floor) in shown
    assert _unwrapped(" ".join(summary_lines([run]))) in _unwrapped(shown)
    for name, outcome in read_facts(run, "").outcomes.items():
        assert number(outcome.train_loss) in shown, name


def test_runs_side_by_side(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "the other"
    shutil.copytree(run.path, other)
    result = call("compare", run.path, other)
    assert result.exit_code == 0, result.stderr
    assert "the other" in result.stdout
    assert _unwrapped(" ".join(summary_lines([run, Run(other)]))) in _unwrapped(result.stdout)
    alone = call("compare", run.path)
    assert alone.exit_code == 2
    assert "expected at least two runs to compare" in alone.stderr


def test_a_report_says_what_the_paper_claims_and_has_other_forms(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "the other"
    shutil.copytree(run.path, other)
    for form in ("md", "json"):
        result = call("report", run.path, other, "--format", form)
        assert result.exit_code == 0, result.stderr
        *lines, last = result.stdout.splitlines()
        assert last == f"report: {run.path / f'report.{form}'}"
        said = _unwrapped(" ".join(lines))
        assert said == _unwrapped(" ".join(claim_sentences(read_runs([run, Run(other)]))))
        assert re.search(r"Claim 1 is supported in \d of 2 \(", said)
        assert "laim" in (run.path / f"report.{form}").read_text(encoding="utf-8")
    assert "Claim 1 is " in call("report", run.path, "--out", tmp_path / "one.json").stdout
    assert "Claim 1 is " in call("compare", run.path, other).stdout


@pytest.mark.parametrize("status", [0, 1])
def test_a_report_is_opened(run: Run, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def launch(place: str) -> bool:
        opened.append(place)
        return status == 0

    monkeypatch.setattr("webbrowser.open", launch)
    result = call("open", run.path)
    assert opened == [run.report_path.resolve().as_uri()]
    assert result.exit_code == status
    assert ("no browser could be started" in result.stderr) == bool(status)


def test_probe_files_as_json(run: Run, options: list[str], tmp_path: Path) -> None:
    # Two steps allow no lower bound, and a NaN no number at all: JSON has neither infinity nor NaN.
    weights = load_file(run.checkpoints[0])
    weights["2.bias"][0] = torch.nan
    save_file(weights, tmp_path / "nan.safetensors")
    files = [run.checkpoints[0], tmp_path / "nan.safetensors"]
    arguments = [*options[:4], "--loss", "mse", "--max-steps", "2", "--density-probes", "1", "--density-steps", "2"]
    result = call("probe", *files, *arguments, "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    printed = json.loads(result.stdout, parse_constant=refuse)
    assert printed == {"rows": Run(tmp_path / "out").probe, "report": str(tmp_path / "out" / "report.html")}
    assert "The loss is not finite here" in _unwrapped(result.stderr)


# Misuse: status 2 (or 1 where the reader's own code or the disk fails), one message, nothing written

TRAIN = "train two-phase --out OUT --dataset DATA --model SMALL "
OBJECTIVE = "train two-phase --out OUT --objective "
PROBE = "probe CHECKPOINT --out OUT "


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("trian two-phase", 2, r"Error: unknown command 'trian'. Did you mean 'train'\? Known: compare, "),
        ("two-phase", 2, "Error: unknown command 'two-phase'. Did you mean 'train two-phase'?"),
        ("train twophase", 2, "Error: unknown command 'twophase'. Did you mean 'two-phase'?"),
        ("sohw runs/first", 2, "Error: unknown command 'sohw'. Did you mean 'show'?"),
        ("train two-phase --epoch-s 3", 2, "No such option.*--epoch-s.*--epochs"),
        (TRAIN + "--model vit-mpl", 2, "Error: unknown model 'vit-mpl'. Did you mean 'vit-mlp'?"),
        (TRAIN + "--model nowhere.py:net", 2, "Error: no file '.*nowhere.py' for 'nowhere.py:net'"),
        (TRAIN + "--model nowhere.module:net", 2, "Error: no module 'nowhere'"),
        (TRAIN + "--model MODELS:smal", 2, "Error: no 'smal' for .* Defined there: .*small"),
        (TRAIN + "--model MODELS:broken", 1, "Error: '.*:broken' raised ValueError: no luck today"),
        (TRAIN + "--model MODELS:mismatched", 2, "Error: model '.*:mismatched' does not fit the data: it fails on"),
        (TRAIN + "--dataset digit", 2, "Error: unknown dataset 'digit'. Did you mean 'digits'?"),
        (TRAIN + "--dataset npz:none.npz", 2, "Error: no file at '.*none.npz'"),
        (TRAIN + "--dataset npz:FOLDER/text.txt", 2, "Error: '.*text.txt' does not fit"),
        (
            TRAIN + "--dataset npz:FOLDER/nan.npz",
            2,
            "Error: npz:.*nan.npz: 1 of 7680 values of the train split are NaN",
        ),
        (TRAIN + "--dataset imagefolder:none", 2, "Error: .*none"),
        (TRAIN + "--loss mes", 2, "Error: unknown loss 'mes'. Did you mean 'mse'?"),
        (
            TRAIN + "--model net.py",
            2,
            "Error: unknown model 'net.py'. Of a file name what is in it, too: 'net.py:NAME'.",
        ),
        (TRAIN + "--dataset FOLDER/data.npz", 2, r"Error: unknown dataset '.*'\. Did you mean 'npz:.*data.npz'\?"),
        (TRAIN + "--dataset FOLDER", 2, r"Error: unknown dataset '.*'\. Did you mean 'imagefolder:.*'\?"),
        (OBJECTIVE + "pinn-burger", 2, "Error: unknown objective 'pinn-burger'. Did you mean 'pinn-burgers'?"),
        (OBJECTIVE + "nowhere.py:loss", 2, "Error: no file '.*nowhere.py' for 'nowhere.py:loss'"),
        (OBJECTIVE + "MODELS:broken", 1, "Error: '.*:broken' raised ValueError: no luck today"),
        (
            OBJECTIVE + "MODELS:small",
            2,
            "Error: '.*:small' requires channels, classes, image_size: expected a callable",
        ),
        (
            OBJECTIVE + "friedman --model vit-mlp",
            2,
            "expected no model beside it, got 'vit-mlp'. Leave one of them out",
        ),
        (OBJECTIVE + "pinn-burgers --batch-size 4", 2, "Error: 'pinn-burgers' takes no batch_size, got 4"),
        (
            OBJECTIVE + "pinn-burgers --train-size 0",
            2,
            "Error: expected train_size to be a whole number from 1, got 0.",
        ),
        (
            OBJECTIVE + "pinn-burgers --phase-two lbfgs-adam-progressive",
            2,
            "Error: this second phase draws samples of the training examples: .* Choose another --phase-two",
        ),
        (OBJECTIVE + "friedman --device abacus", 2, "Error: device 'abacus' cannot be used here"),
        (TRAIN + "--detector algorithm1", 2, "Error: unknown detector 'algorithm1'. Did you mean 'algorithm-1'?"),
        (TRAIN + "--phase-two cgg", 2, "Error: unknown phase two 'cgg'. Did you mean 'cg'?"),
        (TRAIN + "--epochs 0", 2, "Error: expected epochs to be a whole number from 1, got 0."),
        (TRAIN + "--epochs ten", 2, "Invalid value for '--epochs': 'ten' is not a valid integer."),
        (TRAIN + "--epochs 5 --switch-epoch 5", 2, "Error: switch_epoch 5 leaves nothing of the budget of 5"),
        (TRAIN + "--lr -1", 2, "Error: expected lr to be a positive number, got -1.0."),
        (TRAIN + "--lr nan", 2, "Error: expected lr to be a positive number, got nan."),
        (TRAIN + "--lr fast", 2, "Invalid value for '--lr': 'fast' is not a valid float."),
        (TRAIN + "--batch-size 0", 2, "Error: expected batch_size to be a whole number from 1, got 0."),
        (TRAIN + "--train-size 0", 2, "Error: expected train_size to be a whole number from 1, got 0."),
        (TRAIN + "--train-size 1000", 2, "Error: .*1000"),
        (TRAIN + "--seed -1", 2, "Error: expected seed to be a whole number from 0, got -1."),
        (TRAIN + "--seeds 0", 2, "Error: expected seeds to be a whole number from 1, got 0."),
        (TRAIN + "--seeds 2 --model vit-mpl", 2, "Error: unknown model 'vit-mpl'"),
        (TRAIN + "--probe-every -1", 2, "Error: expected probe_every to be a whole number from 0, got -1."),
        (TRAIN + "--oracle-every 0", 2, "Error: expected oracle_every to be a whole number from 1, got 0."),
        (
            TRAIN + "--epochs 5 --oracle-every 5",
            2,
            "Error: oracle_every 5 leaves phase two no step within the budget of 5",
        ),
        (TRAIN + "--oracle-every 5 --no-baseline", 2, "Error: oracle_every 5 starts .* which no_baseline leaves out."),
        (TRAIN + "--dtype float16", 2, "Invalid value for '--dtype'"),
        (TRAIN + "--device abacus", 2, "Error: device 'abacus' cannot be used here"),
        (TRAIN + "--timeout 0", 2, "Error: expected to wait for a rank for a positive number of seconds, .*, got 0.0."),
        (TRAIN + "--timeout inf", 2, "Error: expected to wait for .* at most 100,000,000, got inf. Choose another"),
        (TRAIN + "--resume", 2, "Error: '.*' is not a run directory"),
        ("train two-phase --resume", 2, "Error: --resume needs the run directory to go on with. Name it by --out."),
        (TRAIN + "--out FOLDER", 2, "Error: '.*' exists already. Choose another --out"),
        (TRAIN + "--out FOLDER/text.txt", 2, "Error: '.*text.txt' is a file: expected a folder, or a new name for one"),
        (
            TRAIN + "--out FOLDER/text.txt/run",
            1,
            r"Error: (Not a directory|File exists): .*text.txt[^ ]*\. Check the path, or choose another\.",
        ),
        ("probe", 2, "Missing argument 'PATHS...'"),
        ("probe none.safetensors --out OUT", 2, "Error: no checkpoint 'none.safetensors': expected a file"),
        ("probe FOLDER --out OUT", 2, "Error: '.*' is not a run directory: expected it to hold config.json"),
        (
            "probe CHECKPOINTS --out OUT",
            2,
            r"got a folder of checkpoints. Name its files: .*/\*.safetensors",
        ),
        ("probe FOLDER/text.txt --out OUT", 2, "Error: cannot read checkpoint '.*text.txt'"),
        ("probe TRUNCATED --out OUT", 2, "Error: cannot read checkpoint '.*': it is damaged or not a safetensors"),
        (
            PROBE + "--model MODELS:wider",
            2,
            r"Error: checkpoint '.*' is of another architecture: 2.weight is \(4, 16\)",
        ),
        (PROBE + "--model vit-mlp", 2, "Error: checkpoint '.*' is of another architecture: missing"),
        (PROBE + "--model vit-mpl", 2, "Error: unknown model 'vit-mpl'. Did you mean 'vit-mlp'?"),
        (PROBE + "--dataset digit", 2, "Error: unknown dataset 'digit'. Did you mean 'digits'?"),
        (
            PROBE + "--dataset npz:FOLDER/nan.npz",
            2,
            "Error: npz:.*nan.npz: 1 of 7680 values of the train split are NaN",
        ),
        (PROBE + "--loss mes", 2, "Error: unknown loss 'mes'. Did you mean 'mse'?"),
        (PROBE + "--quiet --verbose", 2, "Error: expected --quiet or --verbose, got both. Leave one of them out."),
        (PROBE + "--confidence 2", 2, "Error: expected a confidence between 0 and 1, got 2.0."),
        (PROBE + "--max-steps 0", 2, "Error: expected max_steps of at least 1, got 0."),
        (PROBE + "--density-probes 0", 2, "Error: expected at least one density probe and step, got 0 and 32."),
        (PROBE + "--out FOLDER/text.txt", 2, "Error: '.*text.txt' is a file: expected a folder, or a new name for one"),
        (PROBE + "--out FOLDER/text.txt/out", 1, "Error: (Not a directory|File exists): .*text.txt"),
        ("report", 2, "Missing argument 'PATHS...'"),
        ("report FOLDER", 2, "Error: '.*' is not a run directory: expected it to hold config.json"),
        ("report RUN --format pdf", 2, "Invalid value for '--format': 'pdf' is not one of"),
        ("report RUN --out OUT/y.docx", 2, "Error: no report is written as '.docx': expected a file that ends in one"),
        ("report RUN --out OUT/y.md --format png", 2, "Error: expected a file that ends in .png for the format 'png'"),
        ("report none", 2, "Error: 'none' is not a run directory: .* There is nothing of that name"),
        ("report RUN --out FOLDER", 2, "Error: '.*' is a folder: expected a file to write. Name one in it."),
        ("show RUN/report.html", 2, r"Error: '.*html' is not a run directory: .* Did you mean '.*run'\?"),
        ("report RUN --out FOLDER/text.txt/page.html", 1, "Error: (Not a directory|File exists): .*text.txt"),
    ],
)
def test_misuse(
    line: str, status: int, message: str, folder: Path, trained: tuple[Result, Run], tmp_path: Path
) -> None:
    run, truncated = trained[1], tmp_path / "truncated.safetensors"
    truncated.write_bytes(run.checkpoints[0].read_bytes()[:-30])
    places = {
        "OUT": tmp_path / "out",
        "DATA": f"npz:{folder / 'data.npz'}",
        "SMALL": f"{folder / 'models.py'}:small",
        "MODELS": folder / "models.py",
        "FOLDER": folder,
        "CHECKPOINTS": run.path / "checkpoints",
        "CHECKPOINT": run.checkpoints[0],
        "TRUNCATED": truncated,
        "RUN": run.path,
    }
    before = everything_in(folder)
    words = [re.sub("|".join(places), lambda found: str(places[found[0]]), word) for word in line.split()]
    result = call(*words)
    assert result.exit_code == status, result.output
    assert re.search(message, " ".join(result.stderr.split())), result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()
    assert everything_in(folder) == before


def everything_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_options_of_the_run_that_is_resumed(run: Run) -> None:
    result = call("train", "two-phase", "--resume", "--out", run.path, "--epochs", 9)
    assert result.exit_code == 2
    assert "was begun with epochs=8, not 9" in result.stderr
    # Options that were not given do not count: their defaults are not what the run was begun with.
    assert call("train", "two-phase", "--resume", "--out", run.path, "--epochs", 8).exit_code == 0


def test_a_loss_that_is_not_finite_is_a_failure(options: list[str], tmp_path: Path) -> None:
    result = call("train", "two-phase", *options, "--lr", "1e30", "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: the training loss became infinite or NaN in epoch 1 of .*\n", result.stderr)
    assert "diverged: in epoch 1" in result.stdout
    assert (tmp_path / "r" / "report.html").exists()


# Interrupted: status 130


@pytest.mark.parametrize(
    ("function", "line", "remedy"),
    [
        ("train_two_phase", "train two-phase --out a/b", "convexlab train two-phase --resume --out a/b"),
        ("train_two_phase", "train two-phase --out 'a b'", "convexlab train two-phase --resume --out 'a b'"),
        ("probe_checkpoints", "probe x.safetensors", "the same command with --resume"),
    ],
)
def test_interrupted(function: str, line: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, function, interrupt)
    result = CliRunner(**SEPARATE).invoke(main, line)
    assert result.exit_code == 130
    assert result.stderr == f"\ninterrupted; what was done is kept. Go on with: {remedy}\n"
    assert result.stdout == ""


def test_interrupted_while_the_report_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("convexlab.reporting.write_report", interrupt)
    for line in (["report", run.path], ["probe", run.path, "--max-steps", "2"]):
        result = call(*line)
        assert (result.exit_code, result.stderr) == (130, "\ninterrupted\n")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send to one process on Windows")
def test_ctrl_c_in_earnest(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    # What runs in the background of a shell without job control inherits that SIGINT is ignored.
    listening = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('convexlab', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", listening, "train", "two-phase", *options]
    with subprocess.Popen(
        [*command, "--epochs", "100000", "--switch-epoch", "99999", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (out / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, stderr
    first = "\ninterrupted: this step is finished and stored first; once more stops at once\n"
    remedy = f"convexlab train two-phase --resume --trust --out {out}"
    assert stderr == f"{first}\ninterrupted; what was done is kept. Go on with: {remedy}\n"
    assert stdout == ""
    assert Run.open(out).metrics
    assert Run.open(out).summary is None


def test_python_m(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["convexlab", "--version"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module("convexlab", run_name="__main__")
    assert capsys.readouterr() == (f"convexlab, version {convexlab.__version__}\n", "")

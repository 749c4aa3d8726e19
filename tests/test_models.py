"""The trained networks: cards, hashes, sizes, and that checkpoints are what the cards say."""

from __future__ import annotations

import hashlib
import math
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_digits

from convexlab.architectures import build_model
from convexlab.checkpoints import load_weights, read_checkpoint
from convexlab.cli import main
from convexlab.importing import load_object
from convexlab.objective import Objective
from convexlab.problems import build_objective, setting_of
from convexlab.publishing import read_card
from convexlab.publishing.card import FIELDS
from convexlab.runs import Run
from tests.slowly import mostly_slow

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
FOLDERS = sorted(path.parent for path in MODELS.glob("*/README.md"))
RECIPES = sorted(MODELS.glob("*/recipe.py"))
LEFT_BY_A_PROBE = ("probe.jsonl", "report.html", "witnesses/epoch-00000.safetensors")
MOST_BYTES = 8_000_000
EACH_TIME = {"pinn-convection", "vit-mlp-mnist"}
"""An equation's network and one of images; their recipes are run with all tests, the others with the slow ones."""

each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)


def needs_data(folder: Path) -> bool:
    return "dataset" in read_checkpoint(Run(folder).checkpoints[0]).metadata


def solves_an_equation(folder: Path) -> bool:
    return read_checkpoint(Run(folder).checkpoints[0]).metadata.get("objective", "").startswith("pinn-")


with_data = pytest.mark.parametrize(
    "folder",
    [
        # Of those with images one each time.
        pytest.param(path, marks=[pytest.mark.data, *[pytest.mark.slow] * (path.name != "vit-mlp-mnist")])
        if needs_data(path)
        else path
        for path in FOLDERS
    ],
    ids=lambda path: path.name,
)


def test_there_are_networks_with_a_recipe_each() -> None:
    assert len(FOLDERS) >= 3
    assert [path.parent for path in RECIPES] == FOLDERS


def published(folder: Path) -> list[Path]:
    """What a clone has: not what a probe of the folder has left there."""
    ours = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in ours if path.name not in LEFT_BY_A_PROBE and path.parent.name != "witnesses"]


def test_the_whole_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in published(MODELS)) < MOST_BYTES


@each_folder
def test_the_card_has_every_field(folder: Path) -> None:
    card = read_card(folder / "README.md")
    assert list(card) == [*FIELDS]
    for name, kind in FIELDS.items():
        assert isinstance(card[name], kind), name
        assert card[name] or name == "seed", name
    assert (ROOT / card["recipe"]).is_file()
    assert card["name"] == folder.name
    assert card["examples_probed"] <= card["training_examples"]
    assert set(card["epochs"]) == set(card["gradient_equivalents"]) == {"adam", "lbfgs-adam-scaled"}
    asked = {"training_loss", "validation_loss"}
    asked |= {"training_accuracy", "validation_accuracy"} if needs_data(folder) else set()
    asked |= {"relative_error"} if solves_an_equation(folder) else set()
    assert set(card["final"]) == asked
    assert all(isinstance(value, float) for value in card["final"].values())


@each_folder
def test_the_table_is_that_of_the_files(folder: Path) -> None:
    rows = read_card(folder / "README.md")["checkpoints"]
    assert 8 <= len(rows) <= 16
    assert [folder / row["file"] for row in rows] == Run(folder).checkpoints
    for row in rows:
        path = folder / row["file"]
        metadata = read_checkpoint(path).metadata
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"], f"{path} is not the file of the card"
        assert (str(row["epoch"]), row["phase"]) == (metadata["epoch"], metadata["phase"])
        assert all(math.isfinite(row[name]) and row[name] > 0 for name in ("loss", "gradient_norm"))
    assert [row["phase"] for row in (rows[0], rows[1], rows[-1])] == ["start", "adam", "lbfgs-adam-scaled"]


@each_folder
def test_rounding_is_lost_in_what_the_card_prints(folder: Path) -> None:
    card = read_card(folder / "README.md")
    for row in card["checkpoints"]:
        # Three digits are printed; the loss is as good as that, the gradient norm to a tenth where it is nearly zero.
        assert row["loss"] == pytest.approx(row["loss_in_training"], rel=5e-3)
        assert row["gradient_norm"] == pytest.approx(row["gradient_norm_in_training"], rel=0.1)


@each_folder
def test_the_readme_lists_it(folder: Path) -> None:
    listed = (MODELS / "README.md").read_text(encoding="utf-8")
    assert f"| [{folder.name}]({folder.name}/README.md) | {read_card(folder / 'README.md')['parameters']:,} |" in listed


@each_folder
def test_every_checkpoint_loads_into_the_model_that_it_names(folder: Path) -> None:
    card = read_card(folder / "README.md")
    for path in Run(folder).checkpoints:
        checkpoint = read_checkpoint(path)
        told = checkpoint.metadata
        assert told.keys() >= {"train_size", "seed", "dtype", "epoch", "phase"}
        if "objective" in told:
            model = build_objective(told["objective"], train_size=10).model
        else:
            assert told.keys() >= {"dataset", "loss", "probe_size"}
            assert (int(told["train_size"]), int(told["probe_size"])) == (
                card["training_examples"],
                card["examples_probed"],
            )
            model = build_model(told["model"], **{key: int(told[key]) for key in ("channels", "classes", "image_size")})
        load_weights(model, checkpoint)
        assert sum(parameter.numel() for parameter in model.parameters()) == card["parameters"]


@with_data
def test_the_loss_of_the_last_checkpoint_is_what_the_objective_gives(folder: Path) -> None:
    card, path = read_card(folder / "README.md"), Run(folder).checkpoints[-1]
    checkpoint = read_checkpoint(path)
    # Named anew, the training set is evaluated whole.
    subject = setting_of(checkpoint, {"train_size": card["training_examples"]}).build("cpu")
    load_weights(subject.model, checkpoint)
    objective = subject if isinstance(subject, Objective) else subject.objective
    loss = card["checkpoints"][-1]["loss"]
    # The card has five digits. Outputs of order 1, residuals of order 30 in the equation u_t + 30 u_x, are rounded to
    # about 8 ε = 1e-6 of that, otherwise on every machine; by Cauchy and Schwarz that moves a mean square r² of
    # residuals by at most 2 r times it.
    scale = 30.0 if solves_an_equation(folder) else 1.0
    assert objective.value() == pytest.approx(loss, rel=5e-5, abs=2 * math.sqrt(loss) * scale * 1e-6)


@pytest.mark.usefixtures("undrawn")
@each_folder
def test_a_page_before_any_probe(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["report", str(folder), "--out", str(out)])
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    summary = Run(folder).summary
    assert summary is not None
    assert f"{summary['model']['name']} on " in page
    assert "Two-phase training reached a training loss of" in page
    results = page[page.index("Results of ") :].partition("</table>")[0]
    assert ("Relative error" in results) == solves_an_equation(folder)
    assert ("Validation accuracy" in results) == needs_data(folder)


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(
            path,
            marks=[
                *[pytest.mark.data] * needs_data(path),
                *[pytest.mark.slow] * (not solves_an_equation(path)),
            ],
        )
        for path in FOLDERS
    ],
    ids=lambda path: path.name,
)
def test_probe_takes_the_folder_as_it_is(folder: Path, tmp_path: Path) -> None:
    run = Run(shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns(*LEFT_BY_A_PROBE)))
    for path in run.checkpoints[:-1]:
        path.unlink()
    quick = ["--max-steps", "3", "--density-probes", "1", "--density-steps", "3"]
    result = CliRunner().invoke(main, ["probe", str(run.path), *quick])
    assert result.exit_code == 0, result.output
    (row,) = run.probe
    assert row["phase"] == "lbfgs-adam-scaled"
    card = read_card(folder / "README.md")
    assert row["train_size"] == card["training_examples"]
    if needs_data(folder):
        assert (row["examples"], row["population"]) == (card["examples_probed"], card["training_examples"])
    else:
        assert row["train_loss"] == pytest.approx(card["checkpoints"][-1]["loss"], rel=1e-3)
    assert run.report_path.is_file()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
@each_folder
def test_a_probe_leaves_a_clone_clean(folder: Path) -> None:
    paths = [str((folder / name).relative_to(ROOT)) for name in LEFT_BY_A_PROBE]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == paths, done.stderr


def write_few_images(folder: Path) -> None:
    """Write files of MNIST's format with 100 training and 20 test images, those of scikit-learn, three times as big."""
    digits = load_digits()
    images = np.pad(np.kron(digits.images, np.full((3, 3), 15)), ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    folder.mkdir(parents=True)
    for split, rows in (("train", slice(0, 100)), ("t10k", slice(100, 120))):
        x, y = images[rows], digits.target[rows].astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, *x.shape) + x.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, len(y)) + y.tobytes())


@pytest.mark.analyses
@pytest.mark.parametrize(
    "recipe",
    mostly_slow(sorted(RECIPES, key=lambda path: path.parent.name not in EACH_TIME), quick=len(EACH_TIME)),
    ids=lambda path: path.parent.name,
)
def test_recipe_runs_at_toy_size(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Nothing of models/ is touched.
    write_few_images(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("CONVEXLAB_DATA", str(tmp_path))
    done = CliRunner().invoke(load_object(f"{recipe}:main"), ["--scale", "toy"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    folder = tmp_path / done.stdout.strip()
    assert folder.name == recipe.parent.name
    card = read_card(folder / "README.md")
    assert list(card) == [*FIELDS]
    assert len(card["checkpoints"]) == len(Run(folder).checkpoints) >= 6
    assert card["checkpoints"][-1]["loss"] < card["checkpoints"][0]["loss"]

"""Checkpoints that other libraries have written, probed from the command line with the reader's own functions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.nn.functional import cross_entropy

from convexlab.cli import main
from convexlab.importing import load_object
from convexlab.runs import Row

# As a reader would write it: the model, the batches and the loss that the checkpoints are of.
TEXT = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel

def net():
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=32, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation="eager"))

def examples():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 32, (12, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in tokens]

def batches():
    rows = examples()
    return [{name: torch.stack([row[name] for row in rows[i : i + 6]]) for name in rows[0]} for i in (0, 6)]

def loss(model, batch):
    return model(**batch).loss
"""
LIGHTNING = """
import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

def batches():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 4, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=20)

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = net()

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.05)
"""
IMAGES = """
import torch
from torchvision.models import resnet18

def net():
    torch.manual_seed(0)
    model = resnet18(num_classes=3).requires_grad_(False)
    model.layer1.requires_grad_(True)  # The curvature in 148,000 of 11 million parameters, so that it takes seconds.
    return model

def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 3, 16, 16, generator=generator), torch.tensor([0, 1, 2, 0]))]
"""
QUICK = ("--max-steps", "3", "--density-steps", "3")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(folder: Path, code: str) -> Any:
    (folder / "mine.py").write_text(code, encoding="utf-8")
    return lambda name: load_object(f"mine.py:{name}")


def _probe(paths: list[Path], loss: str) -> list[Row]:
    named = ("--model", "mine.py:net", "--data", "mine.py:batches", "--loss", loss)
    done = CliRunner().invoke(main, ["probe", *map(str, paths), *named, *QUICK, "--out", "out", "--json"])
    assert done.exit_code == 0, done.output
    rows: list[Row] = json.loads(done.stdout)["rows"]
    assert all(row["smallest"] < row["largest"] for row in rows)
    return rows


def _loss(model: torch.nn.Module, batch: Any) -> float:
    with torch.no_grad():
        if isinstance(batch, Mapping):
            return float(model.eval()(**batch).loss)
        return float(cross_entropy(model.eval()(batch[0]), batch[1]))


def _losses(made: Any, states: list[Mapping[str, torch.Tensor]]) -> list[float]:
    """Return the losses that the library itself says its checkpoints have; batches are equally large."""
    model, batches, losses = made("net")(), list(made("batches")()), []
    for state in states:
        model.load_state_dict(state)
        losses.append(sum(_loss(model, batch) for batch in batches) / len(batches))
    return losses


def test_five_checkpoints_of_hugging_faces_trainer(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers.Trainer needs it")
    made = _write(folder, TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the library, about itself.
        arguments = transformers.TrainingArguments(
            "trained",
            max_steps=5,
            save_steps=1,
            per_device_train_batch_size=6,
            learning_rate=0.01,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        transformers.Trainer(model=made("net")(), args=arguments, train_dataset=made("examples")()).train()
    rows = _probe([folder / "trained"], "mine.py:loss")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert {row["axis"] for row in rows} == {"step"}
    paths = [folder / "trained" / f"checkpoint-{step}" for step in range(1, 6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = [transformers.GPT2LMHeadModel.from_pretrained(path).state_dict() for path in paths]
    # Means of 84 numbers in float32, added in another order.
    assert [row["train_loss"] for row in rows] == pytest.approx(_losses(made, states), rel=1e-5)


def test_a_row_of_lightning(folder: Path) -> None:
    lightning = pytest.importorskip("lightning")
    made = _write(folder, LIGHTNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of the library, about itself.
        saving = lightning.pytorch.callbacks.ModelCheckpoint("kept", save_top_k=-1)
        trainer = lightning.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=[saving],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(made("Module")(), made("batches")())
    paths = sorted((folder / "kept").glob("*.ckpt"), reverse=True)
    rows = _probe(paths, "cross-entropy")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    states = [torch.load(path, weights_only=True)["state_dict"] for path in reversed(paths)]
    plain = [{name.removeprefix("model."): tensor for name, tensor in state.items()} for state in states]
    # Means of 40 numbers in float32, added in another order.
    assert [row["train_loss"] for row in rows] == pytest.approx(_losses(made, plain), rel=1e-5)


@pytest.mark.slow
def test_a_row_of_torchvisions_resnet(folder: Path) -> None:
    pytest.importorskip("torchvision")
    made = _write(folder, IMAGES)
    states, model = [], made("net")()
    for epoch in (5, 10):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        wrapped = {f"module.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
        torch.save({"epoch": epoch, "state_dict": wrapped}, f"resnet18_{epoch}.pth.tar")
        states.append({name.removeprefix("module."): tensor for name, tensor in wrapped.items()})
    rows = _probe([folder / "resnet18_10.pth.tar", folder / "resnet18_5.pth.tar"], "torch.nn:CrossEntropyLoss")
    assert [row["epoch"] for row in rows] == [5, 10]
    # Sums over many channels in float32, in another order.
    assert [row["train_loss"] for row in rows] == pytest.approx(_losses(made, states), rel=1e-4)

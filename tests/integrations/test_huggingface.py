"""The callback in real Hugging Face trainers: what it leaves behind, goes on from, and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import FailureError, MisuseError
from convexlab.reporting import write_report
from convexlab.runs import Run
from tests.slowly import mostly_slow

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

from convexlab.integrations.huggingface import TwoPhaseCallback  # noqa: E402 - which imports both

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory", "ignore:::accelerate", "ignore:::transformers"),
    pytest.mark.usefixtures("undrawn"),
]

ROWS, BATCH = 48, 12
X = torch.linspace(-2, 2, ROWS)[:, None]
Y = torch.sin(2 * X)


class Curve(nn.Module):
    """A network of 25 parameters for a curve."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self.net(x)
        return {"loss": nn.functional.mse_loss(output, labels), "logits": output}


def fit(
    folder: Path, *, resume: str | None = None, arguments: dict[str, Any] | None = None, **settings: Any
) -> tuple[Any, Any]:
    """Train, with a checkpoint an epoch, and return the callback and the trainer."""
    options: dict[str, Any] = {"num_train_epochs": 12, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "epoch"}
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    trainer = transformers.Trainer(
        Curve(),
        transformers.TrainingArguments(
            str(folder / "kept"), per_device_train_batch_size=BATCH, **(options | quiet | (arguments or {}))
        ),
        train_dataset=data,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    settings = {"out": folder / "run", "switch_epoch": 5, "measure_every": 2, "share": 0.2, "examples": 4} | settings
    callback = TwoPhaseCallback(trainer, **settings)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=resume)
    return callback, trainer


def loss_of(trainer: Any) -> float:
    return cl.Objective(trainer.model.net, [(X, Y)], nn.MSELoss()).value()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp("huggingface")
    return *fit(folder), folder


def test_the_run_directory_is_one_of_ours(trained: tuple[Any, Any, Path]) -> None:
    callback, trainer, folder = trained
    run = Run.open(folder / "run")
    assert run.summary is not None
    assert callback.run.path == run.path
    assert run.summary["switch"]["epoch"] == 5
    assert 11 < run.summary["two_phase"]["gradient_equivalents"] <= 12
    assert list(dict.fromkeys(row["phase"] for row in run.metrics)) == ["start", "adam", "ssbroyden-adam"]
    assert run.metrics[-1]["train_loss"] == pytest.approx(loss_of(trainer), rel=1e-6)
    assert run.metrics[-1]["train_loss"] < 0.9 * run.summary["switch"]["train_loss"]
    assert "ssbroyden-adam" in write_report([run]).read_text(encoding="utf-8")


def test_the_trainer_logs_and_saves_on(trained: tuple[Any, Any, Path]) -> None:
    _, trainer, folder = trained
    logged = {name for row in trainer.state.log_history for name in row}
    assert {"convexlab/gradient_norm", "convexlab/gradient_curvature", "convexlab/loss"} <= logged
    steps = trainer.state.global_step - 5 * ROWS // BATCH
    assert 0 < steps <= 7
    assert len(list((folder / "kept").glob("*/convexlab.pt"))) == 5 + steps


@pytest.mark.parametrize("step", mostly_slow([21, 8, 22], quick=1))
def test_a_resumed_run_ends_where_the_whole_one_does(step: int, trained: tuple[Any, Any, Path], tmp_path: Path) -> None:
    _, whole, folder = trained
    kept = folder / "kept" / f"checkpoint-{step}"
    callback, resumed = fit(tmp_path, resume=str(kept), resume_from=kept)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)  # The batches come in another order: Adam's rounding.
    ours_summary, theirs_summary = callback.run.summary, Run.open(folder / "run").summary or {}
    assert ours_summary["two_phase"]["gradient_equivalents"] == pytest.approx(
        theirs_summary["two_phase"]["gradient_equivalents"], rel=1e-12
    )
    assert ours_summary["switch"]["reason"] == theirs_summary["switch"]["reason"]


def test_a_checkpoint_without_our_state_is_refused(trained: tuple[Any, Any, Path], tmp_path: Path) -> None:
    kept = trained[2] / "kept" / "checkpoint-8"
    with pytest.raises(FailureError, match="resume_from="):
        fit(tmp_path, resume=str(kept))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"bf16": True}, "full precision"), ({"optim": "sgd"}, "Adam")],
    ids=["precision", "no Adam"],
)
def test_what_cannot_be_supported_is_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=message):
        fit(tmp_path, arguments=arguments)
    assert not (tmp_path / "run").exists()


def test_several_devices_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.TrainingArguments, "world_size", 2)
    with pytest.raises(MisuseError, match="one device"):
        fit(tmp_path)


def test_norms_are_those_before_clipping(tmp_path: Path) -> None:
    callback, _ = fit(tmp_path, arguments={"max_grad_norm": 1e-3, "num_train_epochs": 4}, switch_epoch=2)
    assert min(row["told"]["gradient_norm"] for row in callback.run.metrics if "told" in row) > 1e-2


def test_a_language_models_own_loss_counts_its_tokens(tmp_path: Path) -> None:
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 6, "vocab_size": 11}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    text = torch.randint(11, (8, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in text]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "kept"), num_train_epochs=4, use_cpu=True, report_to="none", disable_tqdm=True
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=data)
    trainer.remove_callback(transformers.PrinterCallback)
    callback = TwoPhaseCallback(trainer, out=tmp_path / "run", switch_epoch=1, share=0.0)
    trainer.add_callback(callback)
    trainer.train()
    with torch.no_grad():
        loss = float(model.eval()(input_ids=text, labels=text).loss)
    assert callback.run.metrics[-1]["train_loss"] == pytest.approx(loss, rel=1e-5)

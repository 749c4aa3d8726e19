"""The callback in real Lightning trainers: what it leaves behind, goes on from, and refuses."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convexlab as cl
from convexlab.errors import FailureError, MisuseError
from convexlab.reporting import write_report
from convexlab.runs import Run

with warnings.catch_warnings(action="ignore"):
    pl = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

from convexlab.integrations.lightning import TwoPhaseCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:::lightning", "ignore:.*LeafSpec", "ignore:.*litlogger"),
    pytest.mark.usefixtures("undrawn"),
]

ROWS, BATCH = 48, 12


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-2, 2, ROWS)[:, None]
    return x, torch.sin(2 * x)


class Curve(pl.LightningModule):
    """A network of 25 parameters for a curve."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = changes.pop("optimizer", torch.optim.Adam)
        self.scale = changes.pop("scale", 1.0)
        self.automatic_optimization = changes.pop("automatic", True)
        self.validations = 0
        assert not changes

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.scale * nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.validations += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=1e-2)


def objective(module: Any) -> cl.Objective:
    return cl.Objective.from_batch_loss(
        module, [data()], lambda model, batch: model.scale * nn.functional.mse_loss(model.net(batch[0]), batch[1])
    )


def fit(
    folder: Path,
    *,
    epochs: int = 12,
    resume: str | None = None,
    module: Curve | None = None,
    trainer: dict[str, Any] | None = None,
    validate: bool = False,
    **settings: Any,
) -> tuple[Any, Any, Curve]:
    """Train, with a checkpoint an epoch, and return the callback, the trainer and the module."""
    module = Curve() if module is None else module
    settings = {"out": folder / "run", "switch_epoch": 5, "measure_every": 2, "share": 0.2, "examples": 4} | settings
    callback = TwoPhaseCallback(objective, **settings)
    kept = ModelCheckpoint(folder / "kept", save_top_k=-1, every_n_epochs=1, filename="{step}")
    options: dict[str, Any] = {"max_epochs": epochs, "accelerator": "cpu", "logger": CSVLogger(folder)}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    host = pl.Trainer(callbacks=[callback, kept], **(options | quiet | (trainer or {})))
    loader = DataLoader(TensorDataset(*data()), batch_size=BATCH)
    host.fit(module, loader, loader if validate else None, ckpt_path=resume)
    return callback, host, module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Curve, Path]:
    folder = tmp_path_factory.mktemp("lightning")
    with warnings.catch_warnings(action="ignore"):
        return *fit(folder, validate=True), folder


def test_the_run_directory_is_one_of_ours(trained: tuple[Any, Any, Curve, Path], tmp_path: Path) -> None:
    callback, _, module, folder = trained
    run = Run.open(folder / "run")
    assert run.summary is not None
    assert callback.run.path == run.path
    assert run.summary["switch"]["epoch"] == 5
    assert run.summary["two_phase"]["gradient_equivalents"] <= 12
    assert list(dict.fromkeys(row["phase"] for row in run.metrics)) == ["start", "adam", "ssbroyden-adam"]
    assert run.metrics[-1]["train_loss"] == pytest.approx(objective(module).value(), rel=1e-6)
    stored = cl.probe(run.path, objective=objective(module), out=tmp_path / "probe").checkpoints
    assert stored[-1].train_loss == run.metrics[-1]["train_loss"]
    assert "ssbroyden-adam" in write_report([run]).read_text(encoding="utf-8")


def test_the_loss_falls_in_the_second_phase(trained: tuple[Any, Any, Curve, Path]) -> None:
    summary = trained[0].run.summary
    assert summary["two_phase"]["train_loss"] < 0.9 * summary["switch"]["train_loss"]


def test_the_trainer_logs_validates_and_saves_on(trained: tuple[Any, Any, Curve, Path]) -> None:
    _, host, module, folder = trained
    logged = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("metrics.csv"))
    for name in ("gradient_norm", "gradient_curvature", "loss"):
        assert f"convexlab/{name}" in logged
    steps = host.global_step - 5 * ROWS // BATCH
    assert 0 < steps <= 7
    assert module.validations == 2 + (5 + steps) * ROWS // BATCH  # two of the sanity check
    assert len(list((folder / "kept").iterdir())) == 5 + steps
    assert host.num_training_batches == ROWS // BATCH


@pytest.mark.parametrize("step", [8, 21, 22])
def test_a_resumed_run_ends_where_the_whole_one_does(
    step: int, trained: tuple[Any, Any, Curve, Path], tmp_path: Path
) -> None:
    _, _, whole, folder = trained
    callback, _, resumed = fit(
        tmp_path, resume=str(folder / "kept" / f"step={step}.ckpt"), out=tmp_path / "run", validate=True
    )
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    theirs_summary = Run.open(folder / "run").summary or {}
    ours_summary = callback.run.summary
    for name in ("gradient_equivalents", "train_loss", "epoch"):
        assert ours_summary["two_phase"][name] == pytest.approx(theirs_summary["two_phase"][name], rel=1e-12)
    assert ours_summary["switch"] == theirs_summary["switch"]


def test_where_there_is_nothing_to_hand_over_adam_goes_on(tmp_path: Path) -> None:
    callback, host, _ = fit(tmp_path, module=Curve(scale=0.0), epochs=8)
    assert "zero" in callback.run.summary["safe_resort"]["reason"]
    assert 7 < callback.run.summary["two_phase"]["gradient_equivalents"] <= 8
    assert host.global_step == 7 * ROWS // BATCH + 1  # an epoch was the batch beside which nothing was handed over
    assert {row["phase"] for row in callback.run.metrics} == {"start", "adam"}


@pytest.mark.parametrize("measure_every", [1, 10])
def test_a_loss_that_becomes_infinite_finishes_the_run_at_its_best(measure_every: int, tmp_path: Path) -> None:
    module = Curve(optimizer=lambda parameters, lr: torch.optim.Adam(parameters, lr=1e30))
    with pytest.raises(FailureError, match="became"):
        fit(tmp_path, module=module, measure_every=measure_every)
    run = Run(tmp_path / "run")
    assert [row["phase"] for row in run.metrics] == ["start"]
    assert run.summary is not None
    assert run.summary["two_phase"]["diverged"] >= 1
    assert run.summary["two_phase"]["epoch"] == 0
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert "diverged" in write_report([run]).read_text()


def test_clipping_accumulation_and_steps_as_a_budget(tmp_path: Path) -> None:
    changed = {"gradient_clip_val": 1e-3, "accumulate_grad_batches": 2, "max_epochs": -1, "max_steps": 24}
    callback, _, _ = fit(tmp_path, trainer=changed, share=0.0)
    summary, norms = (
        callback.run.summary,
        [row["told"]["gradient_norm"] for row in callback.run.metrics if "told" in row],
    )
    assert summary["budget"] == 12
    assert summary["two_phase"]["train_loss"] < summary["switch"]["train_loss"]
    assert min(norms) > 1e-2


REFUSED: dict[str, tuple[dict[str, Any], Callable[[], Curve], str]] = {
    "precision": ({"precision": "bf16-mixed"}, Curve, "precision"),
    "devices": ({"devices": 2, "strategy": "ddp_spawn"}, Curve, "one device"),
    "no end": ({"max_epochs": -1}, Curve, "budget="),
    "manual": ({}, lambda: Curve(automatic=False), "automatic optimisation"),
    "no Adam": ({}, lambda: Curve(optimizer=torch.optim.SGD), "Adam"),
}


@pytest.mark.parametrize("case", [name for name in REFUSED if name != "devices" or os.name == "posix"])
def test_what_cannot_be_supported_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, module, message = REFUSED[case]
    if case == "devices":  # Without the processes: as a trainer over two of them says of itself.
        monkeypatch.setattr(pl.Trainer, "world_size", 2)
        changed = {}
    with pytest.raises(MisuseError, match=message):
        fit(tmp_path, module=module(), trainer=changed)
    assert not (tmp_path / "run").exists()


def test_an_objective_of_other_parameters_or_a_taken_directory_is_refused(
    trained: tuple[Any, Any, Curve, Path], tmp_path: Path
) -> None:
    module = Curve()
    module.more = nn.Linear(1, 1)
    loss = cl.Objective(module.net, [data()], nn.MSELoss())
    host = pl.Trainer(max_epochs=2, callbacks=[TwoPhaseCallback(loss)], logger=False, enable_checkpointing=False)
    with pytest.raises(MisuseError, match="2 that only it trains"):
        host.fit(module, DataLoader(TensorDataset(*data()), batch_size=BATCH))
    with pytest.raises(MisuseError, match="exists already"):
        fit(tmp_path, out=trained[3] / "run")

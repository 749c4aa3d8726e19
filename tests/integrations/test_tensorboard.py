"""Every series reaches TensorBoard's own reader."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import convexlab as cl
from convexlab.cli import main
from convexlab.runs import Run

with warnings.catch_warnings(action="ignore"):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

pytestmark = pytest.mark.filterwarnings("ignore:::tensorboard", "ignore:::google")


def series(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = events.EventAccumulator(str(folder)).Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def test_the_command_line_writes_metrics_and_probes(tmp_path: Path) -> None:
    words = ["train", "two-phase", "--objective", "friedman", "--train-size", "20", "--epochs", "4"]
    result = CliRunner().invoke(
        main, [*words, "--tensorboard", str(tmp_path / "events"), "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 0, result.output
    shown, run = series(tmp_path / "events"), Run.open(tmp_path / "run")
    for name in ("two-phase", "adam-constant", "adam-cosine"):
        rows = [row for row in run.metrics if row["run"] == name]
        assert shown[f"{name}/train_loss"] == [
            (row["epoch"], pytest.approx(row["train_loss"], rel=1e-6)) for row in rows
        ]
    assert shown["probe/smallest"] == [
        (row["epoch"], pytest.approx(row["smallest"], rel=1e-6)) for row in run.probe if row["smallest"] is not None
    ]
    assert "two-phase/told.loss" in shown


def test_a_watch_writes_what_it_measures(tmp_path: Path) -> None:
    from convexlab.integrations.tensorboard import TensorBoard

    model = nn.Linear(3, 1)
    data = [(torch.ones(4, 3), torch.zeros(4, 1))]
    adam = torch.optim.Adam(model.parameters())
    with TensorBoard(tmp_path) as log:
        watch = cl.Watch(cl.Objective(model, data, nn.MSELoss()), adam, share=0.9, every=1, log=log)
        for _ in range(8):
            model.zero_grad()
            nn.functional.mse_loss(model(data[0][0]), data[0][1]).backward()
            adam.step()
            watch.update(loss=1.5)
    shown = series(tmp_path)
    assert shown["loss"] == [(epoch, 1.5) for epoch in range(1, 9)]
    assert [step for step, _ in shown["gradient_norm"]] == [*range(1, 9)]
    assert [step for step, _ in shown["gradient_curvature"]] == [7]  # half of the share pays 3 gradients by then

"""Numbers that are none, gradients and Hessians of zero, one example, one class: each ends in words of its own."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import convexlab as cl
from convexlab.cli import main
from convexlab.reporting import summary_lines, write_report
from convexlab.training.second_phase import Step
from convexlab.training.trajectory import Trajectory

FAST = {"epochs": 6, "switch_epoch": 3, "lr": 0.1}


class Constant(nn.Module):
    """Its output has a gradient, which is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * 0).sum() + x


def problem(model: nn.Module, x: Tensor, y: Tensor, loss: nn.Module) -> cl.Objective:
    return cl.Objective(model, [(x, y)], loss)


def at_its_minimum() -> nn.Linear:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


@pytest.mark.parametrize(
    "subject",
    [
        lambda: problem(Constant(), torch.ones(4, 1), torch.zeros(4, 1), nn.MSELoss()),
        lambda: problem(at_its_minimum(), torch.ones(3, 2), torch.zeros(3, 1), nn.MSELoss()),
        lambda: problem(nn.Linear(2, 1), torch.ones(5, 2), torch.zeros(5, dtype=torch.long), nn.CrossEntropyLoss()),
    ],
    ids=["a constant model", "the minimum", "one class"],
)
def test_a_gradient_of_zero_is_nothing_to_hand_over(subject: object, tmp_path: Path) -> None:
    run = cl.train_two_phase(out=tmp_path / "run", objective=subject, **FAST)
    summary = run.summary
    assert summary is not None
    assert summary["safe_resort"] == {"epoch": 3, "reason": "the gradient is zero at the switch"}
    assert "nothing is known of switching" in summary_lines([run])[0]
    page = write_report([run]).read_text()
    assert re.search(r"\bnan\b", page, re.IGNORECASE) is None


def test_one_example_is_trained(tmp_path: Path) -> None:
    subject = problem(nn.Linear(2, 1), torch.ones(1, 2), torch.ones(1, 1), nn.MSELoss())
    run = cl.train_two_phase(out=tmp_path / "run", objective=subject, **FAST)
    assert run.summary is not None
    assert run.summary["two_phase"]["train_loss"] < 1e-6


@pytest.mark.parametrize("where", ["data", "weights"])
def test_a_loss_that_is_no_number_at_the_start_says_where_to_look(where: str, tmp_path: Path) -> None:
    x, model = torch.ones(3, 2), nn.Linear(2, 1)
    if where == "data":
        x[0, 0] = torch.nan
    else:
        nn.init.constant_(model.bias, torch.inf)
    refused = problem(model, x, torch.zeros(3, 1), nn.MSELoss())
    with pytest.raises(cl.FailureError, match=r"before the first step\. Look for a NaN or an infinity"):
        cl.train_two_phase(out=tmp_path / "run", objective=refused, **FAST)
    assert not (tmp_path / "run").exists()
    # So that the same command can be given again once the data are right.
    right = problem(nn.Linear(2, 1), torch.ones(3, 2), torch.zeros(3, 1), nn.MSELoss())
    assert cl.train_two_phase(out=tmp_path / "run", objective=right, **FAST | {"probe_every": 0}).summary is not None


class Cliff(nn.Module):
    """Beyond 0.45 the loss is no number any more, or its gradient."""

    def __init__(self, *, of_gradient: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.of_gradient = of_gradient

    def forward(self, x: Tensor) -> Tensor:
        beyond = self.weight > 0.45
        if self.of_gradient:
            # The derivative of the root at zero is infinite, times zero it is NaN.
            return x @ (self.weight + (0 * (0 * self.weight).sqrt() if beyond.any() else 0))
        return x @ torch.where(beyond, torch.nan, self.weight)


def _page_without_nan(run: cl.Run) -> str:
    page = write_report([run]).read_text()
    assert re.search(r"\bnan\b|\binf\b", re.sub(r"<dl.*?</dl>", "", page, flags=re.DOTALL)) is None
    return page


@pytest.mark.parametrize("of_gradient", [False, True], ids=["loss", "gradient"])
def test_the_best_weights_are_kept_where_adam_explodes(of_gradient: bool, tmp_path: Path) -> None:
    model = Cliff(of_gradient=of_gradient)
    subject = problem(model, torch.eye(2), torch.ones(2), nn.MSELoss())
    with pytest.raises(
        cl.FailureError, match=r"in epoch 5 of .*run'\. Try a smaller --lr\. Its best weights, of epoch 4"
    ):
        cl.train_two_phase(out=tmp_path / "run", objective=subject, epochs=30, switch_epoch=20, lr=0.1)
    run = cl.Run.open(tmp_path / "run")
    assert [path.name for path in run.checkpoints] == ["epoch-00000.safetensors", "epoch-00004.safetensors"]
    assert [row["epoch"] for row in run.probe] == [0, 4]
    assert float(model.weight.detach().max()) == pytest.approx(0.4, abs=0.02)
    assert run.summary is not None
    outcome = run.summary["two_phase"]
    assert (outcome["epoch"], outcome["diverged"], run.summary["baselines"]) == (4, 5, {})
    assert "diverged: in epoch 5" in summary_lines([run])[0]
    assert "diverged: in epoch 5" in _page_without_nan(run)


def test_the_best_weights_are_kept_where_phase_two_explodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No search of ours steps onto such a point: here the step is taken to have led there."""
    take = Trajectory.take

    def explode(self: Trajectory, phase: str, step: Step) -> None:
        take(self, phase, replace(step, gradient_norm=math.nan) if self.epoch == 4 else step)

    monkeypatch.setattr(Trajectory, "take", explode)
    torch.manual_seed(0)
    x = torch.rand(20, 3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(cl.FailureError, match=r"in epoch 5 of .* Its best weights, of epoch 4"):
        cl.train_two_phase(
            out=tmp_path / "run", objective=problem(model, x, x[:, :1], nn.MSELoss()), **FAST | {"epochs": 12}
        )
    run = cl.Run.open(tmp_path / "run")
    assert run.summary is not None
    outcome = run.summary["two_phase"]
    assert (run.summary["switch"]["epoch"], outcome["epoch"], outcome["diverged"]) == (3, 4, 5)
    assert set(run.summary["baselines"]) == {"adam-constant", "adam-cosine"}
    assert run.checkpoint_path(4).exists()
    assert "diverged: in epoch 5" in _page_without_nan(run)


def test_one_seed_that_explodes_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Trajectory.measure

    def explode(self: Trajectory) -> tuple[float, float]:
        if self.epoch == 2 and self._seed == 0:
            self.stand(math.inf, math.inf)
        return measure(self)

    monkeypatch.setattr(Trajectory, "measure", explode)
    options = {"objective": "friedman", "train_size": 20, "no_baseline": True, "probe_every": 0, "seeds": 2}
    with pytest.raises(cl.FailureError, match=r"in epoch 2 of .*seed-0'"):
        cl.train_two_phase(out=tmp_path / "run", **FAST | options)
    run = cl.Run.open(tmp_path / "run")
    assert run.summary is not None
    assert [outcome.get("diverged") for outcome in run.summary["two_phase"]] == [2, None]
    assert run.summary["two_phase"][1]["epoch"] > 3
    assert write_report([run]).exists()


def test_a_probe_that_fails_everywhere_is_a_failure(tmp_path: Path) -> None:
    """Its rows are kept, and are measured again by --resume."""
    options = {"objective": "friedman", "train_size": 20, "no_baseline": True, "probe_every": 0}
    run = cl.train_two_phase(out=tmp_path / "run", **FAST | options)
    for path in run.checkpoints:
        tensors = {name: tensor.fill_(torch.nan) for name, tensor in load_file(path).items()}
        with safe_open(path, "pt") as file:
            save_file(tensors, path, metadata=file.metadata())
    for more in ([], ["--resume"]):
        result = CliRunner().invoke(main, ["probe", str(run.path), "--max-steps", "2", *more])
        assert result.exit_code == 1, result.output
        assert f"could not be measured at any of the {len(run.checkpoints)} checkpoints" in result.stderr
        assert result.stdout.count("not finite here") == len(run.probe) == len(run.checkpoints)

"""Numbers that are none, gradients and Hessians of zero, one example, one class: each ends in words of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.reporting import summary_lines, write_report

pytestmark = pytest.mark.usefixtures("undrawn")

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
    with pytest.raises(cl.FailureError, match=r"before the first step\. Look for a NaN or an infinity"):
        cl.train_two_phase(out=tmp_path / "run", objective=problem(model, x, torch.zeros(3, 1), nn.MSELoss()), **FAST)


def test_the_best_weights_are_kept_where_adam_explodes(tmp_path: Path) -> None:
    class Cliff(nn.Module):
        """Beyond 0.5 the loss is no number any more."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.where(self.weight > 0.45, torch.nan, self.weight)

    subject = problem(Cliff(), torch.eye(2), torch.ones(2), nn.MSELoss())
    with pytest.raises(cl.FailureError, match=r"became nan in epoch 5 of two-phase\. Try a smaller --lr"):
        cl.train_two_phase(out=tmp_path / "run", objective=subject, epochs=30, switch_epoch=20, lr=0.1)
    run = cl.Run.open(tmp_path / "run")
    assert [path.name for path in run.checkpoints] == ["epoch-00000.safetensors", "epoch-00004.safetensors"]
    assert "After epoch 4" in summary_lines([run])[0]

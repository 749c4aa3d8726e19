"""A probe with products in bfloat16: what its row says of them, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import convexlab as cl
from convexlab.checkpoints import write_checkpoint
from convexlab.reporting.words.run import judgement
from convexlab.runs.rows import ProbedCheckpoint
from tests.dense import as_vector, derivatives, loss_of

FACTORY = """
import torch
from torch import nn
import convexlab as cl

def model():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

def data():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    return x, x[:, :2].sin() + x[:, 2:]

def loss():
    return cl.Objective(model(), [data()], nn.MSELoss())
"""
OPTIONS: dict[str, Any] = {"slice_points": 0, "plane_points": 0}


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


@pytest.fixture
def spec(tmp_path: Path, network: nn.Module) -> tuple[Path, str]:
    (tmp_path / "factory.py").write_text(FACTORY, encoding="utf-8")
    write_checkpoint(tmp_path / "epoch-1.safetensors", network.state_dict(), {})
    return tmp_path / "epoch-1.safetensors", f"{tmp_path / 'factory.py'}:loss"


def eigenvalues(network: nn.Module) -> tuple[np.ndarray, float]:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
    y, names = x[:, :2].sin() + x[:, 2:], [name for name, _ in network.named_parameters()]
    precise = network.double()
    function = loss_of(precise, nn.MSELoss(), x.double(), y.double(), names)
    hessian = derivatives(function, as_vector(precise, names))[2].numpy()
    return np.linalg.eigvalsh(hessian), float(np.trace(hessian))


def test_a_row_says_in_what_its_products_were_made_and_allows_for_it(
    spec: tuple[Path, str], network: nn.Module, tmp_path: Path
) -> None:
    path, objective = spec
    (row,) = cl.probe(path, objective=objective, precision="bf16", top=3, out=tmp_path / "out", **OPTIONS).rows
    truth, trace = eigenvalues(network)
    rounding = 1e-5 * truth[-1]
    assert row["precision"] == "bf16"
    assert 0 < row["deviation"] < 0.1 * truth[-1]
    assert row["smallest_lower_bound"] <= truth[0] + rounding
    assert row["smallest_lower_bound"] <= row["smallest"] - row["deviation"] + rounding
    assert truth[0] - rounding <= row["smallest"]
    assert row["largest"] <= truth[-1] + rounding
    # By products in float32: some eigenvalue is within the residual.
    for value, residual in zip(row["top"]["values"], row["top"]["residuals"], strict=True):
        assert np.abs(truth - value).min() <= residual + rounding
    assert row["trace_low"] <= trace <= row["trace_high"]
    (checkpoint,) = map(ProbedCheckpoint.from_row, [row])
    assert (checkpoint.precision, checkpoint.deviation) == ("bf16", row["deviation"])
    assert "Products were made in bf16: the bound allows for an error of" in judgement(checkpoint)


def test_a_row_of_full_precision_is_as_it_was(spec: tuple[Path, str], tmp_path: Path) -> None:
    path, objective = spec
    (row,) = cl.probe(path, objective=objective, out=tmp_path / "out", **OPTIONS).rows
    assert "precision" not in row
    assert "deviation" not in row
    # The precision is part of what rows are kept by; the full one is not, as older rows do not have it.
    narrow = cl.probe(path, objective=objective, out=tmp_path / "out", precision="bf16", resume=True, **OPTIONS)
    assert narrow.rows[0]["precision"] == "bf16"
    (again,) = cl.probe(path, objective=objective, out=tmp_path / "out", resume=True, **OPTIONS).rows
    assert again["key"] == row["key"] != narrow.rows[0]["key"]


def test_what_cannot_be_had_is_refused_before_anything_is_measured(spec: tuple[Path, str], tmp_path: Path) -> None:
    path, objective = spec
    with pytest.raises(cl.MisuseError, match="expected a cuda device"):
        cl.probe(path, objective=objective, precision="tf32", device="cpu", out=tmp_path / "out")
    with pytest.raises(cl.MisuseError, match="expected a loss in float32"):
        cl.probe(path, objective=objective, precision="bf16", dtype="float64", out=tmp_path / "out")
    with pytest.raises(cl.MisuseError, match="precision"):
        cl.probe(path, objective=objective, precision="fp8", out=tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()

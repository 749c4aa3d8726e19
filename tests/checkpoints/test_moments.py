"""Adam's moments beside checkpoints, and within those of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convexlab.checkpoints import read_moments, write_checkpoint, write_moments
from convexlab.errors import MisuseError


def _trained() -> tuple[nn.Module, torch.optim.Adam]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].bias.requires_grad_(False)
    adam = torch.optim.Adam(model.parameters(), lr=2e-3, betas=(0.8, 0.99), eps=1e-7)
    for _ in range(3):
        adam.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        adam.step()
    return model, adam


def _moments(state: Any) -> dict[int, list[float]]:
    return {place: entry["exp_avg_sq"].flatten().tolist() for place, entry in state["state"].items()}


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    model, adam = _trained()
    path = tmp_path / "epoch-00003.safetensors"
    assert read_moments(path, model) is None
    write_moments(path, model, torch.optim.Adam(model.parameters()))  # No step, nothing to write.
    assert list(tmp_path.iterdir()) == []
    write_moments(path, model, adam)
    state = read_moments(path, model)
    assert state is not None
    assert _moments(state) == _moments(adam.state_dict())
    assert {entry["step"] for entry in state["state"].values()} == {3.0}
    (group,) = state["param_groups"]
    assert (group["lr"], tuple(group["betas"]), group["eps"]) == (2e-3, (0.8, 0.99), 1e-7)
    assert group["params"] == [0, 1, 2, 3]


@pytest.mark.parametrize("wrapper", ["optimizer", "optimizer_state_dict", "optimizer_states"])
def test_a_checkpoint_of_torch_may_hold_them(wrapper: str, tmp_path: Path) -> None:
    model, adam = _trained()
    state = adam.state_dict()
    content = {"model": model.state_dict(), wrapper: [state] if wrapper.endswith("states") else state}
    torch.save(content, tmp_path / "last.pt")
    stored = read_moments(tmp_path / "last.pt", model)
    assert stored is not None
    assert _moments(stored) == _moments(state)


def test_what_does_not_fit_is_none_and_what_is_damaged_is_refused(tmp_path: Path) -> None:
    model, adam = _trained()
    torch.save({"model": model.state_dict(), "optimizer": adam.state_dict()}, tmp_path / "last.pt")
    assert read_moments(tmp_path / "last.pt", nn.Linear(3, 4)) is None
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.save({"model": model.state_dict(), "optimizer": sgd.state_dict()}, tmp_path / "sgd.pt")
    assert read_moments(tmp_path / "sgd.pt", model) is None
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    assert read_moments(tmp_path / "bare.pt", model) is None
    write_checkpoint(tmp_path / "adam" / "epoch-00001.safetensors", {"0.weight": model[0].weight}, {"lr": "fast"})
    with pytest.raises(MisuseError, match=r"cannot read the moments .* expected lr, beta1, beta2, eps and step"):
        read_moments(tmp_path / "epoch-00001.safetensors", model)

"""Several processes of torch.distributed: refused, or averaged, and never left waiting for each other."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from convexlab import MisuseError
from convexlab.optim import LBFGS

_STEPS, _EXAMPLES = 6, 12
_PATIENCE = timedelta(seconds=120)
"""For the other process, which may have died."""


def _fit() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(_EXAMPLES, 2, dtype=torch.float64)
    return model, x, torch.sin(x[:, :1]) * (1 + x[:, 1:])


def _train(model: nn.Module, x: Tensor, y: Tensor, processes: str | None) -> Tensor:
    """Return the parameters after some steps."""
    optimiser = LBFGS(model.parameters())
    optimiser.processes = processes

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(_STEPS):
        optimiser.step(closure)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def _work(rank: int, folder: str) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=_PATIENCE
    )
    model, x, y = _fit()
    share = slice(rank, None, 2)
    with pytest.raises(MisuseError, match=r"has 2 processes.*processes = 'averaged'"):
        _train(model, x[share], y[share], None)
    wrapped = nn.parallel.DistributedDataParallel(model)
    torch.save(_train(wrapped, x[share], y[share], "averaged"), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_with_half_the_data_each_step_as_one_with_all(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, __file__, "1", str(tmp_path)]) as other:
        try:
            _work(0, str(tmp_path))
            assert other.wait(_PATIENCE.total_seconds()) == 0
        finally:
            other.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    # Sums in another order, twelve evaluations amplified by condition numbers of some 100.
    torch.testing.assert_close(first, _train(*_fit(), None), rtol=1e-9, atol=1e-9)


def test_what_is_said_of_processes_is_checked() -> None:
    with pytest.raises(MisuseError, match=r"expected processes to be None, .* or 'alone', got 'some'"):
        _train(*_fit(), "some")


if __name__ == "__main__":
    _work(int(sys.argv[1]), sys.argv[2])

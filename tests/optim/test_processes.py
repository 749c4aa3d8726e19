"""Several processes of torch.distributed: refused, or averaged, and never left waiting for each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convexlab import MisuseError
from convexlab.machine.ranks import Ranks
from convexlab.optim import LBFGS
from tests.ranks import FORKED, in_ranks

_STEPS, _EXAMPLES = 6, 12


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


def _work(ranks: Ranks) -> Tensor:
    model, x, y = _fit()
    share = slice(ranks.rank, None, ranks.size)
    with pytest.raises(MisuseError, match=r"has 2 processes.*processes = 'averaged'"):
        _train(model, x[share], y[share], None)
    return _train(nn.parallel.DistributedDataParallel(model), x[share], y[share], "averaged")


@FORKED
def test_two_processes_with_half_the_data_each_step_as_one_with_all(tmp_path: Path) -> None:
    first, second = in_ranks(2, _work, tmp_path)
    assert torch.equal(first, second)
    # Sums in another order, twelve evaluations amplified by condition numbers of some 100.
    torch.testing.assert_close(first, _train(*_fit(), None), rtol=1e-9, atol=1e-9)


def test_what_is_said_of_processes_is_checked() -> None:
    with pytest.raises(MisuseError, match=r"expected processes to be None, .* or 'alone', got 'some'"):
        _train(*_fit(), "some")

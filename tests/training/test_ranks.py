"""Training and probing by several ranks: the numbers of one process, whatever is killed on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.machine.ranks import ALONE, Ranks
from convexlab.problems import Problem, RandomRows
from convexlab.training.adam import adam_epoch
from tests.faults.killing import contents, differences, leftovers
from tests.ranks import FORKED, in_ranks, trained

pytestmark = FORKED

TOLERANCE = 1e-12
OPTIONS = {"objective": "friedman", "dtype": "float64", "train_size": 40, "lr": 1e-2, "epochs": 6}
IMAGES = {
    "model": "convexlab.problems.images:perceptron",
    "dataset": "digits",
    "dtype": "float64",
    "train_size": 60,
    "epochs": 5,
    "switch_epoch": 2,
}
WATCHED = OPTIONS | {"detector": "algorithm-1", "probe_every": 0}
# Whatever rounding does to them, or to a step of theirs.
LOOSE = ("residual", "rounding_floor", "asymmetry", "second_difference")


def close(left: Any, right: Any, where: str = "") -> list[str]:
    """Name every place where two rows differ by more than rounding."""
    if isinstance(left, dict) and isinstance(right, dict):
        names = {**left, **right}.keys() - {"seconds", "vector_seconds", "peak_memory", "environment", "made_by", "key"}
        return [place for name in sorted(names) for place in close(left.get(name), right.get(name), f"{where}/{name}")]
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return [
            place for i, pair in enumerate(zip(left, right, strict=True)) for place in close(*pair, f"{where}[{i}]")
        ]
    if isinstance(left, float) and isinstance(right, float):
        same = abs(left - right) <= TOLERANCE * max(abs(left), abs(right))
        return [] if same or any(name in where for name in LOOSE) else [f"{where}: {left!r} and {right!r}"]
    return [] if left == right else [f"{where}: {left!r} and {right!r}"]


def check_run(size: int, options: dict[str, Any], folder: Path) -> None:
    """Compare a run of several ranks with that of one process, file by file."""
    in_ranks(size, trained(folder / "ranks", options), folder / "first")
    one, ours = cl.train_two_phase(out=folder / "one", **options), cl.Run.open(folder / "ranks")
    assert leftovers(ours.path) == []
    assert ours.summary is not None
    assert one.summary is not None
    assert ours.summary["switch"]["epoch"] == one.summary["switch"]["epoch"]
    assert close(ours.metrics, one.metrics) == []
    assert close(ours.probe, one.probe) == []


def test_a_run_of_two_ranks_is_that_of_one_process_and_its_probe_is_too(tmp_path: Path) -> None:
    check_run(2, IMAGES, tmp_path)


@pytest.mark.parametrize("size", [2, 4])
def test_a_run_whose_switch_is_detected_is_that_of_one_process_and_repeats(size: int, tmp_path: Path) -> None:
    check_run(size, WATCHED, tmp_path)
    in_ranks(size, trained(tmp_path / "again", WATCHED), tmp_path / "second")
    assert list(differences(contents(tmp_path / "again"), contents(tmp_path / "ranks"))) == []


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), *layers, nn.Tanh(), nn.Linear(6, 1)).double()


def after_adam(ranks: Ranks, *layers: nn.Module) -> Tensor:
    model, generator = network(*layers), torch.Generator().manual_seed(1)
    x = torch.randn(23, 3, generator=generator, dtype=torch.float64)
    model.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    objective = cl.Objective(model, [(x, x[:, :1])], nn.MSELoss(), group=ranks.group)
    problem = Problem(model, objective, minibatches=RandomRows((x, x[:, :1]), rows=23, size=7))
    adam, order = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.Generator().manual_seed(3)
    losses = [adam_epoch(problem, adam, order, seed=7, epoch=epoch) for epoch in range(3)]
    return torch.cat([objective.flat_parameters(), torch.tensor(losses, dtype=torch.float64)])


def test_ranks_share_out_a_mini_batch(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> list[Tensor]:
        return [after_adam(ranks), after_adam(ranks, nn.BatchNorm1d(6)), after_adam(ranks, nn.Dropout(0.5))]

    first, second = in_ranks(2, work, tmp_path)
    assert all(map(torch.equal, first, second))
    torch.testing.assert_close(first[0], after_adam(ALONE), rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(first[1], after_adam(ALONE, nn.BatchNorm1d(6)), rtol=TOLERANCE, atol=TOLERANCE)
    # Every rank drops out units of its own, so that no sum is that of one process; but it trains.
    dropped = after_adam(ALONE, nn.Dropout(0.5))
    assert not torch.allclose(first[2], dropped)
    torch.testing.assert_close(first[2], dropped, rtol=0, atol=0.5)


def test_a_run_may_be_gone_on_with_by_fewer_ranks(tmp_path: Path) -> None:
    """Where the second phase is under way, whose memory was split over two."""
    options = OPTIONS | {"switch_epoch": 2, "no_baseline": True, "probe_every": 0, "epochs": 9}

    def interrupted(ranks: Ranks) -> None:
        def stop(step: Any) -> None:
            if step.done > 6:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cl.train_two_phase(out=tmp_path / "run", group=ranks.group, progress=stop, **options)

    in_ranks(2, interrupted, tmp_path / "two")
    resumed = cl.train_two_phase(out=tmp_path / "run", resume=True)
    assert close(resumed.metrics, cl.train_two_phase(out=tmp_path / "one", **options).metrics) == []


def test_an_error_of_one_rank_is_one_of_all(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> str:
        def loss(model: Any, batch: Any) -> Tensor:
            if len(batch[0]) == 3:
                raise ZeroDivisionError("three of them")
            return model(batch[0]).square().mean()

        data = [(torch.ones(rows, 3, dtype=torch.float64),) for rows in (2, 3)]
        objective = cl.Objective.from_batch_loss(network(), data, loss, group=ranks.group)
        with pytest.raises((cl.FailureError, ZeroDivisionError)) as caught:
            objective.value()
        return f"{type(caught.value).__name__}: {caught.value}"

    assert in_ranks(2, work, tmp_path) == [
        "FailureError: rank 1 of 2 failed: ZeroDivisionError: three of them",
        "ZeroDivisionError: three of them",
    ]


def test_ranks_at_different_weights_are_refused(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> None:
        model, x = network(), torch.ones(8, 3, dtype=torch.float64)
        if ranks.rank == 1:
            with torch.no_grad():
                model[0].bias[0] += 1e-15
        with pytest.raises(cl.FailureError, match="the ranks have come apart"):
            cl.Objective(model, [(x, x[:, :1])], nn.MSELoss(), group=ranks.group).value()

    in_ranks(2, work, tmp_path)

"""An epoch of Adam: a plain loop, in halves for a watch, on the whole batch, and with a loader's own order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import convexlab as cl
from convexlab.problems import Problem, RandomRows, build_problem, friedman, physics_informed
from convexlab.problems.physics_informed import convection
from convexlab.training.adam import adam_epoch, backward


class Halves:
    """Counts what a watch is told of."""

    def __init__(self) -> None:
        self.count = 0

    def accumulated(self) -> None:
        self.count += 1


def epochs(problem: Problem, count: int, **options: Any) -> Tensor:
    """Return the weights after some epochs from the problem's start."""
    problem.reset()
    adam, order = torch.optim.Adam(problem.model.parameters(), lr=1e-2), torch.Generator().manual_seed(3)
    for epoch in range(count):
        adam_epoch(problem, adam, order, seed=7, epoch=epoch, **options)
    return problem.objective.flat_parameters()


def test_it_is_a_plain_loop_over_shuffled_rows() -> None:
    problem = friedman(train_size=50, seed=0, batch_size=16)
    weights = epochs(problem, 2)
    problem.reset()
    ((x, y),) = problem.objective.data
    adam, order = torch.optim.Adam(problem.model.parameters(), lr=1e-2), torch.Generator().manual_seed(3)
    for _ in range(2):
        for rows in torch.randperm(50, generator=order).split(16):
            adam.zero_grad()
            nn.functional.mse_loss(problem.model(x[rows]), y[rows]).backward()
            adam.step()
    assert torch.equal(problem.objective.flat_parameters(), weights)


def test_the_rate_follows_the_share_of_the_epoch() -> None:
    rates: list[float] = []
    epochs(friedman(train_size=64, seed=0, batch_size=16), 2, learning_rate=lambda done: rates.append(done) or 1e-3)
    assert rates == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]


def test_the_two_halves_make_the_gradient_of_the_whole_mini_batch() -> None:
    problem = build_problem(
        "convexlab.problems.images:perceptron", "digits", "mse", train_size=100, seed=0, batch_size=33
    )
    batch, watch = problem.random_rows().of(torch.arange(33)), Halves()
    backward(problem.objective.training_loss, batch, watch)  # type: ignore[arg-type]
    halved = [parameter.grad.clone() for parameter in problem.model.parameters()]
    problem.model.zero_grad()
    problem.objective.training_loss(batch).backward()
    for half, parameter in zip(halved, problem.model.parameters(), strict=True):
        torch.testing.assert_close(half, parameter.grad)
    assert watch.count == 1
    assert problem.objective.size == 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10


def test_batch_normalisation_is_not_halved() -> None:
    model, watch = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), Halves()
    x, y = torch.randn(12, 3), torch.randn(12, 1)
    problem = Problem(
        model, cl.Objective(model, [(x, y)], nn.MSELoss()), minibatches=RandomRows((x, y), rows=12, size=6)
    )
    epochs(problem, 1, watch=watch)
    assert watch.count == 0


def test_on_the_whole_batch_an_epoch_is_a_step() -> None:
    problem, steps = physics_informed(convection(), train_size=20, seed=0), []

    def step(batch: Any) -> Tensor:
        steps.append(batch)
        return torch.zeros(())

    assert problem.whole_batch
    epochs(problem, 3, step=step)
    assert len(steps) == 3


@pytest.mark.parametrize("own", [False, True])
def test_a_loader_that_shuffles_gives_the_same_order_again(own: bool) -> None:
    data = TensorDataset(torch.randn(20, 3), torch.randn(20, 1))
    generator = torch.Generator().manual_seed(11) if own else None
    loader = DataLoader(data, batch_size=6, shuffle=True, generator=generator)
    model = nn.Linear(3, 1)
    problem = Problem(model, cl.Objective(model, [tuple(data.tensors)], nn.MSELoss()), minibatches=loader)
    before = torch.random.get_rng_state(), generator.get_state() if generator else None
    first = epochs(problem, 3)
    torch.rand(5)
    assert torch.equal(epochs(problem, 3), first)
    if generator is not None:
        assert torch.equal(generator.get_state(), before[1])
    assert not problem.whole_batch

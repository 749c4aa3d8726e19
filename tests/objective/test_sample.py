"""A sample of an objective against one made by hand from the same rows, and what it charges the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import convexlab as cl
from tests.dense import as_vector, derivatives, loss_of

# A sum of N terms in float64 is off by at most N ε times the sum of their sizes, N below 100 here, and the terms by
# some 10 ε each. Sizes are of the order of 1 to 10.
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def _model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _data(rows: int) -> tuple[Tensor, Tensor]:
    """Return examples that tell their number: the first input is that, over 100."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    x[:, 0] = torch.arange(rows) / 100
    return x, torch.randint(0, 3, (rows,), generator=generator)


def _cut(x: Tensor, y: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def _rows(objective: cl.Objective) -> list[Tensor]:
    """Return the numbers of the examples of every batch."""
    return [(100 * batch[0][:, 0]).round().long() for batch, _ in objective.parts()]


@pytest.mark.parametrize("sizes", [[30], [10, 10, 10], [7, 7, 7, 7, 2], [1] * 30, [29, 1]], ids=str)
def test_as_many_as_wanted_the_same_share_of_every_batch(sizes: list[int]) -> None:
    objective = cl.Objective(_model(), _cut(*_data(30), sizes), nn.CrossEntropyLoss(), micro_batch=None)
    for examples in range(1, 30):
        sample = objective.sample(examples)
        rows = torch.cat(_rows(sample))
        assert len(rows) == len(rows.unique()) == examples
        assert sample.share == pytest.approx(examples / 30, rel=1e-15)
        start = 0
        for size in sizes:
            taken = int(((rows >= start) & (rows < start + size)).sum())
            # Of two roundings, each by at most a half.
            assert abs(taken - size * examples / 30) <= 1, f"{examples} examples"
            start += size


def test_every_part_of_a_batch_has_its_share_and_a_period_in_it_none_of_its_own() -> None:
    labels = torch.arange(120) % 3
    model, criterion = _model(), nn.CrossEntropyLoss()
    sample = cl.Objective(model, [(_data(120)[0], labels)], criterion, micro_batch=None).sample(40)
    (rows,) = _rows(sample)
    # One in each three rows in a row: of labels in order each is there as often as it should, within one.
    assert torch.equal(rows // 3, torch.arange(40))
    # All three rows in three, each with probability 1/3: fewer than 4 of 40 have one of them in 3 of 10⁴ draws.
    assert torch.bincount(labels[rows], minlength=3).min() >= 4


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_loss_over_its_rows(weighted: bool) -> None:
    model, (x, y) = _model(), _data(60)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.25]).double() if weighted else None)
    objective = cl.Objective(model, _cut(x, y, [25, 25, 10]), criterion, micro_batch=4)
    sample = objective.sample(17)
    rows = torch.cat(_rows(sample))
    names = [name for name, _ in model.named_parameters()]
    value, gradient, hessian = derivatives(loss_of(model, criterion, x[rows], y[rows], names), as_vector(model, names))
    v = torch.randn(len(gradient), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert sample.value() == pytest.approx(float(value), rel=1e-13)
    torch.testing.assert_close(sample.gradient(), gradient, **EXACT)
    torch.testing.assert_close(sample.hvp(v), hessian @ v, **EXACT)
    torch.testing.assert_close(sample.hessian() @ v, hessian @ v, **EXACT)
    assert objective.value() != pytest.approx(float(value), rel=1e-3)


@pytest.mark.parametrize("examples", [60, 61, 10_000])
def test_all_or_more_is_the_whole(examples: int) -> None:
    batches = _cut(*_data(60), [25, 25, 10])
    objective = cl.Objective(_model(), batches, nn.CrossEntropyLoss(), micro_batch=None)
    sample = objective.sample(examples)
    assert sample.share == 1.0
    assert sample.value() == objective.value()
    assert torch.equal(torch.cat(_rows(sample)), torch.arange(60))


def test_any_batch_loss() -> None:
    model, (x, y) = _model(), _data(40)

    def loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(module(batch["x"]), functional.one_hot(batch["y"], 3).double())

    batches = [{"x": x[:30], "y": y[:30]}, {"x": x[30:], "y": y[30:]}]
    sample = cl.Objective.from_batch_loss(model, batches, loss).sample(20)
    parts = [(batch, weight) for batch, weight in sample.parts()]
    assert [weight for _, weight in parts] == [15, 5]
    rows = torch.cat([(100 * batch["x"][:, 0]).round().long() for batch, _ in parts])
    whole = float(loss(model, {"x": x[rows], "y": y[rows]}).detach())
    assert sample.value() == pytest.approx(whole, rel=1e-13)


def test_what_has_no_common_length_stays_whole() -> None:
    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return module(batch[0]).square().mean() + module(batch[1]).square().mean()

    x = _data(50)[0]
    apart, alike = (x[:20], x[20:25]), (x[:20], x[20:40])
    objective = cl.Objective.from_batch_loss(_model(), [apart, alike], loss)
    sample = objective.sample(10)
    sizes = [tuple(len(tensor) for tensor in batch) for batch, _ in sample.parts()]
    assert sizes == [(20, 5), (5, 5)]
    assert sample.share == 25 / 40


def test_its_cost_is_in_its_own_unit_and_charged_to_the_whole_by_its_share() -> None:
    objective = cl.Objective(_model(), _cut(*_data(60), [40, 20]), nn.CrossEntropyLoss())
    objective.value()
    before, sample = objective.cost, objective.sample(15)
    assert sample.cost == cl.Cost()
    assert objective.cost == before  # Drawing it evaluates nothing.
    sample.gradient()
    sample.hvp(torch.ones(sample.size))
    assert sample.cost.gradients == sample.cost.hessian_products == 1
    spent = objective.cost - before
    assert spent.gradient_equivalents == pytest.approx(3 * 15 / 60, rel=1e-14)
    assert spent.values == 0
    assert 0 < spent.seconds == pytest.approx(sample.cost.seconds)
    half = sample.sample(5)
    half.gradient()
    assert half.share == 1 / 3
    assert sample.cost.gradients == pytest.approx(1 + 1 / 3, rel=1e-14)
    assert (objective.cost - before).gradients == pytest.approx(20 / 60, rel=1e-14)


def test_a_loader_that_shuffles_is_asked_in_one_order_and_leaves_the_random_state_alone() -> None:
    data = TensorDataset(*_data(50))
    torch.manual_seed(5)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=None)
    objective = cl.Objective(_model(), loader, nn.CrossEntropyLoss(), micro_batch=None)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    sample = objective.sample(20)
    assert torch.equal(torch.get_rng_state(), state)
    first, again = torch.cat(_rows(sample)), torch.cat(_rows(sample))
    assert torch.equal(first, again)
    assert len(first.unique()) == 20
    assert torch.equal(torch.cat(_rows(objective.sample(20))), first)


def test_it_follows_the_model() -> None:
    model = _model()
    sample = cl.Objective(model, [_data(20)], nn.CrossEntropyLoss()).sample(5)
    before = sample.value()
    with torch.no_grad():
        model[0].weight.mul_(2)
    assert sample.value() != before


@pytest.mark.gpu
def test_rows_on_an_accelerator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator")
    model = _model().float().cuda()
    x, y = _data(40)
    objective = cl.Objective(model, [(x.float().cuda(), y.cuda())], nn.CrossEntropyLoss())
    sample = objective.sample(10)
    rows = torch.cat(_rows(sample)).cpu()
    by_hand = cl.Objective(model, [(x[rows].float(), y[rows])], nn.CrossEntropyLoss())
    # In float32, of a mean of 10 terms of size 1.
    assert sample.value() == pytest.approx(by_hand.value(), rel=1e-5)


def test_rows_of_tensors_on_another_device_than_the_model() -> None:
    # The device without data stands in for an accelerator: rows are picked where the batch is.
    x = torch.empty(40, 4, device="meta")
    sample = cl.Objective(_model(), [(x, torch.empty(40, device="meta"))], nn.CrossEntropyLoss()).sample(10)
    ((inputs, targets),) = sample._data
    assert inputs.device.type == targets.device.type == "meta"
    assert (inputs.shape, targets.shape) == ((10, 4), (10,))


@pytest.mark.parametrize("examples", [0, -3])
def test_fewer_than_one_example(examples: int) -> None:
    objective = cl.Objective(_model(), [_data(4)], nn.CrossEntropyLoss())
    with pytest.raises(cl.MisuseError, match=f"at least 1 example, got {examples}"):
        objective.sample(examples)


def test_batches_without_tensors() -> None:
    def loss(module: nn.Module, batch: Any) -> Tensor:
        return module(torch.ones(1, 4).double()).sum() * batch

    with pytest.raises(cl.MisuseError, match="without tensors"):
        cl.Objective.from_batch_loss(_model(), [1.0, 2.0], loss, weight=lambda _: 1.0).sample(1)

"""The loss batch by batch: what the products ask of it, and what a step of training differentiates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import convexlab as cl
from convexlab.errors import MisuseError
from convexlab.objective import BatchedLoss
from convexlab.objective.products import HessianOperator


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)).double()


def _batch(rows: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (rows,), generator=generator)


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


# What the products ask for.


def test_products_need_no_objective_but_a_loss_alone() -> None:
    model, batches = _model(), [_batch(6), _batch(3, seed=2)]
    loss = BatchedLoss(model, batches, _cross_entropy)
    objective = cl.Objective(model, batches, nn.CrossEntropyLoss())
    v = torch.ones(loss.size).double()
    assert float(loss.value_at(loss.point())) == objective.value()
    assert torch.equal(HessianOperator(loss) @ v, objective.hessian() @ v)
    assert loss.cost.gradient_equivalents == pytest.approx(2 + 1 / 3)


def test_of_the_first_part_alone() -> None:
    batches = [_batch(6), _batch(3, seed=2)]
    objective = cl.Objective(_model(), batches, nn.CrossEntropyLoss(), micro_batch=4)
    first = objective.of_first_part()
    ((images, labels), weight), *rest = first.parts()
    assert not rest
    assert (weight, images.tolist(), labels.tolist()) == (4.0, batches[0][0][:4].tolist(), batches[0][1][:4].tolist())
    alone = cl.Objective(objective.model, [(images, labels)], nn.CrossEntropyLoss())
    assert first.value() == alone.value()
    assert torch.equal(first.gradient(), alone.gradient())
    narrow, _ = next(first.in_dtype(torch.float32).parts())
    assert narrow[0].dtype == torch.float32
    assert len(list(objective.parts())) == 3
    assert objective.cost == cl.Cost()


# What a step of training differentiates.


@pytest.mark.parametrize("training", [True, False])
def test_a_training_loss_is_the_models_own_in_its_present_mode(training: bool) -> None:
    ours, reference = _model().train(training), _model().train(training)
    objective = cl.Objective(ours, [_batch(9)], nn.CrossEntropyLoss(), micro_batch=2)
    batch = _batch(7, seed=3)  # Need not be of the data, and is not cut.
    torch.manual_seed(5)
    loss = objective.training_loss(batch)
    torch.manual_seed(5)
    expected = _cross_entropy(reference, batch)
    assert loss.shape == ()
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    for parameter, other in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
    for buffer, other in zip(ours.buffers(), reference.buffers(), strict=True):
        assert torch.equal(buffer, other)  # In training mode the running statistics moved.
    assert [module.training for module in ours.modules()] == [training] * 6
    assert objective.cost == cl.Cost()


def test_steps_of_adam_on_it_are_those_of_a_loop_without_it() -> None:
    ours, reference = _model(), _model()
    batches = [_batch(6, seed=seed) for seed in range(3)]
    objective = cl.Objective(ours, batches, nn.CrossEntropyLoss())
    losses: list[list[float]] = []
    for model, loss_of in (
        (ours, objective.training_loss),
        (reference, lambda batch: _cross_entropy(reference, batch)),
    ):
        adam, values = torch.optim.Adam(model.parameters(), lr=1e-2), []
        torch.manual_seed(7)
        for batch in batches:
            adam.zero_grad()
            loss = loss_of(batch)
            loss.backward()
            adam.step()
            values.append(float(loss.detach()))
        losses.append(values)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("evaluated_in", [torch.float32, torch.float64])
def test_a_batch_is_moved_to_the_live_parameters_wherever_the_loss_is_evaluated(evaluated_in: torch.dtype) -> None:
    model = _model().float()
    kinds = []

    def loss(module: nn.Module, batch: dict[str, Any]) -> Tensor:
        kinds.append((batch["x"].dtype, batch["y"].dtype, batch["note"]))
        return functional.cross_entropy(module(batch["x"]), batch["y"])

    x, y = _batch(6)
    objective = cl.Objective.from_batch_loss(model, [{"x": x, "y": y, "note": "kept"}], loss, dtype=evaluated_in)
    assert objective.training_loss({"x": x, "y": y, "note": "kept"}).dtype == torch.float32
    assert kinds == [(torch.float32, torch.int64, "kept")]


def test_a_training_loss_has_to_be_a_scalar() -> None:
    objective = cl.Objective.from_batch_loss(_model(), [_batch(4)], lambda module, batch: module(batch[0]))
    with pytest.raises(MisuseError, match=r"scalar.*\(4, 3\)"):
        objective.training_loss(_batch(4))

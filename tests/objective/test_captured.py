"""Captured evaluations beside plain ones: the same numbers for every kind, point, batch and shape, at the same cost."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.curvature.sampling import sampled_curvature
from convexlab.objective import products
from tests.tape import Recorder, recorder

__all__ = ["recorder"]

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def _objective(**options: Any) -> cl.Objective:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, 8, 8, generator=generator).double()
    y = torch.randint(0, 3, (5,), generator=generator)
    torch.manual_seed(0)
    layers = {"flat": nn.Flatten(), "hidden": nn.Linear(64, 4), "norm": nn.LayerNorm(4), "bend": nn.GELU()}
    model = nn.Sequential(OrderedDict(layers | {"head": nn.Linear(4, 3)})).double()
    # Two shapes: three rows, and two.
    return cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), micro_batch=3, **options)


def _vectors(objective: cl.Objective, count: int) -> Tensor:
    return torch.randn(objective.size, count, generator=torch.Generator().manual_seed(1)).double()


def _everything(objective: cl.Objective) -> list[Tensor]:
    """Evaluate at three points, more often than it takes to be recorded."""
    results, start, v = [], objective.flat_parameters(), _vectors(objective, 2)
    for step in range(3):
        with objective.at(start + 0.1 * step * v[:, 0]):
            value, gradient = objective.value_and_gradient()
            results += [torch.tensor(objective.value()), torch.tensor(value), gradient.clone()]
            for operator in (objective.hessian(), objective.ggn(), objective.residual()):
                results += [operator @ v[:, 0], operator @ v]
            sample = sampled_curvature(objective.sample(4), v)
            results += [sample.value, sample.standard_error]
    return results


def test_captured_evaluations_are_the_plain_ones(recorder: Recorder) -> None:
    plain, ours = _objective(), _objective()
    expected = _everything(plain)
    with ours.captured() as replayer:
        captured = _everything(ours)
    assert replayer is not None
    assert replayer.reasons == {}
    # Values, gradients, and products of three kinds, on three and on two rows; of the sample, products on one row.
    assert replayer.recordings == 11
    assert sum(tape.replays for tape in recorder.tapes) > 50
    for ours_now, theirs in zip(captured, expected, strict=True):
        torch.testing.assert_close(ours_now, theirs, **EXACT)
    ours_cost, cost = ours.cost, plain.cost
    assert ours_cost.gradient_equivalents == pytest.approx(cost.gradient_equivalents)


def test_the_rest_of_the_model_is_read_at_every_replay(recorder: Recorder) -> None:
    objective = _objective(params="head")
    frozen = next(objective.model.parameters())
    with objective.captured() as replayer:
        for number in range(5):
            with torch.no_grad():
                frozen.fill_(0.01 * number)
            found = objective.gradient()
            plain = copy.deepcopy(objective.model)
            expected = cl.Objective(
                plain, objective.data, nn.CrossEntropyLoss(), params="head", micro_batch=3
            ).gradient()
            torch.testing.assert_close(found, expected, **EXACT)
    assert replayer is not None
    assert replayer.recordings


def test_blocks_end_with_the_block_and_are_shared_by_copies(recorder: Recorder) -> None:
    objective = _objective()
    with objective.captured(wanted=False) as nothing:
        assert nothing is objective.replayer is None
    with objective.captured() as outer, objective.captured() as inner:
        assert inner is outer is objective.sample(5).replayer
        part = objective.restricted_to("head")
        assert part.replayer is outer
        assert objective.in_dtype(torch.float32).replayer is None
    assert objective.replayer is part.replayer is None


def test_a_verdict_is_the_same(recorder: Recorder) -> None:
    plain, ours = _objective(), _objective()
    expected = cl.convexity_verdict(plain, floor=0.1)
    with ours.captured() as replayer:
        verdict = cl.convexity_verdict(ours, floor=0.1)
    assert replayer is not None
    assert replayer.recordings
    assert (verdict.kind, verdict.steps) == (expected.kind, expected.steps)
    assert verdict.curvature == pytest.approx(expected.curvature, rel=1e-9)
    assert verdict.lower_bound == pytest.approx(expected.lower_bound, rel=1e-9)


def test_a_loss_that_waits_for_the_device_keeps_its_graphs(recorder: Recorder) -> None:
    def waiting(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target) * (1.0 if float(output.detach().sum()) > 1e9 else 2.0)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()
    x, y = torch.randn(6, 8, 8).double(), torch.arange(6) % 3
    objective = cl.Objective(model, [(x, y)], waiting)
    v = _vectors(objective, 1)[:, 0]
    expected = objective.hessian() @ v
    with objective.captured() as replayer:
        operator = objective.hessian()
        for _ in range(5):
            torch.testing.assert_close(operator @ v, expected, **EXACT)
    assert replayer is not None
    assert replayer.reasons == {"product of HessianOperator": "it waits for the device"}
    assert len(operator._kept) == 1


@pytest.mark.parametrize("kind", ["hessian", "ggn", "residual"])
@pytest.mark.parametrize("bytes_of_block", [1, 2**32], ids=["one by one", "at once"])
def test_blocks_of_directions_are_single_ones(kind: str, bytes_of_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = _objective()
    v = _vectors(objective, 4)
    operator = getattr(objective, kind)()
    single = torch.stack([operator @ column for column in v.unbind(dim=1)], dim=1)
    monkeypatch.setattr(products, "launches_bound", lambda device: True)
    monkeypatch.setattr(products, "_BLOCK_BYTES", bytes_of_block)
    torch.testing.assert_close(getattr(objective, kind)() @ v, single, **EXACT)


def test_an_operation_without_a_rule_for_stacks_is_multiplied_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cube(torch.autograd.Function):
        """Has a backward pass that vmap cannot see through: it asks for a number."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return Refusing.apply(slope, x)

    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, slope: Tensor, x: Tensor) -> Tensor:
            ctx.save_for_backward(slope, x)
            return 3 * x**2 * slope

        @staticmethod
        def backward(ctx: Any, again: Tensor) -> tuple[Tensor, Tensor]:
            slope, x = ctx.saved_tensors
            assert float(again.sum()) == float(again.sum())
            return 3 * x**2 * again, 6 * x * slope * again

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 4).double()
    objective = cl.Objective.from_batch_loss(model, [x], lambda network, batch: Cube.apply(network(batch)).mean())
    v = _vectors(objective, 3)
    single = objective.hessian() @ v
    monkeypatch.setattr(products, "launches_bound", lambda device: True)
    operator = objective.hessian()
    torch.testing.assert_close(operator @ v, single, **EXACT)
    assert not operator._at_once


def test_recordings_give_way_when_memory_is_short(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = _objective()
    short: list[Callable[[], None]] = []
    plain = objective._add_gradients

    def evaluate(point: Any, total: Tensor) -> float:
        if short:
            short.pop()()
        return plain(point, total)

    def raise_shortage() -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(objective, "_add_gradients", evaluate)
    with objective.captured() as replayer:
        for _ in range(4):
            expected = objective.gradient()
        assert replayer is not None
        assert replayer.recordings
        short.append(raise_shortage)
        torch.testing.assert_close(objective.gradient(), expected, **EXACT)
        assert not replayer.recordings
    assert objective.rows_at_a_time == 3

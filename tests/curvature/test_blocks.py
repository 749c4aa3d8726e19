"""Diagonal blocks of the Hessian against sub-blocks of the dense one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import MisuseError
from tests.dense import as_vector, derivatives, loss_of


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor([1.0, 0.5, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) * self.scale


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(3))
        self.layers = nn.ModuleList([_Layer(), _Layer()])
        self.head = nn.Linear(3, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.offset
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


EXACT = 1e-13


def _problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return _Network().double(), torch.randn(9, 3).double(), torch.randint(0, 2, (9,))


def _objective(**options: Any) -> cl.Objective:
    model, x, y = _problem()
    return cl.Objective(model, [(x[:4], y[:4]), (x[4:], y[4:])], nn.CrossEntropyLoss(), **options)


def _dense(members: tuple[str, ...]) -> Tensor:
    """Return the rows and columns of the dense Hessian that belong to some parameters."""
    model, x, y = _problem()
    names = [name for name, _ in model.named_parameters()]
    loss = loss_of(model, nn.CrossEntropyLoss(), x, y, names)
    hessian = derivatives(loss, as_vector(model, names))[2]
    of = [name for name, parameter in model.named_parameters() for _ in range(parameter.numel())]
    rows = torch.tensor([index for index, name in enumerate(of) if name in members])
    return hessian[rows][:, rows]


def _check(block: cl.BlockCurvature) -> None:
    dense = _dense(block.parameter_names)
    values = torch.linalg.eigvalsh(dense)
    assert block.size == len(dense)
    # Exact but for some hundred roundings on numbers of the order of 1.
    assert block.extremes.smallest == pytest.approx(float(values[0]), abs=1e-12)
    assert block.extremes.largest == pytest.approx(float(values[-1]), abs=1e-12)
    vector = block.extremes.largest_vector
    assert vector.shape == (block.size,)
    assert float(vector @ dense @ vector) == pytest.approx(float(values[-1]), abs=1e-12)


def test_by_default_every_module_that_owns_parameters_is_a_block() -> None:
    blocks = cl.block_curvature(_objective(), tolerance=EXACT)
    assert {name: block.parameter_names for name, block in blocks.items()} == {
        "": ("offset",),
        "layers.0": ("layers.0.scale",),
        "layers.0.inner": ("layers.0.inner.weight", "layers.0.inner.bias"),
        "layers.1": ("layers.1.scale",),
        "layers.1.inner": ("layers.1.inner.weight", "layers.1.inner.bias"),
        "head": ("head.weight",),
    }
    for block in blocks.values():
        _check(block)
        assert block.trace is None
        assert math.isnan(block.trace_share)


def test_patterns_name_parameters_or_modules_with_all_that_is_in_them() -> None:
    blocks = cl.block_curvature(_objective(), ["layers.0", "layers.1.*.weight", "head"], tolerance=EXACT)
    assert {name: block.parameter_names for name, block in blocks.items()} == {
        "layers.0": ("layers.0.scale", "layers.0.inner.weight", "layers.0.inner.bias"),
        "layers.1.*.weight": ("layers.1.inner.weight",),
        "head": ("head.weight",),
    }
    for block in blocks.values():
        _check(block)
    (whole,) = cl.block_curvature(_objective(), "*", tolerance=EXACT).values()
    assert whole.size == _objective().size
    _check(whole)


def test_blocks_lie_within_the_whole() -> None:
    (whole,) = cl.block_curvature(_objective(), "*", tolerance=EXACT).values()
    for block in cl.block_curvature(_objective(), tolerance=EXACT).values():
        assert whole.extremes.smallest <= block.extremes.smallest + 1e-12
        assert block.extremes.largest <= whole.extremes.largest + 1e-12


def test_only_selected_parameters_are_in_blocks() -> None:
    blocks = cl.block_curvature(_objective(params=["layers.1.*", "head.*"]))
    assert list(blocks) == ["layers.1", "layers.1.inner", "head"]
    with pytest.raises(MisuseError, match=r"unknown parameter or module 'layers\.0'.*mean 'layers\.1'"):
        cl.block_curvature(_objective(params=["layers.1.*", "head.*"]), ["layers.0"])


def test_traces_and_their_shares() -> None:
    # With as many products as parameters, XTrace is exact.
    blocks = cl.block_curvature(_objective(), trace_samples=12)
    traces = {name: float(_dense(block.parameter_names).trace()) for name, block in blocks.items()}
    for name, block in blocks.items():
        assert block.trace is not None
        assert block.trace.value == pytest.approx(traces[name], abs=1e-12)
        assert block.trace.effort.products == block.size
        assert block.trace_share == pytest.approx(traces[name] / sum(traces.values()), abs=1e-10)
    assert sum(block.trace_share for block in blocks.values()) == pytest.approx(1)
    (whole,) = cl.block_curvature(_objective(), "*", trace_samples=10).values()
    assert whole.trace is not None
    assert whole.trace.effort.products == 10
    assert whole.trace.standard_error > 0
    assert whole.trace_share == 1


def test_blocks_of_a_constant_loss_have_no_share() -> None:
    model, x, y = _problem()
    objective = cl.Objective(model, [(x, y)], lambda output, _: output.detach().mean())
    for block in cl.block_curvature(objective, trace_samples=2).values():
        assert block.extremes.smallest == block.extremes.largest == 0
        assert block.trace is not None
        assert block.trace.value == 0
        assert math.isnan(block.trace_share)


def test_options_reach_the_krylov_runs_and_costs_add_up() -> None:
    objective = _objective()
    blocks = cl.block_curvature(objective, tolerance=0.3, confidence=0.9, max_steps=3, seed=5)
    for name, block in blocks.items():
        part = objective.restricted_to(block.parameter_names)
        expected = cl.extreme_eigenvalues(part.hessian(), tolerance=0.3, confidence=0.9, max_steps=3, seed=5)
        assert block.extremes.steps <= 3, name
        assert block.extremes.confidence == 0.9
        assert block.extremes.smallest == expected.smallest
        assert block.extremes.smallest_lower_bound == expected.smallest_lower_bound
        assert block.effort.products == block.extremes.effort.products == block.extremes.steps + 2
        assert block.effort.gradient_equivalents >= 2 * block.effort.products
    fresh = _objective()
    checked = 2 * len(blocks) * 4 / len(_problem()[1])  # Of every block's operator, two products for the first batch.
    spent = sum(block.effort.products for block in cl.block_curvature(fresh, max_steps=3, trace_samples=2).values())
    assert fresh.cost.hessian_products == pytest.approx(spent + checked)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["encoder.*"], r"unknown parameter or module 'encoder\.\*'"),
        (["layers.0", "layer.1"], "unknown parameter or module 'layer.1'.*mean 'layers.1'"),
        (["layers.0", "*.bias"], r"overlap, got 'layers\.0\.inner\.bias' in both 'layers\.0' and '\*\.bias'"),
        (["layers", "layers.1.inner.weight"], "overlap"),
        (["head", "head"], "'head' is given twice"),
        ([], "at least one pattern"),
        ([""], "unknown parameter or module ''"),
    ],
)
def test_patterns_without_match_and_overlapping_blocks_are_refused(patterns: list[str], message: str) -> None:
    objective = _objective()
    with pytest.raises(MisuseError, match=message):
        cl.block_curvature(objective, patterns)
    assert objective.cost == cl.Cost()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace_samples": 1}, "trace_samples of 0 or at least 2, got 1"),
        ({"trace_samples": -2}, "trace_samples"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"confidence": 1.0}, "confidence"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    objective = _objective()
    with pytest.raises(MisuseError, match=message):
        cl.block_curvature(objective, **options)
    assert objective.cost == cl.Cost()

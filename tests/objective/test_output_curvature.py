"""Gauss-Newton products of cross-entropies by formula, against dense matrices, and what they hold in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.machine.memory import LiveTensors
from convexlab.objective.output_curvature import SoftmaxCurvature, softmax_curvature

CLASSES, POSITIONS = 5, 3
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.5, 1.5], dtype=torch.float64)
CRITERIA: dict[str, Callable[[], nn.CrossEntropyLoss]] = {
    "plain": nn.CrossEntropyLoss,
    "weighted": lambda: nn.CrossEntropyLoss(weight=WEIGHTS),
    "ignoring": lambda: nn.CrossEntropyLoss(ignore_index=2),
    "smoothed": lambda: nn.CrossEntropyLoss(label_smoothing=0.3),
    "all of it": lambda: nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=1, label_smoothing=0.2),
}


class Tokens(nn.Module):
    """(B, 4) to logits (B, C) or, for sequences, (B, C, T)."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.positions = positions
        self.hidden, self.head = nn.Linear(4, 3 * positions).double(), nn.Linear(3, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(torch.tanh(self.hidden(x)).view(len(x), self.positions, 3)).transpose(1, 2)
        return logits if self.positions > 1 else logits[..., 0]


def _targets(shape: tuple[int, ...], probabilities: bool) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    if probabilities:
        return torch.rand(shape[0], CLASSES, *shape[1:], generator=generator).double().softmax(1)
    return torch.randint(0, CLASSES, shape, generator=generator)


@pytest.mark.parametrize("positions", [1, POSITIONS])
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("name", CRITERIA)
def test_products_are_those_of_the_dense_matrix(name: str, probabilities: bool, positions: int) -> None:
    if probabilities and "ignoring" in name:
        pytest.skip("probabilities cannot be ignored")
    rows, criterion = 6, CRITERIA[name]() if not probabilities else _without_ignoring(CRITERIA[name]())
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(1)).double()
    y = _targets((rows,) if positions == 1 else (rows, positions), probabilities)
    model = Tokens(positions)
    objective = cl.Objective(model, [(x, y)], criterion, micro_batch=None)
    assert isinstance(softmax_curvature(criterion, model(x), y), SoftmaxCurvature)
    theta, shapes = objective.flat_parameters(), [p.shape for p in model.parameters()]

    def output(flat: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        return torch.func.functional_call(model, dict(zip(objective.parameter_names, parts, strict=True)), (x,))

    jacobian = torch.autograd.functional.jacobian(output, theta).reshape(-1, len(theta))
    at = output(theta).detach()
    middle = torch.autograd.functional.hessian(lambda logits: criterion(logits, y), at).reshape(at.numel(), at.numel())
    dense = objective.ggn() @ torch.eye(len(theta), dtype=torch.float64)
    torch.testing.assert_close(dense, jacobian.T @ middle @ jacobian, rtol=1e-11, atol=1e-14)


def _without_ignoring(criterion: nn.CrossEntropyLoss) -> nn.CrossEntropyLoss:
    return nn.CrossEntropyLoss(weight=criterion.weight, label_smoothing=criterion.label_smoothing)


def test_micro_batches_and_their_weights() -> None:
    x = torch.randn(11, 4, generator=torch.Generator().manual_seed(1)).double()
    y = _targets((11,), probabilities=False)
    whole, parts = (
        cl.Objective(Tokens(1), [(x, y)], CRITERIA["all of it"](), micro_batch=size).ggn() for size in (None, 3)
    )
    v = torch.randn(whole.shape[0], 2, generator=torch.Generator().manual_seed(3)).double()
    torch.testing.assert_close(whole @ v, parts @ v, rtol=1e-12, atol=1e-15)


class _Subclass(nn.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 2 * super().forward(input, target)


@pytest.mark.parametrize(
    "criterion", [nn.MSELoss(), _Subclass(), lambda output, target: nn.functional.cross_entropy(output, target)]
)
def test_other_criteria_are_differentiated(criterion: Any) -> None:
    output = torch.randn(4, CLASSES)
    assert softmax_curvature(criterion, output, torch.zeros(4, dtype=torch.long)) is None


def test_a_product_holds_a_few_tensors_of_the_logits_size() -> None:
    classes, rows = 50_000, 64
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, classes))
    data = [(torch.randn(rows, 6), torch.randint(0, classes, (rows,)))]
    logits = rows * classes * 4
    peaks = {}
    criteria: dict[str, Any] = {
        "formula": nn.CrossEntropyLoss(),
        "differentiated": lambda output, target: nn.functional.cross_entropy(output, target),
    }
    products = {}
    for name, criterion in criteria.items():
        operator = cl.Objective(model, data, criterion, micro_batch=None).ggn()
        v = torch.ones(operator.shape[0])
        with LiveTensors() as live:
            products[name] = operator @ v
        peaks[name] = live.peak / logits
    # The logits, two parts of J v, and what a layer's backward pass makes of H_L J v; chunks and vectors beside them.
    assert peaks["formula"] < 6
    assert peaks["differentiated"] > peaks["formula"] + 2
    torch.testing.assert_close(products["formula"], products["differentiated"], rtol=1e-3, atol=1e-8)

"""Products with Hessian and Gauss-Newton matrix: dense autograd, closed forms without autograd, a second library."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from curvlinops import GGNLinearOperator, HessianLinearOperator
from torch import Tensor, nn

import convexlab as cl
from tests.dense import gauss_newton
from tests.verification.conftest import Record
from tests.verification.problems import ARCHITECTURES, relative, small

pytestmark = pytest.mark.verify

# Two ways to compute the same number take some 10³ rounded operations each, all in float64.
BOUND = 1e3 * float(np.finfo(np.float64).eps)
EPS32 = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_hessian_products(record: Record, name: str) -> None:
    problem = small(name)
    value, gradient, hessian = problem.dense()
    record(f"value, {name}", "all examples at once", abs(problem.objective.value() / float(value) - 1), BOUND)
    record(f"gradient, {name}", "all examples at once", relative(problem.objective.gradient(), gradient), BOUND)
    product = problem.objective.hessian() @ torch.eye(len(hessian))
    record(f"Hessian, {name}, n = {len(hessian)}", "dense autograd", relative(product, hessian), BOUND)


@pytest.mark.parametrize("name", ["vit-nomlp, width 4", pytest.param("vgg5-max-relu, ends", marks=pytest.mark.slow)])
def test_hessian_products_with_cross_entropy(record: Record, name: str) -> None:
    problem = small(name, "cross-entropy")
    hessian = problem.dense()[2]
    product = problem.objective.hessian() @ torch.eye(len(hessian))
    record(f"Hessian, {name}, cross-entropy", "dense autograd", relative(product, hessian), BOUND)
    exact = gauss_newton(problem.model, problem.criterion, problem.x, problem.y, problem.names)
    product = problem.objective.ggn() @ torch.eye(len(hessian))
    record(f"Gauss-Newton, {name}, cross-entropy", "dense JᵀHJ", relative(product, exact), BOUND)


def test_a_float32_product(record: Record) -> None:
    problem = small("vit-mlp, width 4")
    hessian = problem.dense()[2]
    objective = cl.Objective(problem.model, problem.batches, problem.criterion, dtype=torch.float32)
    product = objective.hessian() @ torch.eye(len(hessian))
    record("Hessian, vit-mlp, width 4, float32", "dense autograd, float64", relative(product, hessian), 1e3 * EPS32)


def _regression(outputs: int) -> tuple[nn.Linear, np.ndarray, np.ndarray, np.ndarray]:
    """Return a linear model, inputs X (N, d), inputs with a column of ones (N, d + 1), and weights with biases."""
    torch.manual_seed(0)
    model = nn.Linear(7, outputs).double()
    x = torch.randn(30, 7).double().numpy()
    with torch.no_grad():
        weights = np.column_stack([model.weight.numpy(), model.bias.numpy()])
    return model, x, np.column_stack([x, np.ones(30)]), weights


def _by_parameter(outputs: int, columns: int) -> np.ndarray:
    """Return where entry (output, column) of [weight | bias] stands in the flat vector (weight by rows, then bias)."""
    place = np.arange(outputs * (columns - 1)).reshape(outputs, columns - 1)
    return np.column_stack([place, outputs * (columns - 1) + np.arange(outputs)]).ravel()


def _in_order(matrix: np.ndarray, place: np.ndarray) -> Tensor:
    ordered = np.empty_like(matrix)
    ordered[np.ix_(place, place)] = matrix
    return torch.from_numpy(ordered)


def _compare(record: Record, what: str, objective: cl.Objective, gradient: np.ndarray, hessian: np.ndarray) -> None:
    outputs, columns = gradient.shape
    place = _by_parameter(outputs, columns)
    ordered = np.empty(place.size)
    ordered[place] = gradient.ravel()
    record(f"gradient, {what}", "closed form", relative(objective.gradient(), torch.from_numpy(ordered)), BOUND)
    exact = _in_order(hessian, place)
    for name, operator in (("Hessian", objective.hessian()), ("Gauss-Newton", objective.ggn())):
        record(f"{name}, {what}", "closed form", relative(operator @ torch.eye(place.size), exact), BOUND)


def test_linear_regression(record: Record) -> None:
    """L = Σ (W x̃ - y)² / (N M): gradient 2 Σ r x̃ᵀ / (N M), Hessian 2 I ⊗ X̃ᵀX̃ / (N M)."""
    model, x, extended, weights = _regression(3)
    y = np.random.default_rng(0).standard_normal((30, 3))
    batches = [(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for rows in (slice(0, 17), slice(17, 30))]
    residual = extended @ weights.T - y
    gradient = 2 * residual.T @ extended / 90
    hessian = 2 * np.kron(np.eye(3), extended.T @ extended) / 90
    _compare(record, "linear regression", cl.Objective(model, batches, nn.MSELoss()), gradient, hessian)


def test_softmax_regression(record: Record) -> None:
    """L = Σ (log Σ exp z - z_y) / N: gradient Σ (p - e_y) x̃ᵀ / N, Hessian Σ (diag p - p pᵀ) ⊗ x̃ x̃ᵀ / N."""
    model, x, extended, weights = _regression(4)
    y = np.random.default_rng(0).integers(0, 4, 30)
    batches = [(torch.from_numpy(x[rows]), torch.from_numpy(y[rows])) for rows in (slice(0, 11), slice(11, 30))]
    logits = extended @ weights.T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gradient = (p - np.eye(4)[y]).T @ extended / 30
    hessian = sum(
        np.kron(np.diag(share) - np.outer(share, share), np.outer(row, row))
        for share, row in zip(p, extended, strict=True)
    )
    objective = cl.Objective(model, batches, nn.CrossEntropyLoss())
    _compare(record, "softmax regression", objective, gradient, hessian / 30)


@pytest.mark.parametrize("criterion", ["mse", "cross-entropy"])
@pytest.mark.parametrize("name", ["vit-mlp, width 4", "vgg5-max-relu, ends"])
@pytest.mark.parametrize(("kind", "peer"), [("hessian", HessianLinearOperator), ("ggn", GGNLinearOperator)])
def test_a_second_library(record: Record, kind: str, peer: Callable[..., object], name: str, criterion: str) -> None:
    # Not in the weights of normalisations: the forward-over-reverse derivative that curvlinops takes of a linear layer
    # with an affine LayerNorm behind it, jvp(jacrev(...)), is wrong in torch 2.14, as finite differences show.
    problem = small(name, criterion, without="norm" if kind == "hessian" and name.startswith("vit") else "")
    parameters = list(problem.parameters.values())
    for parameter in problem.model.parameters():
        parameter.requires_grad_(any(parameter is one for one in parameters))
    operator = peer(problem.model, problem.criterion, parameters, problem.batches)
    v = torch.randn(problem.objective.size, 5, generator=torch.Generator().manual_seed(0)).double()
    ours = getattr(problem.objective, kind)() @ v
    matrix = {"hessian": "Hessian", "ggn": "Gauss-Newton"}[kind]
    record(f"{matrix}, {name}, {criterion}", "curvlinops", relative(ours, operator @ v), BOUND)

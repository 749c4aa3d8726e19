"""Products of the Hessian and its two parts: what they are, what they hold in memory, and how they are made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import convexlab as cl
from convexlab.objective.differentiation import differentiate, saved_bytes
from convexlab.objective.products import HessianOperator, ObjectiveOperator
from tests.dense import as_vector, derivatives, gauss_newton, loss_of

# Derivatives of two-layer networks on a few examples: some hundred operations on numbers of the order of 1.
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def _network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)).double()


def _data(rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, generator=generator).double(), torch.randint(0, 3, (rows,), generator=generator)


def _objective(criterion: Any = None, **options: Any) -> cl.Objective:
    x, y = _data()
    batches = [(x[:3], y[:3]), (x[3:], y[3:])]
    return cl.Objective(_network(), batches, criterion or nn.CrossEntropyLoss(), **options)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "residual"])
def test_many_products_at_once_are_as_many_single_ones(kind: str) -> None:
    operator = getattr(_objective(), kind)()
    v = torch.randn(43, 4, generator=torch.Generator().manual_seed(0)).double()
    together = operator @ v
    assert together.shape == (43, 4)
    for column in range(4):
        torch.testing.assert_close(operator @ v[:, column], together[:, column], **EXACT)
        torch.testing.assert_close(operator.matvec(v.flip(1)[:, 3 - column]), together[:, column], **EXACT)
    assert (operator @ v[:, :0]).shape == (43, 0)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "residual"])
def test_products_are_linear_and_symmetric(kind: str) -> None:
    operator = getattr(_objective(), kind)()
    u, v = torch.randn(2, 43, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(operator @ (2 * u - v), 2 * (operator @ u) - operator @ v, **EXACT)
    torch.testing.assert_close(u @ (operator @ v), v @ (operator @ u), **EXACT)
    assert torch.equal(operator @ torch.zeros(43), torch.zeros(43).double())


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        lambda output, y: (output - functional.one_hot(y, 3)).pow(4).mean(),
        lambda output, y: (output * functional.one_hot(y, 3)).mean(),
        lambda output, y: output.detach().square().mean(),
    ],
    ids=["cross-entropy", "quartic", "linear", "constant"],
)
def test_the_gauss_newton_matrix_is_that_of_its_definition(criterion: Any) -> None:
    model, (x, y) = _network(), _data()
    names = [name for name, _ in model.named_parameters()]
    expected = gauss_newton(model, criterion, x, y, names)
    operator = cl.Objective(model, [(x, y)], criterion, micro_batch=3).ggn()
    torch.testing.assert_close(operator @ torch.eye(43).double(), expected, **EXACT)


def test_for_a_linear_model_gauss_newton_and_hessian_are_one_matrix() -> None:
    x, y = _data()
    objective = cl.Objective(nn.Linear(4, 3).double(), [(x, y)], nn.CrossEntropyLoss())
    identity = torch.eye(15).double()
    torch.testing.assert_close(objective.ggn() @ identity, objective.hessian() @ identity, **EXACT)
    assert torch.equal(objective.residual() @ identity, torch.zeros(15, 15).double())


RESIDUALS: dict[str, tuple[Callable[[], Any], Callable[[Tensor], Tensor]]] = {
    "cross-entropy": (nn.CrossEntropyLoss, lambda y: y),
    "class weights": (lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.25]).double()), lambda y: y),
    "ignored targets": (
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.25]).double(), ignore_index=2),
        lambda y: y,
    ),
    "mean squared error": (nn.MSELoss, lambda y: functional.one_hot(y, 3).double()),
    "quartic": (lambda: lambda output, y: (output - functional.one_hot(y, 3)).pow(4).mean(), lambda y: y),
    "linear": (lambda: lambda output, y: (output * functional.one_hot(y, 3)).mean(), lambda y: y),
    "concave": (lambda: lambda output, y: -(output - functional.one_hot(y, 3)).square().mean(), lambda y: y),
    "constant": (lambda: lambda output, y: output.detach().square().mean(), lambda y: y),
}


@pytest.mark.parametrize("name", RESIDUALS)
def test_the_residual_part_is_what_the_hessian_has_beyond_gauss_newton(name: str) -> None:
    build, prepare = RESIDUALS[name]
    criterion, model = build(), _network()
    x, y = _data(11)
    y = prepare(y)
    names = [name for name, _ in model.named_parameters()]
    identity = torch.eye(43).double()
    hessian = torch.zeros(43, 43).double()
    if name != "constant":
        hessian = derivatives(loss_of(model, criterion, x, y, names), as_vector(model, names))[2]
    expected = hessian - gauss_newton(model, criterion, x, y, names)
    for micro_batch in (None, 1, 4):
        objective = cl.Objective(model, [(x[:6], y[:6]), (x[6:], y[6:])], criterion, micro_batch=micro_batch)
        torch.testing.assert_close(objective.residual() @ identity, expected, **EXACT)
    parts = objective.ggn() @ identity + objective.residual() @ identity
    torch.testing.assert_close(parts, objective.hessian() @ identity, **EXACT)


def test_the_residual_part_holds_the_slope_fixed() -> None:
    """For f = w², L = (f - 1)²/2: H = (f'²) + (f - 1) f'' = 4w² + 2 (w² - 1)."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5]).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.w.square() * x

    unit = torch.ones(1, 1).double()
    objective = cl.Objective(Square(), [(unit, unit)], lambda output, y: (output - y).square().mean() / 2)
    assert float(objective.ggn() @ unit) == pytest.approx(1.0, rel=1e-15)
    assert float(objective.residual() @ unit) == pytest.approx(-1.5, rel=1e-15)
    assert float(objective.hessian() @ unit) == pytest.approx(-0.5, rel=1e-15)


def test_the_gauss_newton_matrix_of_a_model_that_ends_in_a_shape_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2, padding=1), nn.Tanh()).double()
    x = _data()[0]
    y = torch.randn(8, 2, 3, 3, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]
    operator = cl.Objective(model, [(x, y)], nn.MSELoss(), micro_batch=5).ggn()
    expected = gauss_newton(model, nn.MSELoss(), x, y, names)
    torch.testing.assert_close(operator @ torch.eye(10).double(), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_vectors_of_any_precision_are_taken_and_the_products_are_of_the_operators(dtype: torch.dtype) -> None:
    v = torch.arange(43).to(dtype) % 3
    product = _objective().hvp(v)
    assert product.dtype == torch.float64
    assert not product.requires_grad
    torch.testing.assert_close(product, _objective().hvp(v.double()), **EXACT)


def test_a_vector_is_not_changed_and_may_require_a_gradient() -> None:
    v = torch.ones(43, dtype=torch.float64, requires_grad=True)
    product = _objective().hvp(v)
    assert not product.requires_grad
    assert torch.equal(v.detach(), torch.ones(43).double())


# Made again, for an estimate of rounding errors.


def test_recomputing_changes_rounding_and_little_else() -> None:
    objective = _objective(dtype=torch.float32)
    operator = objective.hessian()
    assert isinstance(operator, ObjectiveOperator)
    v = torch.randn(43, generator=torch.Generator().manual_seed(0))
    exact = _objective().hvp(v)
    before, theta = objective.cost, objective.flat_parameters()
    again = operator.recomputed(v, seed=0)
    assert again.dtype == torch.float64
    # The parameters move by 2⁻²² of themselves, at random, and third derivatives are of the order of second ones: here
    # they would have to be thirty times as large to go beyond this.
    assert torch.linalg.vector_norm(again - exact) < 30 * 2**-22 * torch.linalg.vector_norm(exact)
    assert not torch.equal(again, exact)
    assert not torch.equal(again, operator.recomputed(v, seed=1))
    assert torch.equal(again, operator.recomputed(v, seed=0))
    assert (objective.cost - before).hessian_products == 3
    assert torch.equal(objective.flat_parameters(), theta)
    torch.testing.assert_close(operator @ v, objective.hvp(v))


def test_recomputing_stays_in_the_losss_own_precision_where_it_has_to() -> None:
    model = nn.Linear(4, 3)
    grid = torch.linspace(-1, 1, 8).view(2, 4)

    def loss(module: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return torch.tanh(module(grid)).square().mean() + batch[0].mean()

    objective = cl.Objective.from_batch_loss(model, [(torch.ones(1),)], loss)
    operator = objective.hessian()
    again = operator.recomputed(torch.ones(15), seed=0)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, operator @ torch.ones(15), rtol=1e-3, atol=1e-4)


def test_recomputing_the_residual_part() -> None:
    objective = _objective(dtype=torch.float32)
    operator = objective.residual()
    assert isinstance(operator, ObjectiveOperator)
    v = torch.randn(43, generator=torch.Generator().manual_seed(0))
    exact = _objective().residual() @ v
    again = operator.recomputed(v, seed=0)
    # As for the Hessian above.
    assert torch.linalg.vector_norm(again - exact) < 30 * 2**-22 * torch.linalg.vector_norm(exact)
    assert objective.cost.hessian_products == 1


def test_recomputing_needs_no_memory_beyond_one_graph() -> None:
    calls = []

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    x, y = _data()
    operator = cl.Objective(Counting(4, 3).double(), [(x, y)], nn.CrossEntropyLoss(), micro_batch=2).hessian()
    operator @ torch.ones(15)
    operator.recomputed(torch.ones(15), seed=0)
    calls.clear()
    operator @ torch.ones(15)
    assert calls == []
    operator.recomputed(torch.ones(15), seed=0)
    assert calls == [2, 2, 2, 2]


# Parts.


def test_differentiating_what_does_not_depend_on_the_inputs_gives_zeros() -> None:
    a, b = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    constant = torch.tensor(3.0)
    assert [part.tolist() for part in differentiate([constant], [a, b])] == [[0, 0], [0, 0, 0]]
    parts = differentiate([(a * a).sum(), constant], [a, b], [torch.tensor(2.0), torch.tensor(5.0)])
    assert [part.tolist() for part in parts] == [[4, 4], [0, 0, 0]]


def test_saved_bytes_counts_storage_once_and_shared_storage_not_at_all() -> None:
    weight = torch.ones(10, requires_grad=True)
    data = torch.ones(100, 10, dtype=torch.float64)
    batch = (data[:2], "a word")

    def build(fn: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: fn(batch[0] * weight)

    # The product saves the batch (2 × 10 numbers), for nobody asks for a derivative in it; a square saves its argument.
    batch_bytes, product_bytes = 2 * 10 * 8, 2 * 10 * 8
    assert saved_bytes(build(lambda product: product.sum()), batch, [weight]) == batch_bytes
    decayed = build(lambda product: product.sum() + weight.pow(2).sum())
    assert saved_bytes(decayed, batch, []) == batch_bytes + weight.nbytes
    assert saved_bytes(decayed, batch, [weight]) == batch_bytes
    assert saved_bytes(build(lambda product: product.pow(2).sum()), batch, [weight]) == batch_bytes + product_bytes
    twice = build(lambda product: product.pow(2).sum() + product.pow(3).sum())
    assert saved_bytes(twice, batch, [weight]) == batch_bytes + product_bytes


def test_a_slice_of_a_large_data_set_does_not_count_as_all_of_it() -> None:
    x, y = _data(4000)
    objective = cl.Objective(_network(), [(x, y)], nn.CrossEntropyLoss(), micro_batch=10, memory_budget=200_000)
    operator = HessianOperator(objective)
    operator @ torch.ones(43)
    # Far less than 4000 rows of x alone, 128,000 bytes, is what a graph of ten rows holds.
    assert len(operator._kept) > 10


def test_the_reference_itself() -> None:
    """H of mean((w x)²)/2 is mean(x²): the dense references are right before anything is measured by them."""
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[1.0], [2.0], [3.0]]).double()
    loss = loss_of(model, lambda output, y: (output - y).square().mean() / 2, x, x, ["weight"])
    value, gradient, hessian = derivatives(loss, as_vector(model, ["weight"]))
    w = float(model.weight.detach())
    assert float(value) == pytest.approx((w - 1) ** 2 * 14 / 6)
    assert float(gradient) == pytest.approx((w - 1) * 14 / 3)
    assert float(hessian) == pytest.approx(14 / 3)

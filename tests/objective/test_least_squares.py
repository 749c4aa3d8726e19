"""The residuals that a loss declares and their Jacobian, against dense derivatives, and what is charged for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import convexlab as cl
from convexlab.errors import FailureError, MisuseError
from convexlab.linalg.least_squares import NormalEquations, dense_bytes
from convexlab.machine.memory import LiveTensors
from convexlab.objective import LeastSquares
from convexlab.problems.objectives import build_objective
from tests.slowly import mostly_slow

Residuals = Callable[[Any, Any], Any]


def network(seed: int = 0, outputs: int = 1, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, outputs)).to(dtype)


def data(rows: int = 7, outputs: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randn(rows, outputs, generator=generator, dtype=torch.float64).to(dtype)


def declared(model: nn.Module, residuals: Residuals, batches: list[Any], **options: Any) -> cl.Objective:
    """Return the objective of the sum of squares of some residuals."""

    def loss(model: Any, batch: Any) -> Tensor:
        parts = residuals(model, batch)
        return sum(part.square().sum() for part in (parts if isinstance(parts, list) else [parts]))

    return cl.Objective.from_batch_loss(model, batches, loss, residuals=residuals, **options)


def dense(model: nn.Module, residuals: Residuals, batches: list[Any]) -> tuple[Tensor, Tensor]:
    """Return r and J by torch's own functions, batches weighted by their rows."""
    names, weights = [name for name, _ in model.named_parameters()], [len(batch[0]) for batch in batches]
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    shapes = [parameter.shape for parameter in model.parameters()]

    class Bound(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Any) -> Tensor:
            parts = residuals(self.model, batch)
            return torch.cat([part.reshape(-1) for part in (parts if isinstance(parts, list) else [parts])])

    def joined(theta: Tensor) -> Tensor:
        pieces = theta.split([shape.numel() for shape in shapes])
        state = {f"model.{n}": p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        scale = [math.sqrt(weight / sum(weights)) for weight in weights]
        return torch.cat([functional_call(Bound(), state, (b,)) * k for b, k in zip(batches, scale, strict=True)])

    return joined(flat), torch.autograd.functional.jacobian(joined, flat)


def errors(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return (model(x) - y) / math.sqrt(y.numel())


def slopes_and_ends(model: Any, batch: Any) -> list[Tensor]:
    """A residual of the input's derivative, one of two rows of a call, and one of a single number."""
    x, y = batch
    x = x.detach().requires_grad_()
    u = model(x)
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    ends = model(torch.cat([x[:3], x[3:6]]))
    return [slope[:, :1] + u * slope[:, 1:], ends[:3] - ends[3:6], u[0, 0] - y[0, 0]]


def shuffled(model: Any, batch: Any) -> Tensor:
    x, _ = batch
    return model(x)[torch.tensor([2, 0, 1, 5, 4, 3, 6])]


def pairs_of_calls(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return model(x) * model(2.0 * x) - y


def neighbours(model: Any, batch: Any) -> Tensor:
    """A row belongs to two residuals."""
    return model(batch[0]).diff(dim=0)


def with_decay(model: Any, batch: Any) -> list[Tensor]:
    """Parameters that are used beside the network's calls."""
    return [errors(model, batch), 0.1 * model[0].weight]


def averaged(model: Any, batch: Any) -> Tensor:
    u = model(batch[0])
    return u - u.mean()


def rows_at_once(objective: cl.Objective) -> LeastSquares:
    """Return its residuals with a Jacobian made row by row, though so few rows are cheaper by products."""
    squares = objective.least_squares()
    squares._row_wise = squares._found(objective.point())
    assert squares.row_by_row
    return squares


@pytest.mark.parametrize(
    ("residuals", "row_by_row"),
    [
        (errors, True),
        (shuffled, True),
        (pairs_of_calls, True),
        (neighbours, False),
        (with_decay, False),
        (averaged, False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_jacobian_is_the_dense_one(residuals: Residuals, row_by_row: bool) -> None:
    model, batches = network(), [data()]
    objective = declared(model, residuals, batches)
    squares = objective.least_squares()
    assert (squares._found(objective.point()) is not None) == row_by_row
    squares = rows_at_once(objective) if row_by_row else squares
    r, jacobian = squares.jacobian()
    expected_r, expected = dense(model, residuals, batches)
    torch.testing.assert_close(r, expected_r, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(jacobian, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(squares.residuals(), r, rtol=1e-13, atol=1e-14)
    assert squares.count == len(r)


def test_parts_of_several_kinds() -> None:
    model, batches = network(), [data(9)]
    objective = declared(model, slopes_and_ends, batches)
    # The single number is of a row that the first part takes: each column has its own pass, so that is no matter.
    squares = rows_at_once(objective)
    r, jacobian = squares.jacobian()
    assert len(r) == 9 + 3 + 1
    expected_r, expected = dense(model, slopes_and_ends, batches)
    torch.testing.assert_close(r, expected_r, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(jacobian, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("by_products", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_of_several_sizes_and_outputs(by_products: bool, dtype: torch.dtype) -> None:
    model, (x, y) = network(outputs=3, dtype=dtype), data(20, outputs=3, dtype=dtype)
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    objective = cl.Objective(model, batches, nn.MSELoss(), micro_batch=None)
    squares = rows_at_once(objective)
    if by_products:
        squares._row_wise = None
    r, jacobian = squares.jacobian()
    tolerance = 1e3 * torch.finfo(dtype).eps
    assert (r @ r).item() == pytest.approx(objective.value(), rel=tolerance)
    expected_r, expected = dense(model, errors, batches)
    torch.testing.assert_close(r, expected_r.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(jacobian, expected.double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(2.0 * jacobian.T @ r, objective.gradient().double(), rtol=tolerance, atol=tolerance)


NAMED = ("pinn-helmholtz", "friedman", "pinn-klein-gordon", "pinn-allen-cahn", "pinn-wave", "pinn-burgers")


@pytest.mark.parametrize("name", mostly_slow([*NAMED, "pinn-convection"], quick=2))
def test_problems_by_name_declare_theirs(name: str) -> None:
    problem = build_objective(name, train_size=20, dtype="float64")
    squares = rows_at_once(problem.objective)
    r, jacobian = squares.jacobian()
    squares._row_wise = None
    again_r, again = squares.jacobian()
    torch.testing.assert_close(r, again_r, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(jacobian, again, rtol=1e-9, atol=1e-10 * float(again.abs().max()))
    torch.testing.assert_close(2.0 * jacobian.T @ r, problem.objective.gradient(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_forecast_of_memory_holds(dtype: str) -> None:
    objective = build_objective("pinn-helmholtz", train_size=100, dtype=dtype).objective
    with LiveTensors() as live:
        squares = rows_at_once(objective)
        NormalEquations(*squares.jacobian()).solve(1.0)
    assert live.peak <= dense_bytes(squares.count, objective.size) <= 3 * live.peak


def test_a_row_that_awakes_is_found_out_anew() -> None:
    """Rows without a derivative belong to no residual, until they have one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).double()
    x = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)[:, None]
    objective = declared(model, errors, [(x, x)])
    objective.write(torch.ones(1, dtype=torch.float64))
    squares = rows_at_once(objective)
    objective.write(-torch.ones(1, dtype=torch.float64))
    r, jacobian = squares.jacobian()
    expected_r, expected = dense(model, errors, [(x, x)])
    assert torch.equal(r, expected_r)
    torch.testing.assert_close(jacobian, expected, rtol=1e-14, atol=0.0)
    assert expected[:3].count_nonzero() == 3


def test_rows_that_come_to_depend_on_each_other_are_a_failure() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU()).double()
    x = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)[:, None]

    def residuals(model: Any, batch: Any) -> Tensor:
        u = model(batch[0])
        return u + u[0] * u.detach().flip(0)  # The first row is dead at first.

    objective = declared(model, residuals, [(x, x)])
    objective.write(torch.ones(1, dtype=torch.float64))
    squares = rows_at_once(objective)
    objective.write(-torch.ones(1, dtype=torch.float64))
    with pytest.raises(FailureError, match=r"depend on other rows of the network's calls than before"):
        squares.jacobian()


def test_the_price_by_products_is_their_count() -> None:
    objective = declared(network(), neighbours, [data(9)])
    squares = objective.least_squares()
    assert squares.price == pytest.approx(1 / 3 + 8 * 2 / 3)
    spent = objective.cost.gradient_equivalents
    assert spent == pytest.approx(squares.setup)
    squares.jacobian()
    squares.residuals()
    assert objective.cost.gradient_equivalents == pytest.approx(spent + squares.price + 1 / 3)
    assert objective.cost.jacobians > 0.0


def test_the_price_row_by_row_is_the_same_each_time_and_below_that_of_products() -> None:
    prices = set()
    for _ in range(2):
        model, (x, y) = network(), data(200)
        squares = cl.Objective(model, [(x, y)], nn.MSELoss(), micro_batch=None).least_squares()
        prices.add((squares.price, squares.setup))
    ((price, setup),) = prices
    assert 1.0 < price < 200 * 2 / 3
    assert price < setup < 20 * price


def test_one_evaluation_compares_the_residuals_with_the_loss() -> None:
    models = []

    def counted(model: Any, batch: Any) -> Tensor:
        models.append(model)
        return errors(model, batch)

    def batch_loss(model: Any, batch: Any) -> Tensor:
        return errors(model, batch).square().sum()

    objective = cl.Objective.from_batch_loss(network(), [data(6), data(3)], batch_loss, residuals=counted)
    objective.least_squares()
    # Of each batch, before rows that are independent are looked for with what is no module.
    assert len(list(itertools.takewhile(lambda model: isinstance(model, nn.Module), models))) == 2


def test_a_closure_gives_the_columns_of_the_optimisers_parameters() -> None:
    model, (x, y) = network(), data()
    objective = cl.Objective(model, [(x, y)], nn.MSELoss(), params=["0.weight", "2.bias"])
    squares = objective.least_squares()
    r, jacobian = squares.jacobian()
    assert jacobian.shape == (7, 11)
    weight, _, other, bias = model.parameters()
    again_r, again = squares.closure(jacobian=[bias, other, weight])
    assert torch.equal(again_r, r)
    assert torch.equal(again, torch.cat([jacobian[:, 10:], torch.zeros(7, 5).double(), jacobian[:, :10]], dim=1))
    assert squares.closure(jacobian=[weight, bias])[1].data_ptr() != jacobian.data_ptr()
    assert torch.equal(squares.closure(), squares.residuals())


def test_parts_of_an_objective_keep_its_residuals() -> None:
    model, (x, y) = network(), data(10)
    objective = cl.Objective(model, [(x, y)], nn.MSELoss(), micro_batch=None)
    for other in (
        objective.in_dtype(torch.float32),
        objective.sample(4),
        objective.over([(x[:3], y[:3])]),
        objective.restricted_to("0.weight"),
    ):
        r = other.least_squares().residuals()
        assert (r @ r).item() == pytest.approx(other.value(), rel=1e-5)
    assert objective.restricted_to("0.weight").least_squares().jacobian()[1].shape == (10, 10)


def test_nothing_of_the_model_is_changed() -> None:
    model = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 1)).double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    rows_at_once(cl.Objective(model, [data()], nn.MSELoss(), micro_batch=None)).jacobian()
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize(
    ("residuals", "message"),
    [
        (None, r"expected a loss that declares them. Pass residuals= to the Objective"),
        (lambda output, target: output - target, r"squares of the residuals sum to .*, expected the loss, .*. Scale"),
        (lambda output, target: 3.0, r"to be a tensor of real numbers or several, got float"),
        (lambda output, target: [], r"or several, got none"),
    ],
)
def test_residuals_that_are_none(residuals: Any, message: str) -> None:
    objective = cl.Objective(
        network(), [data()], nn.L1Loss() if residuals is None else nn.MSELoss(), residuals=residuals
    )
    with pytest.raises(MisuseError, match=message):
        objective.least_squares()


def test_a_jacobian_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convexlab.machine.memory.available_memory", lambda device: 8 * 7 * 21)
    objective = cl.Objective(network(), [data()], nn.MSELoss(), micro_batch=None)
    with pytest.raises(MisuseError, match=r"the Jacobian of 7 residuals in 21 parameters, with its normal equations"):
        objective.least_squares()

"""Products in bfloat16: what they are, what they cost, and that a loss is as it was before and after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import convexlab as cl
from convexlab.errors import MisuseError
from convexlab.objective.cost import Cost
from convexlab.objective.narrow import NarrowHessian


def objective(dtype: torch.dtype = torch.float32, criterion: nn.Module | None = None) -> cl.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).to(dtype)
    batches = [(torch.randn(size, 6, dtype=dtype), torch.arange(size) % 3) for size in (40, 24)]
    return cl.Objective(model, batches, criterion or nn.CrossEntropyLoss())


def narrow(loss: cl.Objective) -> NarrowHessian:
    operator = loss.hessian(precision="bf16")
    assert isinstance(operator, NarrowHessian)
    return operator


def test_products_are_coarse_and_those_of_the_reference_are_not() -> None:
    loss = objective()
    exact, operator = loss.hessian("exact"), narrow(loss)
    v = torch.randn(loss.size, generator=torch.Generator().manual_seed(1))
    product, wanted = operator @ v, exact @ v
    assert product.dtype == torch.float32
    # bfloat16 has 8 bits: its ε is 2⁻⁷, and float32's is far below a tenth of a percent.
    assert 2**-12 < float((product - wanted).norm() / wanted.norm()) < 2**-5
    assert torch.equal(operator.reference() @ v, wanted)
    assert torch.equal(operator.recomputed(v, seed=3), exact.recomputed(v, seed=3))  # type: ignore[attr-defined]


def test_loss_and_gradient_stay_in_float32() -> None:
    loss, other = objective(), objective()
    narrow(other) @ torch.ones(other.size)
    value, gradient = loss.value_and_gradient()
    again, gradient_again = other.value_and_gradient()
    assert value == again
    assert torch.equal(gradient, gradient_again)


def test_the_criterion_is_given_what_the_loss_is_in() -> None:
    dtypes = []

    class Noting(nn.Module):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            dtypes.append(output.dtype)
            return nn.functional.cross_entropy(output, target)

    loss = objective(criterion=Noting())
    narrow(loss) @ torch.ones(loss.size)
    assert set(dtypes) == {torch.float32}


def test_the_check_measures_how_far_off_they_are() -> None:
    operator = narrow(objective())
    assert operator.error is None
    assert operator.summary == "products in bf16"
    operator.prove()
    assert operator.error is not None
    assert 2**-12 < operator.error < 2**-4
    assert operator.summary == f"products in bf16, {operator.error:.1%} off along a random direction"
    before = operator.cost
    operator.prove()
    assert operator.cost == before


def test_the_objective_is_charged_for_them() -> None:
    loss = objective()
    operator = narrow(loss)
    operator @ torch.ones(loss.size, 2)
    assert Cost(hessian_products=loss.cost.hessian_products) == Cost(hessian_products=2)
    assert operator.cost is loss.cost
    operator.reference() @ torch.ones(loss.size)
    assert loss.cost.hessian_products == 3


def test_a_check_of_wrong_products_fails_whatever_the_precision() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, g: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            return g * 3 * x.detach() ** 2

    class Cube(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Wrong.apply(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Cube(), nn.Linear(4, 1))
    loss = cl.Objective(model, [(torch.randn(20, 3), torch.randn(20, 1))], nn.MSELoss())
    with pytest.raises(cl.FailureError, match="not those of the second derivative"):
        narrow(loss).prove()


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(MisuseError, match="expected a loss in float32"):
        objective(torch.float64).hessian(precision="bf16")
    with pytest.raises(MisuseError, match="expected a cuda device"):
        objective().hessian(precision="tf32")
    with pytest.raises(MisuseError, match="expected exact products with a precision"):
        objective().hessian("differences", precision="bf16")
    with pytest.raises(MisuseError, match="precision"):
        objective().hessian(precision="fp8")  # type: ignore[arg-type]

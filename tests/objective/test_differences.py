"""Products by differences of gradients: what has no second derivative in torch, with the error that they have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import convexlab as cl
from convexlab.errors import FailureError, MisuseError
from convexlab.objective.differences import CentralDifferences
from tests.objective.faults import Fault


class _Network(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.activation = nn.Linear(4, 6), nn.Linear(6, 3), activation

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.activation(self.first(x)))
        return output


def _objective(activation: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> cl.Objective:
    torch.manual_seed(0)
    model = _Network(activation).to(dtype)
    return cl.Objective(model, [(torch.randn(30, 4), torch.randint(0, 3, (30,)))], nn.CrossEntropyLoss())


def _dense(activation: Callable[[Tensor], Tensor]) -> np.ndarray:
    """Return the Hessian by autograd, for activations that have one."""
    objective = _objective(activation)
    return objective.hvp(torch.eye(objective.size, dtype=torch.float64)).numpy()


def _hard(x: Tensor) -> Tensor:
    """Return the same as hardsigmoid, in operations that are differentiated twice."""
    return (x / 6 + 0.5).clamp(0, 1)


WITHOUT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hardsigmoid": (functional.hardsigmoid, _hard),
    "once differentiable": (Fault("once differentiable"), torch.tanh),
    "tanh": (torch.tanh, torch.tanh),
    "relu": (torch.relu, torch.relu),
}


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_and_verdict_are_those_of_the_function(name: str, dtype: torch.dtype) -> None:
    activation, same = WITHOUT[name]
    objective = _objective(activation, dtype)
    true = np.linalg.eigvalsh(_dense(same))
    spread = true[-1] - true[0]
    # A model in float32 has its weights rounded to that; they are evaluated in float64.
    slack = (1e-9 if dtype == torch.float64 else 1e-5) * spread
    extremes = cl.extreme_eigenvalues(objective.hessian("differences"))
    assert extremes.converged
    assert 0 < extremes.deviation < 1e-4 * spread
    assert extremes.smallest_lower_bound <= true[0] + slack
    assert extremes.smallest >= true[0] - slack - extremes.deviation
    assert extremes.largest_upper_bound >= true[-1] - slack
    verdict = cl.convexity_verdict(objective, products="differences")
    assert verdict.kind == ("non-convex" if true[0] < -1e-3 * true[-1] else verdict.kind)
    assert verdict.lower_bound <= true[0] + slack
    assert verdict.effort.plan.startswith("products by differences of gradients, which agree to ")


def test_the_step_and_the_error_follow_the_rounding_of_the_loss() -> None:
    clean = _objective(torch.tanh).hessian("differences")
    coarse = _objective(lambda x: torch.tanh(x.float()).to(x)).hessian("differences")
    assert isinstance(clean, CentralDifferences)
    assert isinstance(coarse, CentralDifferences)
    assert clean.step < 1e-4 < coarse.step
    assert clean.disagreement < 1e-8 < coarse.disagreement < 1e-2
    true = np.linalg.eigvalsh(_dense(torch.tanh))
    extremes = cl.extreme_eigenvalues(coarse)
    assert extremes.smallest_lower_bound <= true[0]
    assert true[-1] <= extremes.largest_upper_bound
    assert abs(extremes.largest - true[-1]) <= extremes.deviation + 1e-6


def test_kinks_are_told_from_rounding() -> None:
    noisy = _objective(lambda x: torch.tanh(x.half()).to(x)).hessian("differences")
    tied = _objective(torch.relu)
    with torch.no_grad():
        for parameter in tied.model.first.parameters():
            parameter.zero_()  # Every unit is at its kink.
    kinked = tied.hessian("differences")
    for operator, cause in ((noisy, "rounding"), (kinked, "kinks")):
        assert isinstance(operator, CentralDifferences)
        assert operator.disagreement > 1e-3
        assert operator.cause == cause
        assert operator.summary.endswith(f" for {cause}")
    assert not cl.extreme_eigenvalues(kinked).converged


def test_costs_are_charged() -> None:
    objective = _objective(torch.tanh)
    operator = objective.hessian("differences")
    found = objective.cost.gradients
    assert found == 2 + 16  # The loss is evaluated twice; eight steps are tried.
    operator.matvec(torch.ones(objective.size))
    assert objective.cost.gradients == found + 2
    assert cl.extreme_eigenvalues(operator).effort.gradient_equivalents == objective.cost.gradients - found - 2


@pytest.mark.parametrize(
    "measure", [cl.convexity_verdict, lambda objective: cl.extreme_eigenvalues(objective.hessian())]
)
def test_without_them_the_operation_is_named_with_the_way_out(measure: Callable[[cl.Objective], object]) -> None:
    with pytest.raises(
        FailureError, match=r"^hardsigmoid has no second derivative.*products='differences'.*--products"
    ):
        measure(_objective(functional.hardsigmoid))


def test_exact_products_are_never_differences() -> None:
    objective = _objective(torch.tanh)
    loose = {"tolerance": 0.1}
    assert cl.extreme_eigenvalues(objective.hessian("exact"), **loose).deviation == 0  # type: ignore[arg-type]
    assert cl.extreme_eigenvalues(objective.hessian("auto"), **loose).deviation > 0  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match=r"unknown kind of products 'difference'.*Did you mean 'differences'"):
        objective.hessian("difference")  # type: ignore[arg-type]


def test_an_embedding_bag_and_a_transducer() -> None:
    """Losses of others that torch differentiates once."""
    torch.manual_seed(0)
    bag = nn.Sequential(nn.EmbeddingBag(7, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    words = cl.Objective(bag, [(torch.randint(0, 7, (12, 5)), torch.randint(0, 3, (12,)))], nn.CrossEntropyLoss())
    recurrent = nn.Linear(3, 5).double()
    targets, lengths = torch.tensor([[1, 2], [3, 1]]), torch.tensor([6, 6])

    def ctc(model: nn.Module, batch: Tensor) -> Tensor:
        return functional.ctc_loss(model(batch).log_softmax(-1), targets, lengths, torch.tensor([2, 2]))

    speech = cl.Objective.from_batch_loss(recurrent, [torch.randn(6, 2, 3).double()], ctc, weight=lambda batch: 2.0)
    for objective, operation in ((words, "embedding_bag"), (speech, "ctc_loss")):
        with pytest.raises(FailureError, match=f"^{operation} has no second derivative"):
            cl.extreme_eigenvalues(objective.hessian())
        extremes = cl.extreme_eigenvalues(objective.hessian("differences"))
        assert extremes.converged
        v = extremes.largest_vector
        theta, step = objective.flat_parameters(), 1e-4
        values = []
        for side in (-1, 0, 1):
            with objective.at(theta + side * step * v):
                values.append(objective.value())
        assert extremes.largest == pytest.approx((values[0] - 2 * values[1] + values[2]) / step**2, rel=1e-4)

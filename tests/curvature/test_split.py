"""The split of a curvature against dense matrices and closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.errors import MisuseError
from tests.dense import as_vector, derivatives, gauss_newton, loss_of

# Quotients of two-layer networks on a few examples: some hundred operations on numbers of the order of 1.
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def _data(rows: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, generator=generator).double(), torch.randint(0, 3, (rows,), generator=generator)


def _objective(**options: Any) -> cl.Objective:
    x, y = _data()
    return cl.Objective(_network(), [(x[:3], y[:3]), (x[3:], y[3:])], nn.CrossEntropyLoss(), **options)


def _dense() -> tuple[Tensor, Tensor]:
    model, (x, y) = _network(), _data()
    names = [name for name, _ in model.named_parameters()]
    criterion = nn.CrossEntropyLoss()
    hessian = derivatives(loss_of(model, criterion, x, y, names), as_vector(model, names))[2]
    return hessian, gauss_newton(model, criterion, x, y, names)


def test_the_quotients_are_those_of_the_dense_matrices() -> None:
    hessian, gauss = _dense()
    vectors = torch.linalg.eigh(hessian).eigenvectors
    split = cl.curvature_split(_objective(micro_batch=2), vectors)
    for quotients, matrix in (
        (split.hessian, hessian),
        (split.gauss_newton, gauss),
        (split.residual, hessian - gauss),
    ):
        assert quotients.shape == (43,)
        assert quotients.dtype == torch.float64
        torch.testing.assert_close(quotients, (vectors * (matrix @ vectors)).sum(dim=0), **EXACT)
    assert split.mismatch.shape == (43,)
    assert float(split.mismatch.max()) < 1e-12
    # Cross-entropy is convex in the output: what is negative is of the residual part.
    assert float(split.gauss_newton.min()) > -1e-12
    assert float(split.residual[0]) <= float(split.hessian[0]) < -1e-3


def test_a_witness_is_split() -> None:
    objective = _objective()
    verdict = cl.convexity_verdict(objective)
    assert verdict.witness is not None
    split = cl.curvature_split(objective, verdict.witness)
    assert split.hessian.shape == split.gauss_newton.shape == split.residual.shape == split.mismatch.shape == ()
    assert float(split.hessian) == pytest.approx(verdict.curvature, rel=1e-9)
    assert float(split.gauss_newton) >= -1e-12
    assert float(split.hessian) == pytest.approx(float(split.gauss_newton) + float(split.residual), abs=1e-12)


def test_vectors_are_normalised_and_of_any_precision() -> None:
    v = torch.arange(43) % 5 - 2
    expected = cl.curvature_split(_objective(), v / v.double().norm())
    for scaled in (v, v.float(), 1e150 * v.double(), v.double().requires_grad_()):
        split = cl.curvature_split(_objective(), scaled)
        torch.testing.assert_close(split.hessian, expected.hessian, **EXACT)
        torch.testing.assert_close(split.residual, expected.residual, **EXACT)
        assert not split.hessian.requires_grad


def test_the_mismatch_shows_the_rounding_of_a_lower_precision() -> None:
    vectors = torch.randn(43, 20, generator=torch.Generator().manual_seed(0)).double()
    exact = cl.curvature_split(_objective(), vectors)
    single = cl.curvature_split(_objective(dtype=torch.float32), vectors)
    error = (single.hessian - exact.hessian).abs().max()
    # The largest of 20 sums of three rounding errors, beside the largest of 20 of one of them: all of one order.
    assert error / 10 < single.mismatch.max() < 10 * error
    assert 0 < exact.mismatch.max() < 1e-6 * error


def test_a_linear_model_has_no_residual_part() -> None:
    x, y = _data()
    objective = cl.Objective(nn.Linear(4, 3).double(), [(x, y)], nn.CrossEntropyLoss())
    split = cl.curvature_split(objective, torch.ones(15, 2))
    assert torch.equal(split.residual, torch.zeros(2).double())
    torch.testing.assert_close(split.hessian, split.gauss_newton, **EXACT)


def test_a_model_that_fits_without_error_has_no_residual_part() -> None:
    model, x = _network(), _data()[0]
    objective = cl.Objective(model, [(x, model(x).detach())], nn.MSELoss())
    split = cl.curvature_split(objective, torch.ones(43))
    assert float(split.residual) == 0
    assert float(split.hessian) == pytest.approx(float(split.gauss_newton), rel=1e-11)


def test_it_costs_two_hessian_products_and_a_gauss_newton_product_a_vector() -> None:
    objective = _objective()
    objective.require_one_function()
    before = objective.cost
    split = cl.curvature_split(objective, torch.ones(43, 3))
    cost = objective.cost - before
    check = cost.gradients  # Two products and one gradient for some of the examples.
    assert cost.hessian_products == 6 + 2 * check
    assert cost.gauss_newton_products == 3
    assert split.effort.products == 9
    assert split.effort.gradient_equivalents == cost.gradient_equivalents == pytest.approx(16 + 5 * check)
    assert split.effort.seconds >= cost.seconds > 0
    assert cl.curvature_split(objective, torch.ones(43, 0)).residual.shape == (0,)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(42), r"\(43,\) or \(43, k\), got \(42,\)"),
        (torch.ones(3, 43), r"got \(3, 43\)"),
        (torch.ones(43, 1, 1), r"got \(43, 1, 1\)"),
        (torch.tensor(1.0), r"got \(\)"),
        (torch.zeros(43), "zero or not finite"),
        (torch.ones(43, 2) * torch.tensor([1.0, torch.nan]), "zero or not finite"),
    ],
)
def test_vectors_without_a_direction_or_of_another_shape_are_refused(vectors: Tensor, message: str) -> None:
    objective = _objective()
    with pytest.raises(MisuseError, match=message):
        cl.curvature_split(objective, vectors)
    assert objective.cost == cl.Cost()


def test_a_loss_without_a_criterion_is_refused() -> None:
    objective = cl.Objective.from_batch_loss(_network(), [_data()], lambda module, batch: module(batch[0]).mean())
    with pytest.raises(MisuseError, match=r"split.*from_batch_loss"):
        cl.curvature_split(objective, torch.ones(43))

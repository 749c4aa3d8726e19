"""Several eigenpairs against dense eigenvalues, SciPy's ARPACK, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

import convexlab as cl
from convexlab.curvature.lanczos import Lanczos, random_unit_vector
from convexlab.curvature.top import pairs_of
from convexlab.errors import FailureError, MisuseError
from convexlab.objective.products import GradientDifferences
from tests.curvature.matrices import SPECTRA, matrix_with, random_matrix
from tests.dense import Dense
from tests.slowly import mostly_slow

WHICH = ("largest", "smallest", "magnitude")
EXACT = 1e-9
# Ends where eigenvalues are 6 or 12 orders of magnitude closer than the spectrum is wide: with a short basis no method
# of restarts tells them apart, nor many of them with any.
HOPELESS = {("geometric", "smallest"), ("negative tail", "smallest"), *(("clusters", which) for which in WHICH)}


class Counting(Dense):
    products = 0

    def matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return super().matvec(v)


def _truth(values: np.ndarray, which: str, k: int) -> np.ndarray:
    keys = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}
    return values[np.argsort(keys[which], kind="stable")][:k]


def _least_budget(n: int, k: int) -> int:
    """The basis of k + 6 vectors, the result, five vectors of work."""
    return (k + 6 + k + 5) * n * 8


@pytest.mark.parametrize("k", mostly_slow([5, 1, 20], quick=1))
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_values_are_those_of_the_dense_matrix(spectrum: str, which: str, k: int) -> None:
    matrix = random_matrix(spectrum, 1, least=50)
    values, n = np.linalg.eigvalsh(matrix.numpy()), len(matrix)
    scale = np.abs(values).max()
    for budget in (None, _least_budget(n, k)):
        if (spectrum, which) in HOPELESS and (budget is not None or k > 5):
            continue
        operator = Counting(matrix)
        pairs = cl.top_eigenpairs(operator, k, which=which, tolerance=EXACT, memory_budget=budget)
        truth = _truth(values, which, k)
        # Of a pair ± the same size either may come first.
        ours, theirs = (np.abs(v) if which == "magnitude" else v for v in (pairs.values.numpy(), truth))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8 * scale, err_msg=f"{k} within {budget}")
        identity = torch.eye(k, dtype=torch.float64)
        torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, identity, rtol=0, atol=1e-11)
        residuals = torch.linalg.vector_norm(matrix @ pairs.vectors - pairs.vectors * pairs.values, dim=0)
        # By the recurrence: products in float64 are off by some ten roundings.
        torch.testing.assert_close(pairs.residuals, residuals, rtol=1e-6, atol=n * 1e-14 * scale)
        assert operator.products == pairs.effort.products
        for low, high in pairs.bounds.tolist():
            assert ((values >= low - n * 1e-14 * scale) & (values <= high + n * 1e-14 * scale)).any()


def test_restarts_cost_products_and_save_memory() -> None:
    matrix = random_matrix("normal", 0, least=60)
    n = len(matrix)
    runs = [cl.top_eigenpairs(Dense(matrix), 4, tolerance=1e-8, memory_budget=b) for b in (None, _least_budget(n, 4))]
    assert runs[0].restarts == 0 < runs[1].restarts
    assert runs[0].steps < runs[1].steps
    assert all(run.converged for run in runs)
    torch.testing.assert_close(runs[0].values, runs[1].values, rtol=0, atol=1e-10)


def test_copies_of_an_eigenvalue_are_found_where_the_space_ends() -> None:
    """A start sees one copy. Where its space is invariant, or what is outside of it is further out, others follow."""
    matrix = matrix_with(np.array([3.0] * 7 + [1.0] * 20 + [-2.0] * 13), np.random.default_rng(0))
    for which, expected in (("largest", [3.0] * 7 + [1.0]), ("smallest", [-2.0] * 8)):
        pairs = cl.top_eigenpairs(Dense(matrix), 8, which=which, tolerance=1e-8)
        np.testing.assert_allclose(pairs.values.numpy(), expected, atol=1e-12)
    zeros = np.zeros(300)
    zeros[:40] = np.linspace(0.3, 2, 40)
    pairs = cl.top_eigenpairs(Dense(matrix_with(zeros, np.random.default_rng(0))), 4, which="smallest", tolerance=1e-6)
    np.testing.assert_allclose(pairs.values.numpy(), 0, atol=1e-9)
    for k in (1, 6):
        assert cl.top_eigenpairs(Dense(torch.eye(6)), k).values.tolist() == pytest.approx([1.0] * k, abs=1e-6)
        assert cl.top_eigenpairs(Dense(torch.zeros(6, 6)), k).converged


def _network() -> cl.Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y = torch.randn(60, 6).double(), torch.randint(0, 3, (60,))
    return cl.Objective(model, [(x, y)], nn.CrossEntropyLoss())


@pytest.mark.parametrize("which", WHICH)
def test_a_hessian_against_scipy(which: str) -> None:
    objective = _network()
    pairs = cl.top_eigenpairs(objective.hessian(), 10, which=which, tolerance=1e-10)
    mode = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}[which]
    values = eigsh(objective.hessian().to_scipy(), k=10, which=mode, return_eigenvectors=False)
    np.testing.assert_allclose(pairs.values.numpy(), _truth(values, which, 10), atol=1e-8 * np.abs(values).max())
    assert pairs.converged


@pytest.mark.parametrize(("tolerance", "cheaply"), [(1e-2, True), (1e-8, False)])
def test_differences_of_gradients_where_they_are_accurate(tolerance: float, cheaply: bool) -> None:
    objective = _network()
    values = torch.linalg.eigvalsh(objective.hvp(torch.eye(objective.size, dtype=torch.float64))).flip(0)
    before = objective.cost
    pairs = cl.top_eigenpairs(objective.hessian(), 5, tolerance=tolerance)
    spent = objective.cost - before
    assert pairs.converged
    assert (spent.gradients > 10) == cheaply
    # An eigenvalue is within each residual, up to the rounding of products of 40 terms.
    assert bool(((values[:5] - pairs.values).abs() <= pairs.residuals + 1e-13 * values[0]).all())
    assert bool((pairs.residuals <= tolerance * pairs.values).all())


def test_a_cheap_run_that_is_not_good_enough_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = _network()
    exact = cl.top_eigenpairs(objective.hessian(), 5, tolerance=5e-3)
    difference = GradientDifferences._difference
    calls = []

    def worse_later(self: GradientDifferences, v: Tensor) -> Tensor:
        calls.append(v)
        return difference(self, v) * (1.0 if len(calls) < 3 else 1.1)

    monkeypatch.setattr(GradientDifferences, "_difference", worse_later)
    again = cl.top_eigenpairs(objective.hessian(), 5, tolerance=5e-3)
    assert len(calls) > 3
    assert again.converged
    torch.testing.assert_close(again.values, exact.values, rtol=1e-3, atol=0)
    assert again.effort.products > exact.effort.products


def test_too_few_steps_are_said() -> None:
    pairs = cl.top_eigenpairs(Dense(random_matrix("normal", 0, least=60)), 5, tolerance=1e-6, max_steps=12)
    assert not pairs.converged
    assert pairs.steps <= 12
    assert bool((pairs.residuals > 0).all())


def test_the_pairs_of_a_run_that_was_made_for_something_else() -> None:
    matrix = random_matrix("normal", 2, least=60)
    operator = Dense(matrix)
    process = Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(0)), 60)
    process.extend(5)
    values, vectors, residuals = pairs_of(process, 3, tolerance=1e-3)
    np.testing.assert_allclose(values.numpy(), np.linalg.eigvalsh(matrix.numpy())[::-1][:3], atol=2e-3)  # A residual.
    assert vectors.shape == (len(matrix), 3)
    assert bool((residuals <= 1e-3 * values.abs()).all())


def test_misuse_and_failure() -> None:
    operator = Dense(torch.eye(4))
    for k in (0, 5, 1.5, True):
        with pytest.raises(MisuseError, match="whole number of eigenpairs from 1 to 4, got"):
            cl.top_eigenpairs(operator, k)  # type: ignore[arg-type]
    for options, message in (
        ({"which": "larges"}, "Did you mean 'largest'"),
        ({"tolerance": 0.0}, "tolerance between 0 and 1"),
        ({"max_steps": 1}, "max_steps of at least k, 2, got 1"),
    ):
        with pytest.raises(MisuseError, match=message):
            cl.top_eigenpairs(operator, 2, **options)  # type: ignore[arg-type]
    with pytest.raises(FailureError, match=r"2 eigenpairs of 4 parameters take \d+ B at least, but 100 B are given"):
        cl.top_eigenpairs(operator, 2, memory_budget=100)
    with pytest.raises(FailureError, match="not finite"):
        cl.top_eigenpairs(Dense(torch.full((4, 4), torch.nan)), 1)

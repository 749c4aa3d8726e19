"""Forecasts against what tensors take, and what is done where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.curvature import Lanczos, forecast
from convexlab.curvature.forecast import plan_run
from convexlab.curvature.lanczos import random_unit_vector
from convexlab.curvature.soundness import require_sound
from convexlab.errors import FailureError, MisuseError
from convexlab.linalg.operators import SymmetricOperator
from convexlab.machine.memory import LiveTensors
from tests.curvature.matrices import SPECTRA, random_matrix
from tests.dense import Dense
from tests.slowly import mostly_slow

CPU = torch.device("cpu")


class _Network(nn.Module):
    """Also says how many examples it was evaluated on."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.rows = body, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        output: Tensor = self.body(x)
        return output


def _wide() -> nn.Module:
    """Parameters outweigh what a graph holds of the examples."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.Tanh(), nn.Linear(300, 3))


def _convolutional() -> nn.Module:
    """The other way round."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"wide": _wide, "convolutional": _convolutional}
OPERATORS: dict[str, Callable[[cl.Objective], SymmetricOperator]] = {
    "hessian": cl.Objective.hessian,
    "ggn": cl.Objective.ggn,
    "residual": cl.Objective.residual,
    "differences": lambda objective: objective.hessian().differences(),  # type: ignore[attr-defined]
}
every_operator = pytest.mark.parametrize("kind", OPERATORS)


def _objective(network: str = "wide", rows: int = 100, **options: Any) -> cl.Objective:
    torch.manual_seed(0)
    model = _Network(NETWORKS[network]())
    data = [(torch.randn(rows, 1, 8, 8), torch.randint(0, 3, (rows,)))]
    return cl.Objective(model, data, nn.CrossEntropyLoss(), **({"micro_batch": 32} | options))


def _run(operator: SymmetricOperator, steps: int) -> int:
    """Return the peak of the tensors of a run and of the ends of its spectrum, after the check of the products."""
    require_sound(operator)
    with LiveTensors() as live:
        start = random_unit_vector(operator, torch.Generator().manual_seed(0))
        process = Lanczos(operator, start, steps)
        del start
        process.extend(steps)
        vectors = process.ritz_vectors(np.eye(process.steps)[:, :2]).T.contiguous()
        products = torch.empty_like(vectors)
        for product, vector in zip(products, vectors, strict=True):
            product.copy_(operator.matvec(vector.to(operator.dtype)))
    assert process.steps == steps
    return live.peak


# Forecasts.


RUNS = [*product(OPERATORS, NETWORKS, [(None, 20), (None, 100), (0, 100), (800_000, 100)])]
OFTEN = [
    run for run in RUNS if run[:2] == ("hessian", "wide") or run[1:] == ("convolutional", (None, 100))
]  # Each limit and each operator.


@pytest.mark.parametrize(
    ("kind", "network", "limit"), mostly_slow([*OFTEN, *(run for run in RUNS if run not in OFTEN)], quick=len(OFTEN))
)
def test_a_run_takes_what_was_forecast(kind: str, network: str, limit: tuple[int | None, int]) -> None:
    steps, (budget, rows) = 20, limit
    forecast = cl.forecast_memory(OPERATORS[kind](_objective(network, rows, memory_budget=budget)), steps)
    # An operator of its own, which has built nothing yet.
    operator = OPERATORS[kind](_objective(network, rows, memory_budget=budget))
    assert _run(operator, steps) == pytest.approx(forecast.total, rel=0.1)
    assert forecast.basis == 21 * operator.shape[0] * 8
    if kind == "differences" or budget == 0:
        assert forecast.graphs == 0
    elif budget is not None:
        assert forecast.graphs <= budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_another_operator_the_vectors_are_known(dtype: torch.dtype) -> None:
    operator = Dense(torch.diag(torch.linspace(-1, 1, 1000)).to(dtype))
    forecast = cl.forecast_memory(operator, 40)
    assert (forecast.basis, forecast.graphs) == (41 * 8000, 0)
    assert _run(operator, 40) == pytest.approx(forecast.total, rel=0.1)
    assert cl.forecast_memory(operator, 10**6).basis == 1001 * 8000


@every_operator
def test_a_forecast_makes_products_with_one_micro_batch_only_and_charges_them(kind: str) -> None:
    objective = _objective()
    operator = OPERATORS[kind](objective)
    objective.value()  # With a trial of whether it is a mean over rows.
    before = objective.cost
    objective._model.rows = 0
    cl.forecast_memory(operator, 10)
    # A graph, a product, and what the differences take: two gradients.
    assert objective._model.rows <= 4 * 32
    spent = (objective.cost - before).gradient_equivalents
    assert 0 < spent <= 4 * 32 / 100 + 1e-9


def test_a_forecast_changes_no_product() -> None:
    plain, measured = _objective().hessian(), _objective().hessian()
    cl.forecast_memory(measured, 10)
    v = torch.randn(plain.shape[0], generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain @ v, measured @ v)
    assert torch.equal(plain @ v, measured @ v)


def test_a_forecast_in_words() -> None:
    needs = cl.MemoryForecast(basis=8 * 10**9, graphs=25 * 10**6, work=1500, available=123)
    assert needs.total == 8_025_001_500
    assert needs.summary() == (
        "The run needs 8.03 GB of memory (8 GB basis, 25 MB gradient graphs, 1.5 kB for a product); "
        "123 B are available."
    )
    assert cl.MemoryForecast(1, 2, 3, None).summary().endswith("3 B for a product).")
    assert cl.forecast_memory(Dense(torch.eye(3)), 2).available == pytest.approx(
        forecast.available_memory(CPU), rel=0.2
    )
    with pytest.raises(MisuseError, match="at least one step, got 0"):
        cl.forecast_memory(Dense(torch.eye(3)), 0)


# Where memory is short.


def _with(monkeypatch: pytest.MonkeyPatch, available: int | None) -> None:
    monkeypatch.setattr(forecast, "available_memory", lambda device: available)


def _needs(**options: Any) -> cl.MemoryForecast:
    return cl.forecast_memory(_objective(**options).hessian(), 30)


def test_with_plenty_of_memory_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for available in (None, 10**9):
        _with(monkeypatch, available)
        objective = _objective(memory_budget=10**8)
        operator = objective.hessian()
        require_sound(operator)
        before = objective.cost
        extremes = cl.extreme_eigenvalues(operator, max_steps=10)
        assert extremes.effort.plan == ""
        assert (objective.cost - before).hessian_products == 12


def test_first_fewer_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cl.extreme_eigenvalues(_objective().hessian(), max_steps=30, tolerance=1e-6)
    need = _needs()
    # One product is held back twice more, and half of the graphs is there.
    _with(monkeypatch, need.basis + 3 * need.work + need.graphs // 2)
    extremes = cl.extreme_eigenvalues(_objective().hessian(), max_steps=30, tolerance=1e-6)
    assert extremes.effort.plan == "fewer gradient graphs kept"
    # The same products, summed in the same order.
    assert (extremes.smallest, extremes.largest) == (expected.smallest, expected.largest)
    operator = _objective().hessian()
    plan_run(operator, 30)
    assert _run(operator, 30) < forecast.available_memory(CPU)


def test_then_the_basis_is_kept_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cl.extreme_eigenvalues(_objective().hessian(), max_steps=30, tolerance=1e-6)
    available = _needs(memory_budget=0).total - 1
    _with(monkeypatch, available)
    operator = _objective(memory_budget=0).hessian()
    extremes = cl.extreme_eigenvalues(operator, max_steps=30, tolerance=1e-6)
    assert extremes.effort.plan == "Krylov basis in float32"
    assert extremes.smallest_vector.dtype == torch.float64
    # A basis that is orthonormal to √n ε (n = 20,403) changes the Ritz values by no more than that, relatively; so do
    # the products.
    allowed = 2 * 143 * float(torch.finfo(torch.float32).eps) * expected.largest
    assert (extremes.smallest, extremes.largest) == pytest.approx((expected.smallest, expected.largest), abs=allowed)
    assert extremes.smallest_lower_bound == pytest.approx(expected.smallest_lower_bound, abs=2 * allowed)
    assert _run(_objective(memory_budget=0).hessian(), 30) < available


def test_a_density_and_a_verdict_say_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, _needs(memory_budget=0).total - 1)
    density = cl.spectral_density(_objective(memory_budget=0).hessian(), probes=2, steps=30)
    assert density.effort.plan == "Krylov basis in float32"
    verdict = cl.convexity_verdict(_objective(memory_budget=0), max_steps=30)
    assert verdict.effort.plan == verdict.extremes.effort.plan == "Krylov basis in float32"


@pytest.mark.parametrize("measure", ["ends", "density", "verdict", "blocks"])
def test_what_does_not_fit_at_all_is_refused_before_any_product(measure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = _objective(memory_budget=0)
    _with(monkeypatch, 4_000_000)
    calls: dict[str, Callable[[], object]] = {
        "ends": lambda: cl.extreme_eigenvalues(objective.hessian(), max_steps=100, tolerance=1e-6),
        "density": lambda: cl.spectral_density(objective.hessian(), steps=100),
        "verdict": lambda: cl.convexity_verdict(objective, max_steps=100),
        "blocks": lambda: cl.block_curvature(objective, "*", max_steps=100, tolerance=1e-6),
    }
    message = r"up to 100 steps does not fit.*basis takes 8\.24 MB.*but 4 MB are available.*max_steps.*params"
    with pytest.raises(FailureError, match=message) as error:
        calls[measure]()
    assert "float32" not in str(error.value)
    assert objective.cost.hessian_products < 1


def test_a_double_precision_run_is_refused_where_half_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    need = _needs(dtype=torch.float64, memory_budget=0)
    _with(monkeypatch, need.basis // 2 + need.work)
    with pytest.raises(FailureError, match="evaluate in float32"):
        cl.extreme_eigenvalues(_objective(dtype=torch.float64, memory_budget=0).hessian(), max_steps=30)


def test_any_operator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, 10_000)
    with pytest.raises(FailureError, match="does not fit"):
        cl.extreme_eigenvalues(Dense(torch.eye(100)))
    assert cl.extreme_eigenvalues(Dense(torch.eye(100)), max_steps=5).largest == pytest.approx(1)


def test_a_micro_batch_that_does_not_fit_is_a_failure_that_says_what_to_do() -> None:
    def full(module: nn.Module, batch: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory left")

    objective = cl.Objective.from_batch_loss(nn.Linear(2, 1), [(torch.ones(1, 2),)], full)
    with pytest.raises(FailureError, match="micro_batch"):
        cl.extreme_eigenvalues(objective.hessian())


def test_on_an_accelerator_the_basis_goes_to_the_host_before_it_is_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = SimpleNamespace(shape=(1000, 1000), dtype=torch.float32, device=torch.device("cuda"))
    basis, vectors = 101 * 8000, 1000 * (4 * 8 + 2 * 4)  # The ends and their products; what goes in and comes out.
    for on_device, on_host, expected in (
        (basis + vectors, 0, ""),
        (basis + vectors - 1, basis, "Krylov basis on the host"),
        (basis + vectors - 1, None, "Krylov basis on the host"),
        (basis + vectors - 1, basis - 1, "Krylov basis in float32"),
        (basis // 2 + vectors - 1, basis - 1, "Krylov basis on the host in float32"),
    ):
        left = {"cuda": on_device, "cpu": on_host}
        monkeypatch.setattr(forecast, "available_memory", lambda device, left=left: left[device.type])
        plan = plan_run(operator, 100)
        assert plan.summary == expected
        assert plan.device.type == ("cpu" if "host" in expected else "cuda")
        assert plan.dtype == (torch.float32 if "float32" in expected else torch.float64)
    left["cpu"] = basis // 2 - 1
    with pytest.raises(FailureError, match="does not fit"):
        plan_run(operator, 100)


@pytest.mark.gpu
def test_a_basis_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.accelerator.current_accelerator()
    matrix = random_matrix("normal", 0, least=60).float().to(device)
    expected = cl.extreme_eigenvalues(Dense(matrix), max_steps=20)
    plan = forecast.Plan(torch.float32, CPU, "Krylov basis on the host in float32")
    monkeypatch.setattr("convexlab.curvature.lanczos.plan_run", lambda operator, steps: plan)
    extremes = cl.extreme_eigenvalues(Dense(matrix), max_steps=20)
    assert extremes.effort.plan == plan.summary
    assert extremes.smallest_vector.device == matrix.device
    assert (extremes.smallest, extremes.largest) == pytest.approx((expected.smallest, expected.largest), rel=1e-4)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_bounds_hold_with_a_basis_in_float32(spectrum: str, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = forecast.Plan(torch.float32, CPU, "Krylov basis in float32")
    monkeypatch.setattr("convexlab.curvature.lanczos.plan_run", lambda operator, steps: narrow)
    for seed in range(12):
        matrix = random_matrix(spectrum, seed).float()
        truth = np.linalg.eigvalsh(matrix.double().numpy())
        # Rounding of the products, of the basis, and LAPACK's.
        rounding = 3 * len(matrix) ** 0.5 * float(torch.finfo(torch.float32).eps) * np.abs(truth).max()
        for steps in (2 + seed, None):
            extremes = cl.extreme_eigenvalues(Dense(matrix), max_steps=steps, seed=seed)
            assert extremes.smallest_lower_bound - rounding <= truth[0] <= extremes.smallest + rounding
            assert extremes.largest - rounding <= truth[-1] <= extremes.largest_upper_bound + rounding
            assert extremes.effort.plan == narrow.summary


def test_a_run_begins_again_in_the_memory_that_it_had() -> None:
    operator = _objective().hessian()
    start = random_unit_vector(operator, torch.Generator().manual_seed(0))
    process = Lanczos(operator, start, 20)
    process.extend(20)
    before = process.coefficients()
    with LiveTensors() as live:
        process.restart()
        process.extend(20)
    assert live.peak < cl.forecast_memory(operator, 20).total
    assert process.products == 40
    for ours, theirs in zip(process.coefficients(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)

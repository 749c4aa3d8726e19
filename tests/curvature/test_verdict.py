"""The verdict where the truth is known: by closed forms, and by dense Hessians."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import convexlab as cl
from convexlab.curvature import Lanczos
from convexlab.curvature.effort import Meter
from convexlab.curvature.lanczos import random_unit_vector
from convexlab.curvature.verdict import Verdict, judge, steps_to_resolve
from convexlab.errors import FailureError, MisuseError
from convexlab.wording.numbers import number
from tests.curvature.matrices import SPECTRA, matrix_with, random_matrix
from tests.dense import Dense, as_vector, derivatives, loss_of
from tests.slowly import mostly_slow, seeds

PRECISIONS = (torch.float32, torch.float64)
every_precision = pytest.mark.parametrize("dtype", PRECISIONS)


def _hessian(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor, names: list[str] | None = None) -> Tensor:
    """Return the dense Hessian in float64."""
    names = names or [name for name, _ in model.named_parameters()]
    precise = {name: tensor.double() for name, tensor in model.state_dict().items()}
    model = model.double()
    model.load_state_dict(precise)
    y = y.double() if y.is_floating_point() else y
    return derivatives(loss_of(model, criterion, x.double(), y, names), as_vector(model, names))[2]


def _judge(process: Lanczos, tolerance: float | None = None) -> Verdict:
    with Meter(process.operator) as meter:
        return judge(process, floor=1e-3, confidence=0.999, tolerance=tolerance, meter=meter)


class _Quadratic(nn.Module):
    """½ θᵀAθ: a loss whose Hessian is any matrix one likes."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.theta = nn.Parameter(torch.ones(len(matrix), dtype=matrix.dtype))

    def objective(self) -> cl.Objective:
        def loss(module: _Quadratic, batch: tuple[Tensor]) -> Tensor:
            return module.theta @ (module.matrix @ module.theta) / 2

        return cl.Objective.from_batch_loss(self, [(torch.ones(1),)], loss)


def _check(verdict: cl.Verdict, truth: np.ndarray) -> None:
    """Check every claim of a verdict against all eigenvalues."""
    lapack = math.sqrt(len(truth)) * float(np.finfo(np.float64).eps) * np.abs(truth).max()
    assert verdict.lower_bound <= truth[0] + lapack
    assert verdict.curvature >= truth[0] - verdict.rounding_floor - lapack
    assert (verdict.witness is not None) is (verdict.kind == "non-convex")
    if verdict.kind == "non-convex":
        assert truth[0] < 0
        assert verdict.curvature + verdict.rounding_floor < 0
    if verdict.kind == "no-negative-curvature":
        assert truth[0] >= -verdict.floor * np.abs(truth).max() * (1 + 1e-6)
    _check_wording(verdict)


def _check_wording(verdict: cl.Verdict) -> None:
    text = verdict.summary()
    assert text.count(".\n") == 0
    assert text.endswith(".")
    assert "nan" not in text
    # "Convex" is never claimed, and a negative is the only thing that is called proven.
    rest = text.removeprefix("Non-convex") if verdict.kind == "non-convex" else text
    assert not re.search("convex|positive|minimum|certain|prove", rest, re.IGNORECASE)
    if verdict.kind != "non-convex":
        assert "confidence 99.9\N{NO-BREAK SPACE}%" in text or "too few for a lower bound" in text


@seeds(10, quick=2)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_no_claim_is_false_on_any_spectrum(spectrum: str, seeds: range) -> None:
    for seed in seeds:
        matrix = random_matrix(spectrum, seed)
        for dtype in PRECISIONS:
            verdict = cl.convexity_verdict(_Quadratic(matrix.to(dtype)).objective(), seed=seed)
            _check(verdict, np.linalg.eigvalsh(matrix.to(dtype).double().numpy()))
            if spectrum in {"isolated negative", "normal", "repeated"} and len(matrix) > 10:
                assert verdict.kind == "non-convex"
            if spectrum in {"rank deficient, no negative", "geometric", "almost the identity"}:
                assert verdict.kind == "no-negative-curvature"


@pytest.mark.parametrize("steps", mostly_slow([7, 1, 3, 12], quick=1))
def test_no_claim_is_false_after_few_steps(steps: int) -> None:
    kinds = set()
    for spectrum in SPECTRA:
        for seed in range(3):
            matrix = random_matrix(spectrum, seed, least=50)
            verdict = cl.convexity_verdict(_Quadratic(matrix).objective(), max_steps=steps, seed=seed)
            assert verdict.steps <= steps
            _check(verdict, np.linalg.eigvalsh(matrix.numpy()))
            kinds.add(verdict.kind)
    assert "unresolved" in kinds


@pytest.mark.parametrize("size", [300, 700])
@every_precision
def test_semidefinite_matrices_are_resolved_though_rounding_takes_its_share(size: int, dtype: torch.dtype) -> None:
    """As large as it takes for the bound, not the number of dimensions, to end the run: -floor is just met then."""
    values = np.concatenate([np.zeros(size - 200), np.linspace(0, 1, 200)])
    operator = Dense(torch.diag(torch.from_numpy(values)).to(dtype))
    steps = steps_to_resolve(size, 1e-3, 0.999)
    assert steps < size
    for seed in range(3):
        process = Lanczos(operator, random_unit_vector(operator, torch.Generator().manual_seed(seed)), steps)
        verdict = _judge(process)
        assert verdict.kind == "no-negative-curvature"
        assert -1e-3 <= verdict.lower_bound < 0
        assert verdict.steps <= steps


# Convex losses.


class _Ridge(nn.Module):
    def __init__(self, penalty: float, shape: tuple[int, int]) -> None:
        super().__init__()
        self.linear, self.penalty = nn.Linear(*shape), penalty

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        squares = sum(parameter.square().sum() for parameter in self.parameters())
        return functional.cross_entropy(self.linear(batch[0]), batch[1]) + self.penalty * squares


@every_precision
@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_ridge_logistic_regression_is_never_non_convex(penalty: float, dtype: torch.dtype) -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(40, 12, generator=generator) * torch.logspace(-2, 1, 12)
        y = torch.randint(0, 3, (40,), generator=generator)
        torch.manual_seed(seed)
        model = _Ridge(penalty, (12, 3))
        model.linear.weight.data *= 10**seed / 10
        objective = cl.Objective.from_batch_loss(
            model, [(x, y)], lambda module, batch: module.loss(batch), dtype=dtype, micro_batch=None
        )
        verdict = cl.convexity_verdict(objective, seed=seed)
        assert verdict.kind != "non-convex"
        # Nothing is below twice the penalty, and in float64 that can be seen.
        assert verdict.lower_bound <= 2 * penalty * (1 + 1e-4) + verdict.rounding_floor
        if dtype == torch.float64:
            assert verdict.kind == "no-negative-curvature"
            assert verdict.curvature >= 2 * penalty * (1 - 1e-6)
        _check_wording(verdict)


def _linear_regression(seed: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(25, 10, generator=generator)
    x = torch.cat([x, x @ torch.randn(10, 20, generator=generator)], dim=1) * torch.logspace(-1, 2, 30)
    return nn.Linear(30, 2), nn.MSELoss(), x, torch.randn(25, 2, generator=generator)


def _softmax_regression(seed: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    model, _, x, _ = _linear_regression(seed)
    y = torch.randint(0, 2, (25,), generator=torch.Generator().manual_seed(seed))
    return model, nn.CrossEntropyLoss(), x / 100, y


def _separable(size: float) -> Callable[[int], tuple[nn.Module, nn.Module, Tensor, Tensor]]:
    """More weights than examples, and a fit that is sure of every label: p (1 - p) loses what p was rounded by."""

    def build(seed: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(20, 30, generator=generator), torch.randint(0, 3, (20,), generator=generator)
        model = nn.Linear(30, 3)
        wanted = functional.one_hot(y, 3).double() - 1 / 3
        weights = torch.linalg.lstsq(torch.cat([x, torch.ones(20, 1)], dim=1).double(), wanted, driver="gelsd").solution
        with torch.no_grad():
            model.weight.copy_(size * weights[:-1].T)
            model.bias.copy_(size * weights[-1])
        return model, nn.CrossEntropyLoss(), x, y

    return build


CONVEX: dict[str, Callable[[int], tuple[nn.Module, nn.Module, Tensor, Tensor]]] = {
    "linear regression": _linear_regression,
    "softmax regression": _softmax_regression,
    **{f"separable, size {size}": _separable(size) for size in (8, 12, 20)},
}


@seeds(20, quick=2)
@every_precision
@pytest.mark.parametrize("name", CONVEX)
def test_a_rank_deficient_convex_loss_is_never_non_convex(name: str, dtype: torch.dtype, seeds: range) -> None:
    kinds = []
    for seed in seeds:
        if "separable" in name and seed >= 6:
            break
        torch.manual_seed(seed)
        model, criterion, x, y = CONVEX[name](seed)
        verdict = cl.convexity_verdict(cl.Objective(model, [(x, y)], criterion, dtype=dtype), seed=seed)
        kinds.append(verdict.kind)
        _check_wording(verdict)
        # No sign is stated within the floor, and the truth is not outside it: vᵀHv >= 0.
        assert verdict.curvature >= -verdict.rounding_floor
    assert "non-convex" not in kinds
    if dtype == torch.float64 or "separable" not in name:
        assert set(kinds) == {"no-negative-curvature"}


@seeds(3, quick=1)
@pytest.mark.parametrize("name", CONVEX)
def test_the_rounding_floor_is_not_below_the_rounding_error(name: str, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        model, criterion, x, y = CONVEX[name](seed)
        verdict = cl.convexity_verdict(cl.Objective(model, [(x, y)], criterion), seed=seed)
        v = verdict.extremes.smallest_vector
        exact = float(v @ _hessian(model, criterion, x, y) @ v)
        assert abs(verdict.curvature - exact) <= verdict.rounding_floor


def test_the_last_layer_of_a_network_is_a_convex_problem() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Linear(30, 4))
        x, y = torch.randn(20, 8), torch.randint(0, 4, (20,))
        last = cl.convexity_verdict(cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), params="2.*"), seed=seed)
        assert last.kind == "no-negative-curvature"
        whole = cl.convexity_verdict(cl.Objective(model, [(x, y)], nn.CrossEntropyLoss()), seed=seed)
        assert whole.kind == "non-convex"


# Losses that are not.


@seeds(10, quick=3)
@every_precision
def test_a_saddle_is_never_no_negative_curvature_and_the_witness_holds(dtype: torch.dtype, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        x, y = torch.randn(15, 4), torch.randint(0, 3, (15,))
        verdict = cl.convexity_verdict(cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), dtype=dtype), seed=seed)
        hessian = _hessian(model, nn.CrossEntropyLoss(), x, y)
        truth = np.linalg.eigvalsh(hessian.numpy())
        assert truth[0] < -1e-3 * truth[-1]
        assert verdict.kind == "non-convex"
        _check(verdict, truth)
        witness = verdict.witness
        assert witness is not None
        assert float(torch.linalg.vector_norm(witness)) == pytest.approx(1, abs=1e-12)
        exact = float(witness.double() @ hessian @ witness.double())
        assert exact < 0
        assert abs(exact - verdict.curvature) <= verdict.rounding_floor
        assert f"curvature {number(verdict.curvature)} was found" in verdict.summary()


@seeds(3, quick=1)
@every_precision
def test_a_little_negative_curvature_is_seen_or_left_open_but_not_denied(dtype: torch.dtype, seeds: range) -> None:
    """Around the floor, around the rounding floor, and at zero."""
    for size in (1e-1, 2e-3, 5e-4, 1e-5, 1e-7, 1e-9, 1e-12, 0.0):
        for seed in seeds:
            values = np.concatenate([[-size], np.linspace(0.05, 1, 29)])
            matrix = matrix_with(values, np.random.default_rng(seed)).to(dtype)
            verdict = cl.convexity_verdict(_Quadratic(matrix).objective(), seed=seed)
            _check(verdict, np.linalg.eigvalsh(matrix.double().numpy()))
            if size >= 2e-3:
                assert verdict.kind == "non-convex"
            if size < torch.finfo(dtype).eps / 10:
                assert verdict.kind == "no-negative-curvature"


def test_a_concave_loss_and_one_with_a_single_parameter() -> None:
    concave = cl.convexity_verdict(_Quadratic(-torch.diag(torch.linspace(1, 2, 20).double())).objective())
    assert concave.kind == "non-convex"
    assert concave.largest < 0
    assert -2 <= concave.curvature < -1.9
    # (tanh p - 1)² has curvature 2 (1 - t²)² - 4 t (1 - t²) (t - 1) at t = tanh p: negative at p = -1, positive at 1.
    for p, kind in ((-1.0, "non-convex"), (1.0, "no-negative-curvature")):
        model = cl.build_model("tanh-1d")
        with torch.no_grad():
            model.p.fill_(p)
        objective = cl.Objective(model, [(torch.ones(1, 1), torch.ones(1, 1))], nn.MSELoss(), dtype=torch.float64)
        verdict = cl.convexity_verdict(objective)
        t = math.tanh(p)
        assert verdict.curvature == pytest.approx(2 * (1 - t**2) ** 2 - 4 * t * (1 - t**2) * (t - 1), rel=1e-12)
        assert verdict.kind == kind
        assert verdict.steps == 1
        _check_wording(verdict)


def test_a_linear_loss_has_no_curvature_to_speak_of() -> None:
    model = nn.Linear(3, 1)
    objective = cl.Objective.from_batch_loss(model, [torch.ones(4, 3)], lambda module, batch: module(batch).mean())
    verdict = cl.convexity_verdict(objective)
    assert verdict.kind == "no-negative-curvature"
    assert (verdict.curvature, verdict.lower_bound, verdict.largest) == (0, 0, 0)
    _check_wording(verdict)


# How it is reached, and told.


def test_negative_curvature_ends_the_search_early() -> None:
    matrix = torch.diag(torch.cat([torch.tensor([-1.0]), torch.linspace(0, 1, 999)]).double())
    verdict = cl.convexity_verdict(_Quadratic(matrix).objective())
    assert verdict.kind == "non-convex"
    assert verdict.steps <= 33
    assert verdict.steps < steps_to_resolve(1000, 1e-3, 0.999) / 4


def test_both_ends_are_bounded_to_a_tolerance_even_where_the_verdict_is_clear() -> None:
    operator = Dense(torch.diag(torch.linspace(-1, 1, 400).double()))
    steps = []
    for tolerance in (None, 1e-1, 1e-2):
        process = Lanczos(operator, random_unit_vector(operator, torch.Generator()), 400)
        verdict = _judge(process, tolerance)
        assert verdict.kind == "non-convex"
        ends = verdict.extremes
        for width in (ends.smallest - ends.smallest_lower_bound, ends.largest_upper_bound - ends.largest):
            assert tolerance is None or width <= tolerance * (ends.largest - ends.smallest) * (1 + 1e-6)
        steps.append(verdict.steps)
    assert steps == sorted(set(steps))


def test_a_dense_matrix_can_be_judged() -> None:
    for value, kind in ((-0.5, "non-convex"), (0.5, "no-negative-curvature")):
        operator = Dense(torch.diag(torch.tensor([value, 1.0, 2.0])))
        process = Lanczos(operator, random_unit_vector(operator, torch.Generator()), 3)
        assert _judge(process).kind == kind


def test_the_floor_and_the_confidence_are_what_was_asked_for() -> None:
    assert steps_to_resolve(10**6, 1e-4, 0.999) > 3 * steps_to_resolve(10**6, 1e-3, 0.999)
    assert steps_to_resolve(10**6, 1e-3, 0.999999) > steps_to_resolve(10**6, 1e-3, 0.999)
    objective = _Quadratic(torch.diag(torch.linspace(0, 1, 500).double())).objective()
    coarse = cl.convexity_verdict(objective, floor=1e-1, confidence=0.9)
    assert coarse.kind == "no-negative-curvature"
    assert (coarse.floor, coarse.confidence) == (0.1, 0.9)
    assert "confidence 90\N{NO-BREAK SPACE}%" in coarse.summary()
    assert coarse.lower_bound >= -0.1
    assert coarse.steps < cl.convexity_verdict(objective).steps


def test_a_positive_bound_is_told_as_such() -> None:
    verdict = cl.convexity_verdict(_Quadratic(torch.diag(torch.linspace(1, 2, 30).double())).objective())
    assert 0 < verdict.lower_bound <= 1
    assert verdict.summary().startswith(
        f"No curvature below {number(verdict.lower_bound)} with confidence 99.9\N{NO-BREAK SPACE}%"
    )


def test_what_was_spent_is_charged_including_the_checks() -> None:
    objective = _Quadratic(torch.diag(torch.linspace(1, 2, 30).double())).objective()
    verdict = cl.convexity_verdict(objective)
    # The Krylov run, both ends and a random vector for the asymmetry, and the recomputations of the smallest.
    assert verdict.effort.products == verdict.steps + 3 + 5
    # Two more products and a gradient check the products, two gradients the loss.
    assert objective.cost.hessian_products == verdict.effort.products + 2
    assert verdict.effort.gradient_equivalents == 2 * verdict.effort.products + 5 + 2
    assert verdict.extremes.effort.products == verdict.steps + 2
    assert (objective.cost.gradients, objective.cost.values) == (3, 0)


def test_verdicts_can_be_repeated_and_not_be_changed() -> None:
    objective = _Quadratic(random_matrix("normal", 0, least=40)).objective()
    first, second = cl.convexity_verdict(objective, seed=3), cl.convexity_verdict(objective, seed=3)
    assert first.curvature == second.curvature
    assert first.witness is not None
    assert torch.equal(first.witness, second.witness)
    assert first.rounding_floor == second.rounding_floor
    with pytest.raises(FrozenInstanceError):
        first.kind = "unresolved"


def test_a_loss_that_is_not_finite_is_a_failure() -> None:
    matrix = torch.eye(4).double()
    matrix[1, 2] = math.nan
    with pytest.raises(FailureError, match="not finite"):
        cl.convexity_verdict(_Quadratic(matrix).objective())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": 0}, "floor"),
        ({"floor": 1}, "floor"),
        ({"floor": math.nan}, "floor"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": -0.1}, "confidence"),
    ],
)
def test_misuse_is_refused_before_any_product(options: dict[str, float], message: str) -> None:
    objective = _Quadratic(torch.eye(3)).objective()
    with pytest.raises(MisuseError, match=message):
        cl.convexity_verdict(objective, **options)
    assert objective.cost == cl.Cost()

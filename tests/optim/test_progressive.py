"""L-BFGS on a growing sample, against gradients of single examples by autograd and against L-BFGS on all."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.optim import LBFGS, ProgressiveLBFGS

N, SIZE = 320, 16


class Examples:
    """Noisy values of a tanh unit, one function an example; counts what is evaluated."""

    def __init__(self, noise: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(N, 4, generator=generator, dtype=torch.float64)
        self.values = torch.tanh(self.inputs.sum(dim=1)) + noise * torch.randn(
            N, generator=generator, dtype=torch.float64
        )
        self.start = torch.randn(5, generator=generator, dtype=torch.float64)
        self.seen: list[int] = []

    def losses(self, x: Tensor, rows: Tensor) -> Tensor:
        return (torch.tanh(self.inputs[rows] @ x[:4]) * x[4] - self.values[rows]).square()

    def loss(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.losses(x, rows).mean()

    def closure(self, x: nn.Parameter) -> Any:
        def closure(rows: Tensor) -> Tensor:
            self.seen.append(len(rows))
            x.grad = None
            loss = self.loss(x, rows)
            loss.backward()
            return loss

        return closure


def begin(examples: Examples, **options: Any) -> tuple[nn.Parameter, ProgressiveLBFGS]:
    x = nn.Parameter(examples.start.clone())
    settings: dict[str, Any] = {"examples": N, "sample_size": SIZE, "held_out": 0} | options
    return x, ProgressiveLBFGS([x], **settings)


def order(seed: int = 0) -> Tensor:
    return torch.randperm(N, generator=torch.Generator().manual_seed(seed))


def test_all_examples_from_the_start_is_plain_lbfgs() -> None:
    examples = Examples()
    x, optimiser = begin(examples, sample_size=N)
    other = nn.Parameter(examples.start.clone())
    plain = LBFGS([other], history=100, self_scaled=False)

    def closure() -> Tensor:
        other.grad = None
        loss = examples.loss(other, torch.arange(N))
        loss.backward()
        return loss

    for _ in range(12):
        optimiser.step(examples.closure(x))
        plain.step(closure)
        # Sums in another order: twelve steps of relative error 1e-15, amplified by condition numbers of some 100.
        torch.testing.assert_close(x.detach(), other.detach(), rtol=1e-11, atol=0.0)
        assert optimiser.report.gradients == plain.report.gradients
        assert optimiser.known == pytest.approx(plain.known, rel=1e-8)


@pytest.mark.parametrize("theta", [0.3, 0.9, 3.0])
def test_size_after_the_first_step_is_that_of_the_formula(theta: float) -> None:
    examples = Examples()
    x, optimiser = begin(examples, theta=theta)
    before = x.detach().clone()
    optimiser.step(examples.closure(x))
    rows = order()[:SIZE]
    # B is γI + a matrix of rank two from the one pair; dense, by the update's textbook form.
    old, new = (torch.func.grad(examples.loss)(point, rows) for point in (before, x.detach()))
    s, y = x.detach() - before, new - old
    rho = 1.0 / (s @ y)
    v = torch.eye(5, dtype=torch.float64) - rho * torch.outer(y, s)
    b = v.T @ v * (s @ y) / (y @ y) + rho * torch.outer(s, s)
    single = torch.func.vmap(torch.func.grad(lambda x, row: examples.losses(x, row[None])[0]), (None, 0))(
        x.detach(), rows
    )
    products = single @ b @ b @ new
    allowed = (theta * (b @ new).square().sum()) ** 2
    wanted = 1.0 / (float(allowed / products.var()) + 1.0 / N)
    assert optimiser.sample_size == max(SIZE, math.ceil(wanted))
    assert (optimiser.sample_size > SIZE) == (theta < 0.5)


def test_growing_costs_the_gradient_of_what_is_added_alone() -> None:
    examples = Examples()
    x, optimiser = begin(examples)
    optimiser.step(examples.closure(x))
    optimiser.param_groups[0]["sample_size"] = 100
    examples.seen.clear()
    optimiser.step(examples.closure(x))
    assert examples.seen[0] == 100 - SIZE
    assert sum(examples.seen[1:]) == 100 * optimiser.report.gradients


def test_a_step_begins_with_loss_and_gradient_of_its_own_sample() -> None:
    examples = Examples()
    x, optimiser = begin(examples, theta=0.3)
    sizes = []
    for _ in range(15):
        # The report's figures are from the kept gradient of a sample that grew, in parts.
        at, size = x.detach().clone(), optimiser.sample_size
        loss = optimiser.step(examples.closure(x))
        value = examples.loss(at, order()[:size])
        gradient = torch.func.grad(examples.loss)(at, order()[:size])
        assert float(loss) == pytest.approx(float(value), rel=1e-12)
        assert optimiser.report.gradient_norm == pytest.approx(float(torch.linalg.vector_norm(gradient)), rel=1e-9)
        sizes.append(size)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2
    assert sizes[-1] > N // 2


def test_every_pair_is_of_one_sample() -> None:
    examples = Examples()
    x, optimiser = begin(examples, theta=0.3)
    points, sizes = [x.detach().clone()], []
    for _ in range(6):
        sizes.append(optimiser.sample_size)
        optimiser.step(examples.closure(x))
        points.append(x.detach().clone())
    assert len(set(sizes)) > 1
    stored = optimiser._memory
    for slot in range(5):
        rows = order()[: sizes[slot]]
        s = points[slot + 1] - points[slot]
        old, new = (torch.func.grad(examples.loss)(point, rows) for point in (points[slot], points[slot + 1]))
        unit = 1.0 / (s @ (new - old)).sqrt()
        torch.testing.assert_close(stored.s[slot], s * unit, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(stored.y[slot], (new - old) * unit, rtol=1e-7, atol=1e-9)


def test_it_ends_at_the_minimum_over_all_examples() -> None:
    examples = Examples()
    x, optimiser = begin(examples)
    for _ in range(60):
        optimiser.step(examples.closure(x))
    gradient = torch.func.grad(examples.loss)(x.detach(), torch.arange(N))
    assert torch.linalg.vector_norm(gradient) <= 1e-8


def test_a_search_that_fails_on_a_sample_goes_on_with_twice_as_many() -> None:
    examples = Examples()
    x, optimiser = begin(examples, sample_size=20, theta=1e100)  # The test never asks for more.
    for _ in range(40):
        optimiser.step(examples.closure(x))
        if optimiser.sample_size > 20:
            break
    assert optimiser.sample_size == 40
    assert optimiser.report.failed is None
    # Twenty examples have no slope left, to rounding; the search on them moved nothing.
    assert optimiser.report.gradients > 1


@pytest.mark.parametrize("limit", [1, 4, 12, 40])
def test_a_limit_holds_however_often_the_sample_doubles(limit: int) -> None:
    examples = Examples()
    x, optimiser = begin(examples, sample_size=20, theta=1e100)
    doubled = False
    for _ in range(60):
        size = optimiser.sample_size
        optimiser.param_groups[0]["max_evaluations"] = limit
        examples.seen.clear()
        optimiser.step(examples.closure(x))
        # One more evaluation opens a step that has no gradient to reuse, as in every flat optimiser.
        assert sum(examples.seen) <= (limit + 1) * size + size // 2  # What an earlier step has doubled it by.
        assert optimiser.param_groups[0]["max_evaluations"] == limit
        doubled |= optimiser.sample_size > size
    assert doubled


def test_what_it_knows_is_of_all_examples_or_nothing() -> None:
    examples = Examples()
    x, optimiser = begin(examples)
    assert optimiser.known is None
    optimiser.step(examples.closure(x))
    assert optimiser.known is None
    optimiser.param_groups[0]["sample_size"] = N
    optimiser.step(examples.closure(x))
    value = examples.loss(x.detach(), torch.arange(N))
    assert optimiser.known is not None
    assert optimiser.known[0] == pytest.approx(float(value), rel=1e-12)


def test_a_stored_state_goes_on_to_the_same_bits() -> None:
    examples = Examples()
    x, optimiser = begin(examples, theta=0.3)
    for _ in range(4):
        optimiser.step(examples.closure(x))
    file = io.BytesIO()
    torch.save({"x": x.detach(), "optimiser": optimiser.state_dict()}, file)
    expected = []
    for _ in range(6):
        optimiser.step(examples.closure(x))
        expected.append((x.detach().clone(), optimiser.sample_size))
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    x, optimiser = begin(examples, theta=0.3)
    with torch.no_grad():
        x.copy_(stored["x"])
    optimiser.load_state_dict(stored["optimiser"])
    for point, size in expected:
        optimiser.step(examples.closure(x))
        assert torch.equal(x.detach(), point)
        assert optimiser.sample_size == size


def test_a_smaller_sample_starts_afresh_and_changed_weights_are_evaluated() -> None:
    examples = Examples()
    x, optimiser = begin(examples, sample_size=64)
    for _ in range(3):
        optimiser.step(examples.closure(x))
    optimiser.param_groups[0]["sample_size"] = 32
    at = x.detach().clone()
    loss = optimiser.step(examples.closure(x))
    assert float(loss) == pytest.approx(float(examples.loss(at, order()[:32])), rel=1e-12)
    with torch.no_grad():
        x.add_(0.1)
    optimiser.step(examples.closure(x))
    assert optimiser.report.changed == "the weights were changed between steps"


def test_an_exception_while_the_sample_grows_loses_nothing() -> None:
    examples = Examples()
    x, optimiser = begin(examples)
    optimiser.step(examples.closure(x))
    optimiser.param_groups[0]["sample_size"] = 100
    at = x.detach().clone()

    def interrupted(rows: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimiser.step(interrupted)
    assert torch.equal(x.detach(), at)
    loss = optimiser.step(examples.closure(x))
    assert float(loss) == pytest.approx(float(examples.loss(at, order()[:100])), rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 0}, "expected examples to be a whole number from 1, got 0"),
        ({"sample_size": 1.5}, "expected sample_size to be a whole number from 1, got 1.5"),
        ({"theta": 0.0}, "expected theta to be a positive number, got 0.0"),
        ({"reuse": False}, "leave `reuse` out"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        ProgressiveLBFGS([nn.Parameter(torch.ones(2))], **{"examples": N} | options)


def test_a_step_without_a_closure() -> None:
    _, optimiser = begin(Examples())
    with pytest.raises(MisuseError, match="step needs a closure that takes the rows of examples, got None"):
        optimiser.step(None)  # type: ignore[arg-type]


class Memorised(Examples):
    """Forty weights on eight numbers of noise beside eight that count: sixteen examples are learnt by heart."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(N, 40, generator=generator, dtype=torch.float64)
        self.values = self.inputs[:, :8].sum(dim=1) + torch.randn(N, generator=generator, dtype=torch.float64)
        self.start = torch.linalg.lstsq(self.inputs, self.values[:, None]).solution[:, 0]

    def losses(self, x: Tensor, rows: Tensor) -> Tensor:
        return (self.inputs[rows] @ x - self.values[rows]).square()


HELD_OUT = 64


def test_the_report_has_the_loss_of_what_is_held_out() -> None:
    examples = Examples()
    x, optimiser = begin(examples, held_out=HELD_OUT)
    optimiser.step(examples.closure(x))
    held_out = examples.loss(x.detach(), order()[-HELD_OUT:])
    assert optimiser.report.held_out_loss == pytest.approx(float(held_out), rel=1e-12)
    # Once at the start and once at the end, beside the sample.
    assert examples.seen.count(HELD_OUT) == 2
    x, optimiser = begin(examples, sample_size=N)
    optimiser.step(examples.closure(x))
    assert optimiser.report.held_out_loss is None


def test_a_step_that_raises_the_whole_loss_is_taken_back_and_the_sample_doubles() -> None:
    # From the solution of the whole set steps on a sample lead away.
    examples = Memorised()
    x, optimiser = begin(examples, held_out=HELD_OUT, theta=100.0, max_evaluations=13)
    for _ in range(30):
        before, size = x.detach().clone(), optimiser.sample_size
        optimiser.step(examples.closure(x))
        if optimiser.report.failed is not None:
            break
    assert "held out the loss went to" in optimiser.report.failed
    assert optimiser.report.state == "stuck"
    assert torch.equal(x, before)
    assert optimiser.sample_size == 2 * size


def test_the_whole_loss_ends_below_where_it_began() -> None:
    examples = Memorised()
    examples.start = examples.start + 0.3
    x, optimiser = begin(examples, held_out=HELD_OUT, theta=100.0)
    before = float(examples.loss(x.detach(), torch.arange(N)))
    whole = []
    for _ in range(60):
        optimiser.step(examples.closure(x))
        whole.append(float(examples.loss(x.detach(), torch.arange(N))))
    assert max(whole) < before
    assert optimiser.sample_size > SIZE
    # Without what is held out the first sample is learnt by heart, and the rest is lost.
    y, alone = begin(examples, theta=100.0)
    for _ in range(60):
        alone.step(examples.closure(y))
    assert float(examples.loss(y.detach(), torch.arange(N))) > whole[-1]


def test_what_is_held_out_is_remembered_by_the_state() -> None:
    examples = Memorised()
    examples.start = examples.start + 0.3
    x, optimiser = begin(examples, held_out=HELD_OUT)
    for _ in range(5):
        optimiser.step(examples.closure(x))
    other_x, other = begin(examples, held_out=HELD_OUT)
    with torch.no_grad():
        other_x.copy_(x)
    other.load_state_dict(optimiser.state_dict())
    for _ in range(10):
        optimiser.step(examples.closure(x))
        other.step(examples.closure(other_x))
        assert torch.equal(x, other_x)
        assert optimiser.report.held_out_loss == other.report.held_out_loss

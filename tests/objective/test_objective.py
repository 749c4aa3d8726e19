"""The objective against dense references over all examples at once, and what it must leave alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import convexlab as cl
from convexlab.errors import ConvexLabError, MisuseError
from tests.counting import Counting
from tests.dense import as_vector, derivatives, gauss_newton, loss_of

# A sum of N terms in float64 is off by at most N ε times the sum of their sizes, N below 100 here; the terms, outputs
# of three-layer networks and their derivatives, are off by some 10 ε each. Sizes are of the order of 1 to 10.
EXACT = {"rtol": 1e-11, "atol": 1e-12}


def _cut(x: Tensor, y: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def _classifier(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes)).double()


def _data(rows: int, classes: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (rows,), generator=generator)


# However the data are cut.

cuts = st.lists(st.integers(1, 7), min_size=1, max_size=5)
micro_batches = st.one_of(st.none(), st.just("auto"), st.integers(1, 9))


@settings(deadline=None, max_examples=25)
@given(sizes=cuts, micro_batch=micro_batches, seed=st.integers(0, 100))
def test_whatever_the_batches_everything_is_that_of_all_examples_at_once(
    sizes: list[int], micro_batch: Any, seed: int
) -> None:
    model, criterion = _classifier(seed), nn.CrossEntropyLoss()
    x, y = _data(sum(sizes), seed=seed)
    names = [name for name, _ in model.named_parameters()]
    value, gradient, hessian = derivatives(loss_of(model, criterion, x, y, names), as_vector(model, names))
    v = torch.randn(len(gradient), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    objective = cl.Objective(model, _cut(x, y, sizes), criterion, micro_batch=micro_batch)
    assert objective.value() == pytest.approx(float(value), rel=1e-13)
    assert objective.value_and_gradient()[0] == pytest.approx(float(value), rel=1e-13)
    torch.testing.assert_close(objective.gradient(), gradient, **EXACT)
    torch.testing.assert_close(objective.hvp(v[:, 0]), hessian @ v[:, 0], **EXACT)
    torch.testing.assert_close(objective.hessian() @ v, hessian @ v, **EXACT)
    expected = gauss_newton(model, criterion, x, y, names)
    torch.testing.assert_close(objective.ggn() @ v, expected @ v, **EXACT)


CRITERIA: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "class weights": (lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.25]).double()), lambda y: y),
    "ignored targets": (nn.CrossEntropyLoss, lambda y: torch.where(torch.arange(len(y)) % 4 == 0, -100, y)),
    "both": (
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.0]).double(), ignore_index=0),
        lambda y: y,
    ),
    "label smoothing": (
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 2.0]).double(), label_smoothing=0.2),
        lambda y: y,
    ),
    "class probabilities": (
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 2.0]).double()),
        lambda y: torch.softmax(functional.one_hot(y, 3).double(), dim=1),
    ),
    "likelihood": (lambda: nn.NLLLoss(weight=torch.tensor([1.0, 5.0, 2.0]).double()), lambda y: y),
    "mean squared error": (nn.MSELoss, lambda y: functional.one_hot(y, 3).double()),
    "batch mean": (lambda: nn.KLDivLoss(reduction="batchmean"), lambda y: functional.one_hot(y, 3).double()),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_the_mean_is_the_one_that_torchs_criterion_defines_on_all_examples(name: str) -> None:
    build, prepare = CRITERIA[name]
    criterion, model = build(), _classifier()
    x, y = _data(11)
    y = prepare(y)
    names = [name for name, _ in model.named_parameters()]
    value, gradient, hessian = derivatives(loss_of(model, criterion, x, y, names), as_vector(model, names))
    expected = gauss_newton(model, criterion, x, y, names)
    v = torch.randn(len(gradient), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for micro_batch in (None, 1, 2, 5):
        # The first batch has but ignored targets in one of the cases: its own mean is 0 / 0.
        objective = cl.Objective(model, _cut(x, y, [1, 6, 4]), criterion, micro_batch=micro_batch)
        assert objective.value() == pytest.approx(float(value), rel=1e-13)
        torch.testing.assert_close(objective.gradient(), gradient, **EXACT)
        torch.testing.assert_close(objective.hvp(v), hessian @ v, **EXACT)
        torch.testing.assert_close(objective.ggn() @ v, expected @ v, **EXACT)


def test_a_criterion_for_every_pixel_counts_the_pixels_that_are_not_ignored() -> None:
    torch.manual_seed(0)
    model, criterion = nn.Conv2d(1, 3, 1).double(), nn.CrossEntropyLoss()
    x, y = torch.randn(5, 1, 2, 3).double(), torch.randint(0, 3, (5, 2, 3))
    y[0] = -100
    y[1, 0] = -100
    expected = float(criterion(model(x), y).detach())
    for micro_batch in (1, 2, 5):
        objective = cl.Objective(model, [(x, y)], criterion, micro_batch=micro_batch)
        assert objective.value() == pytest.approx(expected, rel=1e-13)


def test_batches_may_be_weighted_by_anything() -> None:
    model = _classifier()
    batches = [{"x": _data(rows, seed=rows)[0], "tokens": tokens} for rows, tokens in ((3, 5), (4, 1), (2, 0))]

    def loss(module: nn.Module, batch: dict[str, Any]) -> Tensor:
        return module(batch["x"]).square().mean()

    objective = cl.Objective.from_batch_loss(model, batches, loss, weight=lambda batch: batch["tokens"])
    means = [float(loss(model, batch).detach()) for batch in batches]
    assert objective.value() == pytest.approx((5 * means[0] + means[1]) / 6, rel=1e-13)
    rows = cl.Objective.from_batch_loss(model, batches, loss)
    assert rows.value() == pytest.approx((3 * means[0] + 4 * means[1] + 2 * means[2]) / 9, rel=1e-13)


def test_a_batch_whose_parts_are_not_of_one_length_is_never_cut() -> None:
    sizes = []

    def loss(module: nn.Module, batch: dict[str, Any]) -> Tensor:
        sizes.append([len(batch["inside"]), len(batch["edge"])])
        return module(batch["inside"]).square().mean() + module(batch["edge"]).square().mean()

    batch = {"inside": _data(5)[0], "edge": _data(3)[0], "note": "whatever"}
    cl.Objective.from_batch_loss(_classifier(), [batch], loss, micro_batch=1).value()
    cl.Objective.from_batch_loss(_classifier(), [{"inside": batch["inside"], "edge": batch["inside"]}], loss).value()
    assert sizes == [[5, 3], [5, 5]]


# Every kind of model.


@dataclass
class Case:
    model: nn.Module
    x: Tensor
    y: Tensor
    criterion: nn.Module
    expected: list[str] | None = None
    """The parameters that are selected by default, where those are not all."""


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.body, self.after = nn.Linear(2, 2), nn.Linear(4, 3), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.body(x))


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))[:, :3]


class _Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.register_buffer("scales", torch.tensor([0.5, 1.5, -2.0], dtype=torch.float16))
        self.register_buffer("index", torch.tensor([2, 0, 1]))
        self.register_buffer("fleeting", torch.tensor(3.0), persistent=False)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.scales.mul_(self.calls)  # The first call multiplies by 1.
        return torch.tanh(self.body(x) * self.scales * self.fleeting)[:, self.index]


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, None, :] * torch.tensor([[1.0], [2.0], [-1.0]], dtype=x.dtype)
        q, k, v = self.projection(tokens).view(len(x), 3, 3, 4).unbind(dim=2)
        return self.head(functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0].mean(dim=1))


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 3, dropout=0.3, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, 4)), layer, nn.Flatten(), nn.Linear(4, 3))


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    return model


def _normalised() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3))
    model(torch.randn(20, 4))  # Running statistics that are not those of the start.
    return model


def _convolution() -> nn.Module:
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )
    return model.to(memory_format=torch.channels_last)


class _Exponential(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.exp()


def _parametrised() -> nn.Module:
    # Not weight_norm: its second derivative in torch 2.14 is wrong, and not symmetric.
    model = nn.Linear(4, 3)
    nn.utils.parametrize.register_parametrization(model, "weight", _Exponential(), unsafe=True)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "linear": lambda: nn.Linear(4, 3),
    "unused": _Unused,
    "tied": _Tied,
    "buffers": _Buffers,
    "frozen": _frozen,
    "batch norm and dropout": _normalised,
    "attention": _Attention,
    "transformer encoder": _encoder,
    "convolution": _convolution,
    "parametrised": _parametrised,
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[request.param]().double()  # In training mode, as a trainer leaves it.
    if isinstance(model, _Buffers):
        model.scales = model.scales.to(torch.float16)
    return model


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Check that nothing that can be seen from outside has changed, bit for bit."""
    for number, module in enumerate(model.modules()):
        module.training = number % 3 != 1
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = None if number % 2 else torch.full_like(parameter, number)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict(keep_vars=True).items()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    versions = {name: parameter._version for name, parameter in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    gradients = [(parameter.grad, None if parameter.grad is None else parameter.grad.clone()) for parameter in
                 model.parameters()]  # fmt: skip
    attributes = [sorted(module.__dict__) for module in model.modules()]
    random_state = torch.get_rng_state()
    enabled = torch.is_grad_enabled()
    yield
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled() is enabled
    assert [module.training for module in model.modules()] == modes
    assert [sorted(module.__dict__) for module in model.modules()] == attributes
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert torch.equal(tensor, tensors[name]), name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
        assert buffer.dtype == buffers[name].dtype
    assert {name: parameter._version for name, parameter in model.named_parameters()} == versions
    for parameter, (gradient, content) in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert gradient is None or torch.equal(gradient, content)


def test_value_gradient_and_products_are_those_of_autograd_and_leave_no_trace(model: nn.Module) -> None:
    x, y = _data(9)
    criterion = nn.CrossEntropyLoss()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    training = [module.training for module in model.modules()]
    model.eval()
    value, gradient, hessian = derivatives(loss_of(model, criterion, x, y, names), as_vector(model, names))
    for module, mode in zip(model.modules(), training, strict=True):
        module.training = mode

    with _untouched(model):
        objective = cl.Objective(model, _cut(x, y, [4, 5]), criterion, micro_batch=2)
        assert objective.parameter_names == tuple(names)
        assert objective.size == len(gradient)
        assert objective.value() == pytest.approx(float(value), rel=1e-13)
        torch.testing.assert_close(objective.gradient(), gradient, **EXACT)
        operator = objective.hessian()
        identity = torch.eye(objective.size, dtype=torch.float64)
        torch.testing.assert_close(operator @ identity, hessian, **EXACT)
        v = torch.randn(objective.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for product in (operator @ v, objective.hvp(v)):  # From graphs that were kept, and from new ones.
            torch.testing.assert_close(product, hessian @ v, **EXACT)
        objective.ggn().matvec(v)
        objective.residual().matvec(v)


def test_parameters_that_the_loss_does_not_depend_on_have_zero_derivatives() -> None:
    model = _Unused().double()
    x, y = _data(5)
    objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), params=["before.*", "after"])
    assert objective.size == 8
    value, gradient = objective.value_and_gradient()
    assert value == pytest.approx(float(functional.cross_entropy(model(x), y).detach()), rel=1e-13)
    zero = torch.zeros(8, dtype=torch.float64)
    assert torch.equal(gradient, zero)
    assert torch.equal(objective.hvp(torch.ones(8)), zero)
    assert torch.equal(objective.ggn() @ torch.ones(8), zero)


def test_a_batch_that_does_not_reach_the_parameters_counts_with_zero_derivatives() -> None:
    model = nn.Linear(4, 1).double()
    x = _data(6)[0]

    def loss(module: nn.Module, batch: tuple[Tensor, int]) -> Tensor:
        return module(batch[0]).square().mean() if batch[1] else batch[0].square().mean()

    objective = cl.Objective.from_batch_loss(model, [(x[:2], 0), (x[2:], 1)], loss)
    only = cl.Objective.from_batch_loss(model, [(x[2:], 1)], loss)
    v = torch.ones(5)
    torch.testing.assert_close(objective.gradient(), only.gradient() * 4 / 6, **EXACT)
    torch.testing.assert_close(objective.hvp(v), only.hvp(v) * 4 / 6, **EXACT)


def test_a_physics_informed_loss_that_differentiates_in_its_input() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def residual(u: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
        t = t.requires_grad_()
        (du,) = torch.autograd.grad(u(t).sum(), t, create_graph=True)
        return (du + 2 * u(t)).square().mean()

    def loss(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return residual(module, batch["t"]) + (module(torch.zeros_like(batch["t"][:1])) - 1).square().sum()

    t = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    objective = cl.Objective.from_batch_loss(model, [{"t": t[:3]}, {"t": t[3:]}], loss)

    # The same by hand: u = b + Σ a tanh(w t + c), du/dt = Σ a w (1 - tanh²).
    def by_hand(theta: Tensor) -> Tensor:
        w, c, a, b = theta.split([6, 6, 6, 1])
        hidden = torch.tanh(t * w + c)
        u, du = hidden @ a + b, (1 - hidden**2) @ (a * w)
        boundary = torch.tanh(c) @ a + b - 1
        return (du + 2 * u).square().mean() + boundary.square().sum()

    names = [name for name, _ in model.named_parameters()]
    value, gradient, hessian = derivatives(by_hand, as_vector(model, names))
    assert objective.value() == pytest.approx(float(value), rel=1e-13)
    torch.testing.assert_close(objective.gradient(), gradient, **EXACT)
    for product in (objective.hessian() @ torch.eye(19), objective.hvp(torch.eye(19))):
        torch.testing.assert_close(product, hessian, **EXACT)


def test_a_loss_that_draws_at_random_is_one_function() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def loss(module: nn.Module, batch: tuple[Tensor]) -> Tensor:
        points = torch.rand(5, 1, dtype=torch.float64)
        return functional.dropout(module(points) - batch[0].mean(), 0.5, training=True).square().mean()

    batches = [(torch.full((rows, 1), float(rows)).double(),) for rows in (2, 3, 4)]
    v = torch.randn(13, dtype=torch.float64)
    products = []
    for budget in (None, 0, 5_000, 10_000):
        objective = cl.Objective.from_batch_loss(model, batches, loss, memory_budget=budget)
        operator = objective.hessian()
        products += [operator @ v, operator @ v, objective.hvp(v)]
    assert all(torch.equal(product, products[0]) for product in products)
    theta = objective.flat_parameters()
    assert objective.value() == objective.value() == objective.value_and_gradient()[0]
    # A central difference of step h is off by h²/6 times a third derivative of the order of 1, and by ε/h.
    step = 1e-5
    values = []
    for sign in (1, -1):
        with objective.at(theta + sign * step * v):
            values.append(objective.value())
    slope = (values[0] - values[1]) / (2 * step)
    assert slope == pytest.approx(float(objective.gradient() @ v), rel=1e-7, abs=1e-7)


def test_batches_draw_differently() -> None:
    drawn: list[float] = []

    def loss(module: nn.Module, batch: tuple[Tensor]) -> Tensor:
        drawn.append(float(torch.rand(())))
        return module(batch[0]).mean()

    batches = [(torch.ones(1, 1),)] * 4
    cl.Objective.from_batch_loss(nn.Linear(1, 1), batches, loss).value()
    assert len(set(drawn)) == 4


# Nothing is left changed.

EVALUATIONS: dict[str, Callable[[cl.Objective], object]] = {
    "value": lambda objective: objective.value(),
    "value and gradient": lambda objective: objective.value_and_gradient(),
    "new graphs": lambda objective: objective.hvp(torch.ones(objective.size)),
    "kept graphs": lambda objective: objective.hessian() @ torch.ones(objective.size),
    "gauss-newton": lambda objective: objective.ggn() @ torch.ones(objective.size),
    "at": lambda objective: _value_at(objective, torch.zeros(objective.size)),
    "verdict": lambda objective: cl.convexity_verdict(objective),
    "trace": lambda objective: cl.trace(objective.hessian(), samples=3),
}


def _value_at(objective: cl.Objective, theta: Tensor) -> float:
    with objective.at(theta):
        return objective.value()


class _Fuse:
    """Something that raises when it is used for the n-th time."""

    def __init__(self, error: BaseException, uses: int) -> None:
        self.error, self.uses = error, uses

    def burn(self) -> None:
        self.uses -= 1
        if self.uses == 0:
            raise self.error


class _Fused(nn.Module):
    def __init__(self, fuse: _Fuse) -> None:
        super().__init__()
        self.body, self.norm, self.drop = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.fuse = fuse

    def forward(self, x: Tensor) -> Tensor:
        out = self.drop(self.norm(self.body(x)))
        torch.rand(3)
        self.fuse.burn()
        return out


@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.parametrize("place", ["model", "data", "criterion"])
@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_an_exception_leaves_everything_as_it_was(evaluation: str, place: str, error: BaseException) -> None:
    fuse, unused = _Fuse(error, 2), _Fuse(error, -1)
    model = _Fused(fuse if place == "model" else unused)
    x, y = _data(6)
    x = x.float()

    class Batches:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in _cut(x, y, [2, 2, 2]):
                torch.rand(3)
                if place == "data":
                    fuse.burn()
                yield batch

    def criterion(output: Tensor, target: Tensor) -> Tensor:
        if place == "criterion":
            fuse.burn()
        return functional.cross_entropy(output, target)

    if evaluation == "at":  # Which changes the parameters and back, so that their versions tell nothing.
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with pytest.raises(type(error)):
            _value_at(cl.Objective(model, Batches(), criterion), torch.zeros(21))
        assert all(map(torch.equal, before, model.parameters()))
        return
    with _untouched(model):
        objective = cl.Objective(model, Batches(), criterion)
        with pytest.raises(type(error)):
            EVALUATIONS[evaluation](objective)
        error.__traceback__ = None  # What was left suspended ends now at the latest.
        assert objective.cost == cl.Cost()


def test_a_product_that_was_interrupted_is_right_when_it_is_made_again() -> None:
    fuse = _Fuse(KeyboardInterrupt(), 4)  # The first use measures the memory of a graph.
    torch.manual_seed(0)
    model = nn.Sequential(_Fused(fuse), nn.Tanh()).double()
    x, y = _data(8)
    objective = cl.Objective(model, _cut(x, y, [2, 2, 2, 2]), nn.CrossEntropyLoss())
    operator, v = objective.hessian(), torch.ones(objective.size)
    with pytest.raises(KeyboardInterrupt):
        operator.matvec(v)
    torch.testing.assert_close(operator.matvec(v), objective.hvp(v), **EXACT)
    torch.testing.assert_close(operator.matvec(v), objective.hvp(v), **EXACT)


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_a_shuffling_loader_draws_as_if_nothing_had_been_evaluated(evaluation: str) -> None:
    model = _classifier()
    x, y = _data(10)
    random_state = torch.get_rng_state()
    loader = DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True)
    EVALUATIONS[evaluation](cl.Objective(model, loader, nn.CrossEntropyLoss()))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_shuffling_loader_comes_in_the_same_order_every_time() -> None:
    model = _classifier()
    x, y = _data(10)
    loader = DataLoader(TensorDataset(x, y), batch_size=3, shuffle=True)
    ordered = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss())
    v = torch.randn(ordered.size, dtype=torch.float64)
    for budget in (0, 8_000, None):
        operator = cl.Objective(model, loader, nn.CrossEntropyLoss(), memory_budget=budget).hessian()
        for _ in range(3):
            torch.testing.assert_close(operator @ v, ordered.hvp(v), **EXACT)


@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_the_surroundings_do_not_matter(context: Callable[[], Any]) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = _data(6)
    batches = _cut(x.float(), y, [2, 4])
    objective = cl.Objective(model, batches, nn.CrossEntropyLoss())
    v = torch.randn(objective.size)
    expected = objective.value(), objective.gradient(), objective.hvp(v), objective.ggn() @ v
    with context():
        results = objective.value(), objective.gradient(), objective.hvp(v), objective.ggn() @ v
    assert results[0] == expected[0]
    assert all(map(torch.equal, results[1:], expected[1:]))


def test_dropout_is_off_and_running_statistics_are_used_and_kept() -> None:
    torch.manual_seed(0)
    model = _normalised()
    x, y = _data(12)
    x = x.float()
    model.eval()
    expected = float(functional.cross_entropy(model(x), y).detach())
    model.train()
    with _untouched(model):
        # Rounding of a mean of twelve float32 losses of the order of 1.
        assert cl.Objective(model, _cut(x, y, [5, 7]), nn.CrossEntropyLoss()).value() == pytest.approx(
            expected, rel=1e-6
        )


# Device and precision.


def test_a_float32_model_can_be_evaluated_in_float64() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0]))
    x, y = _data(8)
    v = torch.randn(53, dtype=torch.float64)
    with _untouched(model):
        objective = cl.Objective(model, _cut(x.float(), y, [3, 5]), criterion, dtype=torch.float64)
        value, gradient = objective.value_and_gradient()
        product, gauss = objective.hessian() @ v, objective.ggn() @ v
    assert criterion.weight.dtype == torch.float32
    assert gradient.dtype == product.dtype == gauss.dtype == objective.flat_parameters().dtype == torch.float64
    precise = cl.Objective(model.double(), [(x.float().double(), y)], criterion.double())
    assert value == pytest.approx(precise.value(), rel=1e-13)
    torch.testing.assert_close(gradient, precise.gradient(), **EXACT)
    torch.testing.assert_close(product, precise.hvp(v), **EXACT)
    torch.testing.assert_close(gauss, precise.ggn() @ v, **EXACT)


def test_sums_are_kept_in_float64() -> None:
    # 2 ** 12 micro-batches of losses that a float32 sum rounds by up to 2 ** 12 ε / 2 = 2e-4 in all.
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    x = torch.rand(4096, 1, generator=torch.Generator().manual_seed(0)) + 1
    objective = cl.Objective(model, [(x, torch.zeros_like(x))], nn.MSELoss(), micro_batch=1)
    squares = (x * x).double()  # Rounded once, as each loss is.
    assert objective.value() == pytest.approx(float(squares.mean()), rel=1e-14)
    # The gradient of one loss is 2 x², exact but for that rounding; it is rounded once more at the end.
    assert float(objective.gradient()) == pytest.approx(
        float(2 * squares.mean()), rel=2 * torch.finfo(torch.float32).eps
    )


@pytest.mark.gpu
def test_an_accelerator_finds_what_the_cpu_finds() -> None:
    device = torch.accelerator.current_accelerator()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = _data(40)
    batches = _cut(x.float(), y, [15, 25])
    here = cl.Objective(model, batches, nn.CrossEntropyLoss())
    there = cl.Objective(model, batches, nn.CrossEntropyLoss(), device=device)
    v = torch.randn(here.size)
    # Sums of up to 40 products in float32, of terms below 10.
    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    with _untouched(model):
        assert there.value() == pytest.approx(here.value(), rel=1e-5)
        torch.testing.assert_close(there.gradient().cpu(), here.gradient(), **tolerance)
        torch.testing.assert_close((there.hessian() @ v.to(device)).cpu(), here.hessian() @ v, **tolerance)
        torch.testing.assert_close((there.ggn() @ v.to(device)).cpu(), here.ggn() @ v, **tolerance)
    moved = cl.Objective(model.to(device), batches, nn.CrossEntropyLoss())
    random_state = torch.get_device_module(device).get_rng_state()
    assert moved.gradient().device.type == device.type
    verdicts = [cl.convexity_verdict(objective) for objective in (here, moved)]
    assert verdicts[0].kind == verdicts[1].kind
    assert verdicts[1].largest == pytest.approx(verdicts[0].largest, rel=1e-4)
    assert verdicts[1].curvature == pytest.approx(verdicts[0].curvature, abs=1e-4 * verdicts[0].largest)
    assert torch.equal(torch.get_device_module(device).get_rng_state(), random_state)


# Where it is evaluated.


def test_at_moves_the_model_and_moves_it_back() -> None:
    model = _classifier()
    x, y = _data(6)
    objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), params="0.*")
    theta = objective.flat_parameters()
    elsewhere, further = torch.zeros_like(theta), torch.ones_like(theta)
    with objective.at(elsewhere) as there:
        assert there is objective
        assert torch.equal(model[0].weight, torch.zeros(5, 4))
        at_zero = objective.value()
        with objective.at(further):
            assert objective.value() != at_zero
        assert objective.value() == at_zero
    assert torch.equal(objective.flat_parameters(), theta)
    with pytest.raises(ZeroDivisionError), objective.at(elsewhere):
        raise ZeroDivisionError
    assert torch.equal(objective.flat_parameters(), theta)
    elsewhere += 1
    theta += 1
    assert not torch.equal(objective.flat_parameters(), theta)  # It was a copy.


def test_write_moves_the_model_and_nothing_but_the_selected_parameters() -> None:
    model = _classifier().float()
    x, y = _data(6)
    objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), params=["2.weight", "0.bias"], dtype=torch.float64)
    others = [model[0].weight.clone(), model[2].bias.clone()]
    theta = torch.linspace(-1, 1, objective.size, dtype=torch.float64, requires_grad=True)
    objective.write(theta)
    assert torch.equal(model[0].bias, theta[:5].float())
    assert torch.equal(model[2].weight, theta[5:].float().view(3, 5))
    assert torch.equal(model[0].weight, others[0])
    assert torch.equal(model[2].bias, others[1])
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    with objective.at(torch.zeros(objective.size)):
        pass
    assert torch.equal(objective.flat_parameters(), theta.float().double())


@pytest.mark.parametrize("shape", [(), (42,), (44,), (43, 1), (1, 43)])
def test_write_refuses_another_shape_before_it_moves_anything(shape: tuple[int, ...]) -> None:
    model = _classifier()
    objective = cl.Objective(model, [_data(4)], nn.CrossEntropyLoss())
    with _untouched(model), pytest.raises(MisuseError, match=r"shape \(43,\)"):
        objective.write(torch.ones(shape))


def test_at_keeps_the_layout_in_memory() -> None:
    model = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
    objective = cl.Objective(model, [(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 3, 3))], nn.MSELoss())
    before = model.weight.detach().clone()
    theta = torch.arange(objective.size, dtype=torch.float32)
    with objective.at(theta):
        assert torch.equal(model.weight, theta[: model.weight.numel()].view(3, 2, 2, 2))
        assert torch.equal(objective.flat_parameters(), theta)
    assert torch.equal(model.weight, before)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("budget", [None, 0, 8_000])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "residual"])
def test_an_operator_stays_where_the_model_was_when_it_was_made(kind: str, budget: int | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = _data(9)
    objective = cl.Objective(model, _cut(x, y, [3, 3, 3]), nn.CrossEntropyLoss(), params="0.*", memory_budget=budget)
    operator, v = getattr(objective, kind)(), torch.ones(objective.size)
    first = operator @ v
    with torch.no_grad():
        for parameter in model.parameters():  # Those selected, and the others.
            parameter.mul_(2)
        model[1].running_mean.add_(1)
        model[1].running_var.mul_(3)
    torch.testing.assert_close(operator @ v, first, **EXACT)
    assert not torch.allclose(getattr(objective, kind)() @ v, first, rtol=1e-3)
    assert not torch.allclose(objective.hvp(v), first, rtol=1e-3)


def test_a_closure_sets_the_gradients_of_the_selected_parameters() -> None:
    model = _classifier()
    x, y = _data(6)
    objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), params=["2.weight", "0.bias"])
    stale = torch.full_like(model[2].bias, 7.0)
    model[2].bias.grad = stale
    value = objective.closure(backward=False)
    assert value.dtype == torch.float64
    assert float(value) == objective.value()
    assert model[2].weight.grad is None
    assert float(objective.closure()) == objective.value()
    assert model[2].bias.grad is stale
    expected = torch.autograd.grad(functional.cross_entropy(model(x), y), [model[0].bias, model[2].weight])
    torch.testing.assert_close(model[0].bias.grad, expected[0], **EXACT)
    torch.testing.assert_close(model[2].weight.grad, expected[1], **EXACT)
    before = objective.value()
    torch.optim.SGD([model[2].weight, model[0].bias], lr=1e-3).step(objective.closure)
    assert objective.value() < before


def test_the_gradient_of_a_float32_model_fits_it_when_evaluated_in_float64() -> None:
    model = nn.Linear(4, 3)
    x, y = _data(5)
    cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), dtype=torch.float64).closure()
    assert model.weight.grad.dtype == torch.float32


# What is kept, and what it costs.


@pytest.mark.parametrize("kind", ["hessian", "ggn", "residual"])
def test_graphs_are_kept_as_far_as_the_budget_goes(kind: str) -> None:
    model = Counting().double()
    x, y = _data(8)
    v = torch.ones(15)
    calls = {}
    for budget in (None, 10**9, 0, 1):
        objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), micro_batch=2, memory_budget=budget)
        operator = getattr(objective, kind)()
        operator @ v
        model.rows.clear()
        operator @ v
        operator @ torch.stack([v, v], dim=1)
        calls[budget] = len(model.rows)
    assert calls == {None: 0, 10**9: 0, 0: 8, 1: 8}


def test_some_graphs_are_kept_when_not_all_fit() -> None:
    model = Counting().double()
    x, y = _data(8)
    v = torch.ones(15)
    objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), micro_batch=2)
    expected = objective.hvp(v)
    kept = set()
    for budget in range(0, 6000, 100):
        operator = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), micro_batch=2, memory_budget=budget).hessian()
        torch.testing.assert_close(operator @ v, expected, **EXACT)
        model.rows.clear()
        torch.testing.assert_close(operator @ v, expected, **EXACT)
        kept.add(4 - len(model.rows))
    assert kept == {0, 1, 2, 3, 4}


def test_automatic_micro_batches_keep_within_the_budget() -> None:
    # Per row the graph holds x (4 numbers), the tanh (3), the log-softmax (3) and the target at least, 8 bytes each.
    model = Counting().double()
    x, y = _data(64)
    for budget, at_most in ((3 * 16 * 88, 16), (1, 1), (10**9, 128)):
        model.rows.clear()
        objective = cl.Objective(model, [(x, y)], nn.CrossEntropyLoss(), memory_budget=budget)
        objective.value()  # With trials of the memory, and of whether the loss is a mean over rows.
        model.rows.clear()
        objective.value()
        measured = model.rows
        assert sum(measured) == 64
        assert max(measured) <= at_most
        assert max(measured) > at_most / 4 or at_most == 128


def test_costs_are_counted_in_gradient_equivalents() -> None:
    x, y = _data(6)
    objective = cl.Objective(_classifier(), _cut(x, y, [2, 4]), nn.CrossEntropyLoss(), micro_batch=1)
    operator, gauss, residual = objective.hessian(), objective.ggn(), objective.residual()
    assert objective.cost == cl.Cost()
    v = torch.ones(objective.size, 3)
    for spend, equivalents in (
        (objective.value, 1 / 3),
        (objective.gradient, 1),
        (objective.value_and_gradient, 1),
        (lambda: objective.hvp(v[:, 0]), 2),
        (lambda: objective.hvp(v), 6),
        (lambda: operator @ v[:, 0], 2),
        (lambda: operator @ v, 6),
        (lambda: gauss @ v, 4),
        (lambda: residual @ v, 6),
        (objective.closure, 1),
        (lambda: objective.closure(backward=False), 1 / 3),
        (objective.flat_parameters, 0),
    ):
        before = objective.cost
        spend()
        spent = objective.cost - before
        assert spent.gradient_equivalents == pytest.approx(equivalents)
        assert (spent.seconds > 0) is (equivalents > 0)


# A part of the parameters.


def test_a_part_of_the_parameters_has_a_block_of_the_derivatives() -> None:
    model, criterion = _classifier(), nn.CrossEntropyLoss()
    x, y = _data(7)
    names = [name for name, _ in model.named_parameters()]
    value, gradient, hessian = derivatives(loss_of(model, criterion, x, y, names), as_vector(model, names))
    objective = cl.Objective(model, _cut(x, y, [3, 4]), criterion, micro_batch=2)
    with _untouched(model):
        part = objective.restricted_to(["2.weight", "0.bias"])
        assert part.parameter_names == ("0.bias", "2.weight")
        rows = torch.cat([torch.arange(20, 25), torch.arange(25, 40)])  # After 4 × 5 weights.
        assert part.size == 20
        assert part.value() == pytest.approx(float(value), rel=1e-13)
        torch.testing.assert_close(part.gradient(), gradient[rows], **EXACT)
        torch.testing.assert_close(part.hessian() @ torch.eye(20), hessian[rows][:, rows], **EXACT)
        assert objective.size == 43
        torch.testing.assert_close(objective.gradient(), gradient, **EXACT)
    with part.at(torch.zeros(20).double()):
        assert torch.equal(objective.flat_parameters()[rows], torch.zeros(20).double())


def test_what_a_part_costs_is_charged_to_the_whole_as_well() -> None:
    objective = cl.Objective(_classifier(), [_data(4)], nn.CrossEntropyLoss(), dtype=torch.float32)
    objective.value()
    before = objective.cost
    part = objective.restricted_to("0.*")
    smaller = part.restricted_to("0.bias")
    assert part.cost == smaller.cost == cl.Cost()
    operator = smaller.hessian()
    operator @ torch.ones(5, 2)
    operator.recomputed(torch.ones(5), seed=0)
    smaller.gradient()
    part.value()
    assert smaller.cost.hessian_products == 3
    assert smaller.cost.gradient_equivalents == pytest.approx(7)
    assert part.cost.gradient_equivalents == pytest.approx(7 + 1 / 3)
    spent = objective.cost - before
    assert spent.gradient_equivalents == pytest.approx(7 + 1 / 3)
    assert spent.seconds == pytest.approx(part.cost.seconds)
    objective.gradient()
    assert part.cost.gradients == 1


def test_a_part_is_cut_from_what_is_selected() -> None:
    model = _classifier()
    objective = cl.Objective(model, [_data(4)], nn.CrossEntropyLoss(), params=["0.*", "2.bias"])
    assert objective.restricted_to("*.bias").parameter_names == ("0.bias", "2.bias")
    assert objective.restricted_to("2.*").parameter_names == ("2.bias",)
    assert objective.restricted_to(model[0].weight).parameter_names == ("0.weight",)
    assert objective.restricted_to("*").parameter_names == objective.parameter_names
    for request, message in (
        ("2.weight", "'2.weight' is of the model, but not selected.*0.weight, 0.bias, 2.bias"),
        (model[2].weight, "a parameter in `params` is of the model, but not selected"),
        (["0.weight", "3.*"], r"unknown parameter '3\.\*'"),
        (nn.Parameter(torch.ones(1)), "does not belong"),
        ([], "no parameter is selected"),
    ):
        with pytest.raises(MisuseError, match=message):
            objective.restricted_to(request)


def test_a_part_may_have_a_name_that_reads_as_a_pattern() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterDict({"a[0]": torch.ones(3), "a0": torch.ones(3)})

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weights["a[0]"]

    objective = cl.Objective(Odd(), [(torch.ones(2, 3), torch.ones(2, 3))], nn.MSELoss())
    assert objective.restricted_to("weights.a[0]").parameter_names == ("weights.a[0]",)


# Misuse.


def _batches_and(**changes: Any) -> Callable[[], object]:
    def build() -> object:
        arguments: dict[str, Any] = {
            "model": _classifier(),
            "data": [_data(4)],
            "criterion": nn.CrossEntropyLoss(),
            **changes,
        }
        return cl.Objective(arguments.pop("model"), arguments.pop("data"), arguments.pop("criterion"), **arguments)

    return build


class _Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Parameter(torch.ones(2, dtype=torch.complex64))


MISUSES: dict[str, tuple[Callable[[], object], str]] = {
    "generator": (_batches_and(data=(batch for batch in [_data(4)])), r"only once.*list\(\.\.\.\)"),
    "zip": (_batches_and(data=zip([1], [2], strict=True)), "only once"),
    "iterator": (_batches_and(data=iter([_data(4)])), "only once"),
    "loader's iterator": (_batches_and(data=iter(DataLoader(TensorDataset(torch.ones(2, 4))))), "only once"),
    "no data at all": (_batches_and(data=5), "got int"),
    "sum": (_batches_and(criterion=nn.MSELoss(reduction="sum")), "reduction='sum'.*from_batch_loss"),
    "no reduction": (_batches_and(criterion=nn.CrossEntropyLoss(reduction="none")), "reduction='none'"),
    **{
        f"micro_batch {bad!r}": (_batches_and(micro_batch=bad), "micro_batch")
        for bad in (0, -1, 2.5, "Auto", [1], float("nan"))
    },
    "unknown parameter": (_batches_and(params="0.weights"), "unknown parameter '0.weights'.*mean '0.weight'"),
    "pattern without match": (_batches_and(params=["0.*", "encoder.*"]), "encoder"),
    "nothing selected": (_batches_and(params=[]), "no parameter is selected"),
    "nothing requires a gradient": (
        _batches_and(model=_classifier().requires_grad_(False)),
        "no parameter is selected",
    ),
    "another model's parameter": (_batches_and(params=[nn.Parameter(torch.ones(1))]), "does not belong"),
    "complex parameters": (_batches_and(model=_Complex()), "complex64"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_refused_when_the_objective_is_made(name: str) -> None:
    build, message = MISUSES[name]
    with pytest.raises(MisuseError, match=message):
        build()


def test_refusing_takes_nothing_from_the_data() -> None:
    data = iter([1, 2, 3])
    with pytest.raises(MisuseError):
        cl.Objective(_classifier(), data, nn.CrossEntropyLoss())
    assert next(data) == 1


@pytest.mark.parametrize("evaluate", [cl.Objective.value, cl.Objective.gradient])
def test_misuse_that_only_an_evaluation_can_find(evaluate: Callable[[cl.Objective], object]) -> None:
    x, y = _data(4)

    def loss(fn: Callable[[Tensor], Any]) -> cl.Objective:
        return cl.Objective.from_batch_loss(_classifier(), [(x, y)], lambda module, batch: fn(module(batch[0])))

    cases = [
        (loss(lambda output: output), r"scalar.*\(4, 3\)"),
        (loss(lambda output: 3.0), "scalar.*float"),
        (cl.Objective(_classifier(), [], nn.CrossEntropyLoss()), "empty"),
        (cl.Objective.from_batch_loss(_classifier(), [(x, y)], lambda *_: x.mean(), weight=lambda _: 0.0), "weight"),
        (cl.Objective.from_batch_loss(_classifier(), [(x, y)], lambda *_: x.mean(), weight=lambda _: -1.0), "weight"),
        (
            cl.Objective.from_batch_loss(_classifier(), [(x, y)], lambda *_: x.mean(), weight=lambda _: float("nan")),
            "w",
        ),
        (cl.Objective.from_batch_loss(_classifier(), [3], lambda *_: x.mean()), "count the examples.*weight="),
    ]
    for objective, message in cases:
        with pytest.raises(MisuseError, match=message):
            evaluate(objective)


def test_data_that_are_used_up_by_the_first_pass_are_found_out() -> None:
    class Once:
        def __init__(self) -> None:
            self.batches = iter([_data(4)])

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return self.batches

    objective = cl.Objective(_classifier(), Once(), nn.CrossEntropyLoss())
    objective.value()
    with pytest.raises(MisuseError, match="empty"):
        objective.value()


@pytest.mark.parametrize("shape", [(), (42,), (44,), (43, 1, 1), (1, 43)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    objective = cl.Objective(_classifier(), [_data(4)], nn.CrossEntropyLoss())
    assert objective.size == 43
    for use in (objective.hvp, objective.hessian().matvec, objective.ggn().matmat):
        with pytest.raises(MisuseError, match="shape"):
            use(torch.ones(shape))
    with pytest.raises(MisuseError, match=r"\(43,\)"), objective.at(torch.ones(shape)):
        pass
    assert objective.cost == cl.Cost()


def test_the_gauss_newton_matrix_needs_output_and_criterion_apart() -> None:
    objective = cl.Objective.from_batch_loss(_classifier(), [_data(4)], lambda module, batch: module(batch[0]).mean())
    with pytest.raises(ConvexLabError, match=r"Gauss-Newton.*from_batch_loss"):
        objective.ggn()
    with pytest.raises(MisuseError, match=r"residual part.*from_batch_loss"):
        objective.residual()


@pytest.mark.parametrize("kind", ["ggn", "residual"])
def test_the_parts_of_the_hessian_need_one_tensor_as_output(kind: str) -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    objective = cl.Objective(Pair(4, 3).double(), [_data(4)], lambda output, y: functional.cross_entropy(output[0], y))
    assert torch.isfinite(objective.hessian() @ torch.ones(15)).all()
    with pytest.raises(MisuseError, match=r"one tensor.*got tuple"):
        getattr(objective, kind)() @ torch.ones(15)

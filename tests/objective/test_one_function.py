"""One loss, whichever derivative is asked for, and what is no function is refused; nothing around is changed."""

from __future__ import annotations

import random
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, Dataset

import convexlab as cl
from convexlab.errors import FailureError, MisuseError

DOUBLE = torch.float64


def _data(rows: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(rows, 4, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def _objective(model: nn.Module | None = None, **options: Any) -> cl.Objective:
    return cl.Objective(model or _model(), [_data()], nn.CrossEntropyLoss(), **options)


def _difference(objective: cl.Objective, v: Tensor, step: float = 1e-6) -> Tensor:
    theta = objective.flat_parameters()
    with objective.at(theta + step * v):
        above = objective.gradient()
    with objective.at(theta - step * v):
        return (above - objective.gradient()) / (2 * step)


def _agrees(objective: cl.Objective, rel: float = 1e-6) -> bool:
    v = torch.randn(objective.size, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)
    product = objective.hvp(v)
    return float((_difference(objective, v) - product).norm()) < rel * float(product.norm())


# Ways of evaluation.


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, padding = batch
        output: Tensor = self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))
        return output


def test_an_encoder_takes_one_path_with_and_without_gradients() -> None:
    torch.manual_seed(0)
    padding = torch.zeros(6, 5, dtype=torch.bool)
    padding[2:, 3:] = True
    data = [((torch.randn(6, 5, 8), padding), torch.randint(0, 3, (6,)))]
    objective = cl.Objective(_Encoder(), data, nn.CrossEntropyLoss())
    assert objective.value() == pytest.approx(objective.value_and_gradient()[0], rel=1e-6)
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, torch.nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_is_differentiated_by_its_formula(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(wrap(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("original0", "weight_g")):
                parameter.mul_(1.5)
    objective = _objective(model, dtype=DOUBLE)
    expected = nn.CrossEntropyLoss()(model(_data()[0]), _data()[1])
    assert objective.value() == pytest.approx(expected.item(), rel=1e-6)
    assert _agrees(objective)


@pytest.mark.parametrize("dim", [0, 1, None])
def test_the_formula_is_the_fused_operation(dim: int | None) -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3), dim=dim)).double()
    x, y = _data()
    objective = cl.Objective(model, [(x.double(), y)], nn.CrossEntropyLoss())
    assert objective.value() == pytest.approx(nn.CrossEntropyLoss()(model(x.double()), y).item(), rel=1e-12)


def test_a_compiled_model_is_evaluated_eagerly() -> None:
    model = torch.compile(_model(), backend="aot_eager")
    objective = _objective(model, dtype=DOUBLE)  # type: ignore[arg-type]
    assert objective.value() == _objective(dtype=DOUBLE).value()
    assert _agrees(objective)


def test_sparse_embeddings_have_dense_gradients_meanwhile() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    torch.manual_seed(0)
    data = [(torch.randint(0, 9, (30, 2)), torch.randint(0, 3, (30,)))]
    objective = cl.Objective(model, data, nn.CrossEntropyLoss(), dtype=DOUBLE)
    assert _agrees(objective)
    assert model[0].sparse is True


def test_inside_inference_mode() -> None:
    expected = cl.convexity_verdict(_objective())
    with torch.inference_mode():
        inside = cl.convexity_verdict(_objective())
    assert (inside.kind, inside.curvature) == (expected.kind, expected.curvature)


def test_at_keeps_the_precision_of_the_objective() -> None:
    objective = _objective(dtype=DOUBLE)
    assert _agrees(objective)
    theta = objective.flat_parameters()
    moved = theta + 1e-12
    with objective.at(moved):
        assert torch.equal(objective.flat_parameters(), moved)
        with objective.at(theta):
            assert torch.equal(objective.flat_parameters(), theta)
        assert torch.equal(objective.flat_parameters(), moved)
        with torch.no_grad():
            objective.model[0].weight.zero_()  # type: ignore[union-attr, operator]
        assert objective.flat_parameters()[:20].abs().max() == 0
    assert torch.equal(objective.flat_parameters(), theta)


def test_parameters_of_two_dtypes_are_refused_or_cast_where_asked() -> None:
    model = _model()
    model[2].bfloat16()  # type: ignore[operator]
    with pytest.raises(MisuseError, match=r"got torch\.float32 \(0\.bias\), torch\.bfloat16 \(2\.bias\)"):
        _objective(model)
    assert _objective(model, dtype=torch.float32).dtype == torch.float32
    assert _objective(model, params="0").size == 25


# What is no function.


class _Augmented(Dataset[Any]):
    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw, (self.x, self.y) = draw, _data()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        return self.x[place] + self.draw(), self.y[place]


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = _model(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        output: Tensor = self.inner(x) * self.calls
        return output


MEASURES: dict[str, Callable[[cl.Objective], object]] = {
    "verdict": cl.convexity_verdict,
    "ends": lambda objective: cl.extreme_eigenvalues(objective.hessian()),
    "density": lambda objective: cl.spectral_density(objective.hessian(), probes=1, steps=3),
    "differences": lambda objective: objective.hessian("differences"),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("draw", [np.random.randn, random.random])
def test_augmented_data_are_found_out_and_no_generator_is_moved(measure: str, draw: Callable[[], float]) -> None:
    objective = cl.Objective(_model(), DataLoader(_Augmented(draw), 10), nn.CrossEntropyLoss())
    legacy, python, torchs = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()  # type: ignore[index, union-attr]
    with pytest.raises(FailureError, match=r"not one function.*augmented.*Evaluate fixed data"):
        MEASURES[measure](objective)
    assert (np.random.get_state()[1] == legacy).all()  # type: ignore[index]
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torchs)


def test_a_model_with_a_state_is_found_out() -> None:
    with pytest.raises(FailureError, match="not one function"):
        cl.convexity_verdict(cl.Objective(_Counting(), [_data()], nn.CrossEntropyLoss()))


def test_a_loader_with_a_generator_of_its_own_is_one_function() -> None:
    generator = torch.Generator().manual_seed(3)
    pairs = list(zip(*_data(), strict=True))
    loader = DataLoader(pairs, 7, shuffle=True, drop_last=True, generator=generator)  # type: ignore[arg-type, var-annotated]
    before, objective = generator.get_state(), cl.Objective(_model(), loader, nn.CrossEntropyLoss())
    assert objective.value() == objective.value()
    assert torch.equal(generator.get_state(), before)
    cl.convexity_verdict(objective)


def test_it_is_asked_once_an_objective_and_again_for_other_data() -> None:
    objective = _objective()
    objective.require_one_function()
    objective.require_one_function()
    assert objective.cost.gradients == 2
    sample = objective.sample(10)
    sample.require_one_function()
    assert sample.cost.gradients == 0
    other = objective.over([_data(8)])
    other.require_one_function()
    assert other.cost.gradients == 2


# Batches of others.


BATCHES: dict[str, tuple[Any, str]] = {
    "one pair": (_data(), r"pairs \(input, target\), got a tensor of shape \(\d+, 4\).*pass \[\(x, y\)\]"),
    "three parts": ([(*_data(), torch.rand(30))], r"got a tuple of 3\..*from_batch_loss\(model, data, fn\)"),
    "a mapping": ([dict(zip("xy", _data(), strict=True))], r"got a dict with the keys x, y\..*from_batch_loss"),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("evaluate", [cl.Objective.value, cl.Objective.gradient, lambda o: o.sample(3).value()])
def test_batches_that_are_no_pairs_are_refused(name: str, evaluate: Callable[[cl.Objective], object]) -> None:
    data, message = BATCHES[name]
    for criterion in (nn.CrossEntropyLoss(), nn.functional.cross_entropy):
        with pytest.raises(MisuseError, match=message):
            evaluate(cl.Objective(_model(), data, criterion))


def test_data_in_two_arguments_are_refused() -> None:
    with pytest.raises(MisuseError, match=r"a criterion that can be called.*got Tensor\. Data are one argument"):
        cl.Objective(_model(), *_data())  # type: ignore[arg-type]


class _Encoding(UserDict[str, Tensor]):
    """As a tokenizer returns it: a dictionary of its own kind, whose items are attributes too."""

    def __getattr__(self, name: str) -> Tensor:
        return self.data[name]


def test_dictionaries_of_other_kinds_are_moved_cut_and_counted() -> None:
    x, y = _data(200)
    batch = _Encoding({"x": x, "y": y})

    def loss(model: nn.Module, encoding: _Encoding) -> Tensor:
        return nn.functional.cross_entropy(model(encoding.x), encoding["y"])

    whole = cl.Objective.from_batch_loss(_model(), [batch], loss, dtype=DOUBLE)
    parts = cl.Objective.from_batch_loss(_model(), [batch], loss, dtype=DOUBLE, micro_batch=64)
    expected = cl.Objective(_model(), [(x, y)], nn.CrossEntropyLoss(), dtype=DOUBLE).value()
    assert whole.value() == pytest.approx(expected, rel=1e-12)
    assert parts.value() == pytest.approx(expected, rel=1e-12)
    assert len(list(parts.parts())) == 4
    assert batch.x.dtype == torch.float32


# Losses that are no mean over rows.


def _contrastive(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output @ output.T, torch.arange(len(output)))


def _adjacent(output: Tensor, target: Tensor) -> Tensor:
    return (target @ output).square().mean()


@pytest.mark.parametrize(
    ("criterion", "target", "message"),
    [
        (
            _contrastive,
            torch.zeros(200),
            r"loss of 16 rows of a batch is .* their two halves is .*no mean over",
        ),
        (_adjacent, torch.eye(200), r"loss of 16 rows of a batch alone cannot be evaluated \(mat1.*\)"),
    ],
)
def test_what_is_no_mean_over_rows_is_not_cut(
    criterion: Callable[[Tensor, Tensor], Tensor], target: Tensor, message: str
) -> None:
    x = _data(200)[0]
    with pytest.raises(MisuseError, match=rf"{message}.*micro_batch=None"):
        cl.Objective(_model(), [(x, target)], criterion).value()
    whole = cl.Objective(_model(), [(x, target)], criterion, micro_batch=None)
    assert whole.value() == pytest.approx(criterion(whole.model(x), target).item(), rel=1e-5)


def test_a_loss_that_draws_at_random_is_not_judged_by_its_halves() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    noisy = lambda output, target: nn.functional.cross_entropy(output + torch.randn_like(output), target)  # noqa: E731
    assert cl.Objective(model, [_data(200)], noisy).value() > 0


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_a_loss_that_differentiates_in_its_input_is_checked_too(micro_batch: int | None) -> None:
    def slope(model: nn.Module, points: Tensor) -> Tensor:
        points = points.detach().requires_grad_()
        (derivative,) = torch.autograd.grad(model(points).sum(), points, create_graph=True)
        return (derivative - points).square().mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    objective = cl.Objective.from_batch_loss(model, [_data()[0]], slope, dtype=DOUBLE, micro_batch=micro_batch)
    assert cl.convexity_verdict(objective).kind in {"non-convex", "no-negative-curvature", "unresolved"}
    assert objective.hessian("differences").shape == (31, 31)


def test_half_precision_rounds_and_is_a_mean_over_rows() -> None:
    assert cl.Objective(_model().bfloat16(), [_data(200)], nn.CrossEntropyLoss()).value() > 0


# Parameters.


def test_a_module_stands_for_its_parameters() -> None:
    assert _objective(params=["0"]).parameter_names == ("0.weight", "0.bias")
    assert _objective().restricted_to("2").size == 18
    with pytest.raises(MisuseError, match="unknown parameter '1'"):
        _objective(params="1")


def test_complex_weights_are_refused_with_advice_that_fits() -> None:
    model = nn.Linear(4, 3, dtype=torch.complex64)
    with pytest.raises(MisuseError, match=r"'weight' of torch\.complex64.*view_as_complex"):
        cl.Objective(model, [_data()], nn.CrossEntropyLoss())


def test_an_objective_is_no_operator() -> None:
    for measure in (cl.extreme_eigenvalues, cl.spectral_density):
        with pytest.raises(MisuseError, match=r"got Objective without matvec, shape\. Pass objective\.hessian\(\)"):
            measure(_objective())  # type: ignore[arg-type]


def _pairs() -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(*_data(), strict=True)


def test_a_loader_with_workers_gives_what_a_list_gives() -> None:
    pairs = list(_pairs())
    loader = DataLoader(pairs, 8, num_workers=1)  # type: ignore[arg-type, var-annotated]
    one, other = (cl.Objective(_model(), data, nn.CrossEntropyLoss(), dtype=DOUBLE) for data in (loader, [_data()]))
    v = torch.ones(43, dtype=DOUBLE)
    assert one.value() == pytest.approx(other.value(), rel=1e-12)
    torch.testing.assert_close(one.hvp(v), other.hvp(v), rtol=1e-10, atol=1e-12)

"""The flat vector, its inner products, and the selection of parameters."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.linalg.vectors import accumulation_dtype, dot, flatten, norm, select_parameters, unflatten

shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes)
def test_flatten_and_unflatten_are_inverse(sizes: list[tuple[int, ...]]) -> None:
    start, tensors = 0, []
    for size in sizes:
        count = math.prod(size)
        tensors.append(torch.arange(start, start + count, dtype=torch.float64).reshape(size))
        start += count
    flat = flatten(tensors)
    assert torch.equal(flat, torch.arange(start, dtype=torch.float64))
    parts = unflatten(flat, tensors)
    assert all(torch.equal(part, tensor) and part.shape == tensor.shape for part, tensor in zip(parts, tensors))  # noqa: B905
    assert torch.equal(flatten(parts), flat)


def test_the_order_is_that_of_the_indices_whatever_the_layout() -> None:
    tensor = torch.arange(24.0).reshape(1, 2, 3, 4)
    assert torch.equal(
        flatten([tensor.to(memory_format=torch.channels_last), tensor.mT.contiguous().mT]), flatten([tensor, tensor])
    )


def test_parts_are_views_and_flattening_copies() -> None:
    flat = torch.zeros(6)
    unflatten(flat, [torch.empty(2), torch.empty(2, 2)])[1][0, 1] = 5
    assert flat.tolist() == [0, 0, 0, 5, 0, 0]
    tensors = [torch.zeros(2), torch.zeros(3)]
    flatten(tensors).add_(1)
    assert flatten(tensors).sum() == 0


vectors = st.lists(st.floats(-(2.0**50), 2.0**50, width=32), min_size=1, max_size=50)


@given(vectors, st.randoms(use_true_random=False))
def test_dot_and_norm_of_float32_are_accumulated_in_float64(numbers: list[float], random: object) -> None:
    u = torch.tensor(numbers)
    v = u[torch.randperm(len(u), generator=torch.Generator().manual_seed(random.randint(0, 100)))]
    terms = [Fraction(a) * Fraction(b) for a, b in zip(u.tolist(), v.tolist(), strict=True)]
    # The products of float32 numbers are exact in float64; their sum rounds fewer than n times.
    bound = len(terms) * 2.0**-53 * float(sum(map(abs, terms)))
    product = dot(u, v)
    assert product.dtype == torch.float64
    assert product.ndim == 0
    assert abs(Fraction(float(product)) - sum(terms)) <= bound
    assert float(norm(u)) == pytest.approx(math.sqrt(sum(Fraction(a) ** 2 for a in u.tolist())), rel=1e-14)


def test_nothing_overflows_that_float64_can_hold() -> None:
    u = torch.full((4,), 1e30)
    assert float(dot(u, u)) == pytest.approx(4e60, rel=1e-6)
    assert float(norm(u)) == pytest.approx(2e30, rel=1e-6)


def test_mps_has_no_float64() -> None:
    assert accumulation_dtype(torch.device("mps")) == torch.float32
    assert accumulation_dtype(torch.device("cuda", 1)) == torch.float64
    assert accumulation_dtype(torch.device("cpu")) == torch.float64


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.head = nn.Linear(2, 2)
        self.decoder = nn.Linear(2, 2)
        self.decoder.weight = self.encoder[0].weight
        self.head.bias.requires_grad_(False)
        self.counts = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


DEFAULT = ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias", "head.weight", "decoder.bias"]


@pytest.mark.parametrize(
    ("params", "names"),
    [
        (None, DEFAULT),
        ("head.weight", ["head.weight"]),
        (["head.weight", "encoder.0.bias"], ["encoder.0.bias", "head.weight"]),
        ("encoder.*", DEFAULT[:4]),
        (("*.weight", "encoder.1.*"), ["encoder.0.weight", "encoder.1.weight", "encoder.1.bias", "head.weight"]),
        ("encoder.[1-9].bias", ["encoder.1.bias"]),
        # A frozen parameter can be asked for, and a tied one by each of its names.
        ("head.*", ["head.weight", "head.bias"]),
        ("decoder.weight", ["encoder.0.weight"]),
        ("decoder.*", ["encoder.0.weight", "decoder.bias"]),
        (["decoder.weight", "encoder.0.weight", "encoder.0.weight"], ["encoder.0.weight"]),
    ],
)
def test_selection_is_in_the_models_order(params: object, names: list[str]) -> None:
    assert list(select_parameters(_Net(), params)) == names


def test_selection_by_parameter() -> None:
    model = _Net()
    assert list(select_parameters(model, model.head.weight)) == ["head.weight"]
    assert list(select_parameters(model, model.head.parameters())) == ["head.weight", "head.bias"]
    assert list(select_parameters(model, [model.decoder.weight, "*.bias"])) == [
        "encoder.0.weight",
        "encoder.0.bias",
        "encoder.1.bias",
        "head.bias",
        "decoder.bias",
    ]
    selected = select_parameters(model)
    assert selected["encoder.0.weight"] is model.decoder.weight


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("head.wieght", "unknown parameter 'head.wieght'.*mean 'head.weight'"),
        (["head.*", "tail.*"], "tail"),
        ([], "requires_grad_"),
        ([nn.Parameter(torch.zeros(1))], "does not belong to the model"),
        ("counts", "'counts' of torch.int64"),
    ],
)
def test_what_cannot_be_selected(params: object, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        select_parameters(_Net(), params)


def test_a_model_without_parameters_has_nothing_to_select() -> None:
    with pytest.raises(MisuseError, match="no parameter is selected"):
        select_parameters(nn.Flatten())

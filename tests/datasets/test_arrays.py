from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from convexlab.datasets.arrays import Source, source_from_arrays
from convexlab.errors import MisuseError


def make(**changes: Any) -> Source:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "x_train": rng.integers(0, 256, (6, 9, 8, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "x_test": rng.integers(0, 256, (2, 9, 8, 3), dtype=np.uint8),
        "y_test": np.array([2, 3]),
    }
    channels_last = changes.pop("channels_last", None)
    return source_from_arrays("made", **(arrays | changes), channels_last=channels_last)


def test_channels_last_array() -> None:
    x = np.random.default_rng(1).integers(0, 256, (6, 9, 8, 3), dtype=np.uint8)
    made = make(x_train=x)
    assert made.x_train.shape == (6, 3, 9, 8)
    assert made.x_train.dtype == torch.uint8
    assert np.array_equal(made.x_train[4, 2].numpy(), x[4, :, :, 2])
    assert made.y_train.dtype == torch.int64
    assert made.classes == 4


def test_grey_images() -> None:
    made = make(x_train=np.zeros((6, 9, 8)), x_test=np.zeros((2, 9, 8)))
    assert made.x_train.shape == (6, 1, 9, 8)


@pytest.mark.parametrize(
    ("shape", "channels_last", "expected"),
    [
        ((6, 3, 9, 8), None, (6, 3, 9, 8)),
        ((6, 9, 8, 3), None, (6, 3, 9, 8)),
        ((6, 9, 8, 7), True, (6, 7, 9, 8)),
        ((6, 7, 9, 8), False, (6, 7, 9, 8)),
    ],
)
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
def test_channel_axis(convert: Any, shape: tuple[int, ...], channels_last: bool | None, expected: Any) -> None:
    x = convert(np.zeros(shape))
    assert make(x_train=x, x_test=x[:2], channels_last=channels_last).x_train.shape == expected


def test_undecided_channel_axis_is_first_in_tensors_and_last_in_arrays() -> None:
    x = np.zeros((6, 1, 2, 2))
    assert make(x_train=torch.tensor(x), x_test=torch.tensor(x[:2])).x_train.shape == (6, 1, 2, 2)
    assert make(x_train=x, x_test=x[:2]).x_train.shape == (6, 2, 1, 2)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(">f4"),
        lambda x: x.astype(">f8"),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.longdouble),
        lambda x: x.astype(np.uint16),
        lambda x: x.astype(np.int64),
        lambda x: x[::-1][::-1],
        lambda x: np.broadcast_to(x, x.shape),
        lambda x: x.tolist(),
        lambda x: torch.tensor(x, requires_grad=True),
        lambda x: torch.tensor(x).to(torch.bfloat16),
    ],
)
def test_any_real_type_and_memory_layout(convert: Any) -> None:
    x = np.arange(6 * 9 * 8, dtype=np.float64).reshape(6, 9, 8) % 200  # below 256, so exact in every type
    made = make(x_train=convert(x), x_test=convert(x[:2].copy()))
    assert np.array_equal(made.x_train[:, 0].double().numpy(), x)


def test_the_givers_arrays_are_never_written_to() -> None:
    x, y = np.ones((6, 9, 8)), np.arange(6)
    x.flags.writeable = y.flags.writeable = False
    made = make(x_train=x, y_train=y, x_test=x[:2])
    made.x_train.zero_()
    made.y_train.zero_()
    assert x.all()
    assert y[1:].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((6, 9))}, r"x_train must have shape .*got \(6, 9\)"),
        ({"x_train": np.zeros((6, 9, 8, 3, 1))}, "x_train must have shape"),
        ({"x_train": np.zeros((6, 3, 9, 8)), "channels_last": True}, r"looks like \(N, C, H, W\)"),
        ({"x_train": np.zeros((0, 9, 8))}, "x_train must hold at least one example"),
        ({"x_train": np.float64(3)}, "x_train must hold at least one example"),
        ({"x_train": [[1, 2], [3]]}, "unequal length"),
        ({"x_train": np.array([["a"]])}, "x_train must hold real numbers, got type <U1"),
        ({"x_train": np.zeros((6, 9, 8), dtype=complex)}, "real numbers, got type complex128"),
        ({"x_train": None}, "real numbers, got type object"),
        ({"x_train": np.zeros((6, 9, 8, 3))}, "both be uint8 or neither, got torch.float64 and torch.uint8"),
        ({"x_train": np.zeros((6, 9, 8), dtype=np.uint8)}, r"one shape, got \(1, 9, 8\) and \(3, 9, 8\)"),
        ({"y_train": np.zeros(5, dtype=int)}, r"train split .* 6 images \(x_train\) and 5 labels \(y_train\)"),
        ({"y_test": np.zeros(3, dtype=int)}, r"test split .* 2 images \(x_test\) and 3 labels \(y_test\)"),
        ({"y_train": np.zeros((6, 1), dtype=int)}, r"y_train must have shape \(N,\).*got \(6, 1\)"),
        ({"y_train": np.array([0, 1, 0.5, 1, np.nan, 2])}, "whole class numbers, got 2 that are not, such as 0.5"),
        ({"y_train": np.array([0, 1, -1, 1, 0, 2])}, "0, 1, 2, ..., got -1"),
        ({"y_test": np.array([0, 10**9])}, "got 1000000000. Renumber"),
    ],
)
def test_misfits(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=f"^made.*{message}"):
        make(**changes)


def test_whole_numbers_in_floating_labels_are_labels() -> None:
    assert make(y_train=np.array([0.0, 1, 2, 0, 1, 2])).y_train.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_values_that_are_not_finite_are_counted(split: str) -> None:
    arrays = {"x_train": np.zeros((6, 9, 8)), "x_test": np.zeros((2, 9, 8))}
    bad = arrays[f"x_{split}"]
    bad[0, 0, :4] = [np.nan, np.inf, -np.inf, 1e39]
    with pytest.raises(MisuseError, match=f"made: 4 of {bad.size} values of the {split} split are NaN, infinite"):
        make(**arrays)

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from convexlab.datasets import Dataset
from convexlab.errors import MisuseError


@pytest.fixture
def dataset() -> Dataset:
    return Dataset(
        name="made",
        x_train=torch.arange(7 * 2 * 3 * 3, dtype=torch.float32).view(7, 2, 3, 3),
        y_train=torch.tensor([0, 1, 2, 0, 1, 2, 0]),
        x_test=torch.zeros(4, 2, 3, 3),
        y_test=torch.tensor([0, 0, 1, 2]),
        classes=3,
        mean=torch.zeros(2),
        standard_deviation=torch.ones(2),
    )


def test_sizes(dataset: Dataset) -> None:
    assert (dataset.channels, dataset.image_size, dataset.train_size, dataset.validation_size) == (2, 3, 7, 4)


def test_frozen_and_short_in_print(dataset: Dataset) -> None:
    with pytest.raises(FrozenInstanceError):
        dataset.classes = 4  # type: ignore[misc]
    assert "x_train" not in repr(dataset)


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [3, 3, 1]), (7, [7]), (512, [7]), (1, [1] * 7)])
def test_batches_are_ordered_slices_and_can_be_repeated(dataset: Dataset, batch_size: int, sizes: list[int]) -> None:
    batches = dataset.batches("train", batch_size)
    assert len(batches) == len(sizes)
    for _ in range(2):
        pairs = list(batches)
        assert [len(y) for _, y in pairs] == sizes
        assert torch.equal(torch.cat([x for x, _ in pairs]), dataset.x_train)
        assert torch.equal(torch.cat([y for _, y in pairs]), dataset.y_train)


def test_batches_copy_nothing_and_can_be_indexed(dataset: Dataset) -> None:
    batches = dataset.batches("train", 3)
    assert batches[1][0].data_ptr() == dataset.x_train[3].data_ptr()
    assert batches[-1][1].tolist() == [0]
    with pytest.raises(IndexError):
        batches[3]


def test_test_split(dataset: Dataset) -> None:
    ((x, y),) = dataset.batches("test")
    assert x.shape == (4, 2, 3, 3)
    assert y.tolist() == [0, 0, 1, 2]


def test_batches_refuse_misuse(dataset: Dataset) -> None:
    with pytest.raises(MisuseError, match=r"unknown split 'tset'. Did you mean 'test'"):
        dataset.batches("tset")
    with pytest.raises(MisuseError, match="batch_size must be at least 1, got 0"):
        dataset.batches("train", 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": torch.zeros(7, 3, 3)}, r"x_train must be .*\(N, C, H, W\).*got .*\(7, 3, 3\)"),
        ({"x_train": torch.zeros(7, 2, 3, 4)}, "H = W"),
        ({"x_train": torch.zeros(7, 2, 3, 3, dtype=torch.float64)}, "float32 .* got torch.float64"),
        (
            {"x_test": torch.zeros(0, 2, 3, 3), "y_test": torch.zeros(0, dtype=torch.int64)},
            "x_test must be a non-empty",
        ),
        ({"x_test": torch.zeros(4, 1, 3, 3)}, "one shape"),
        ({"y_train": torch.zeros(6, dtype=torch.int64)}, r"y_train must be an int64 tensor \(7,\), got .*\(6,\)"),
        ({"y_test": torch.zeros(4)}, "y_test must be an int64"),
        ({"y_test": torch.tensor([0, 0, 3, 1])}, "y_test must lie from 0 to 2, got 3"),
        ({"y_test": torch.tensor([0, 0, -1, 1])}, "y_test must lie from 0 to 2, got -1"),
        ({"fresh": (torch.zeros(2, 2, 3), torch.tensor([0, 1]))}, r"x_fresh must be .*\(N, C, H, W\)"),
        ({"fresh": (torch.zeros(2, 2, 3, 3), torch.tensor([0, 3]))}, "y_fresh must lie from 0 to 2, got 3"),
        ({"fresh": (torch.zeros(2, 1, 3, 3), torch.tensor([0, 1]))}, "one shape"),
        ({"mean": torch.zeros(3)}, r"mean must have shape \(2,\), got \(3,\)"),
        ({"standard_deviation": torch.tensor(1.0)}, "standard_deviation must have shape"),
    ],
)
def test_parts_must_fit(dataset: Dataset, changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(MisuseError, match=f"made: .*{message}"):
        replace(dataset, **changes)

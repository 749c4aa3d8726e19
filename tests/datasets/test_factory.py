from __future__ import annotations

from pathlib import Path

import pytest
import torch

from convexlab.datasets import load_dataset
from convexlab.errors import FailureError, MisuseError

CODE = """
import numpy as np
import torch
from convexlab.datasets import Dataset
from convexlab.errors import MisuseError

def arrays():
    rng = np.random.default_rng(0)
    return rng.random((12, 16, 16, 3)), np.arange(12) % 3, rng.random((4, 16, 16, 3)), np.arange(4) % 3

def tensors():
    return [torch.as_tensor(part) for part in arrays()]

def first():
    x_train, y_train, x_test, y_test = tensors()
    return x_train.permute(0, 3, 1, 2), y_train, x_test.permute(0, 3, 1, 2), y_test

def complete(image_size):
    x = torch.arange(8.0).view(8, 1, 1, 1).repeat(1, 1, image_size, image_size)
    y = torch.arange(8) % 2
    return Dataset("complete", x, y, x.clone(), y, 2, torch.zeros(1), torch.ones(1))

def complete_with_nan():
    made = complete(4)
    made.x_test[:, :, 0, 0] = float("nan")
    return made

def three(): return 1, 2, 3
def number(): return 7
def needy(path): return None
def breaks(): raise KeyError("lost")
def refuses(): raise MisuseError("not today")
value = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own_data.py"
    path.write_text(CODE)
    return str(path)


@pytest.mark.parametrize("factory", ["arrays", "tensors", "first"])
def test_four_arrays_are_prepared_like_any_data(file: str, factory: str) -> None:
    dataset = load_dataset(f"{file}:{factory}", train_size=6, image_size=8)
    assert dataset.x_train.shape == (6, 3, 8, 8)
    assert dataset.x_test.shape == (4, 3, 8, 8)
    assert dataset.name == f"{file}:{factory}"
    assert torch.equal(dataset.x_test, load_dataset(f"{file}:arrays", image_size=8).x_test)


def test_dataset_is_taken_as_it_is(file: str) -> None:
    dataset = load_dataset(f"{file}:complete", image_size=6)
    assert dataset.name == "complete"
    assert dataset.x_train[:, 0, 5, 5].tolist() == list(range(8))


def test_subset_of_a_dataset(file: str) -> None:
    dataset = load_dataset(f"{file}:complete", train_size=4, seed=1)
    assert torch.bincount(dataset.y_train).tolist() == [2, 2]
    assert torch.equal(dataset.x_train[:, 0, 0, 0].long() % 2, dataset.y_train)
    assert dataset.validation_size == dataset.population == 8
    assert dataset.fresh is not None
    assert sorted(torch.cat([dataset.x_train, dataset.fresh[0]])[:, 0, 0, 0].tolist()) == list(range(8))
    assert torch.equal(dataset.fresh[0][:, 0, 0, 0].long() % 2, dataset.fresh[1])
    with pytest.raises(MisuseError, match=r"from 1 to 8 .*, got 9"):
        load_dataset(f"{file}:complete", train_size=9)


def test_module(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(file).parent))
    assert load_dataset("own_data:arrays").classes == 3


@pytest.mark.parametrize(
    ("factory", "kind", "message"),
    [
        ("three", MisuseError, "must return .*four arrays.*got tuple of 3"),
        ("number", MisuseError, "must return .*got int"),
        ("needy", MisuseError, "requires path"),
        ("value", MisuseError, "not callable"),
        ("nothing", MisuseError, "no 'nothing'"),
        ("refuses", MisuseError, "^not today$"),
        ("breaks", FailureError, "breaks' raised KeyError: 'lost'"),
        ("complete_with_nan", MisuseError, "8 of 128 values of the test split are NaN"),
    ],
)
def test_misfits(file: str, factory: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load_dataset(f"{file}:{factory}")

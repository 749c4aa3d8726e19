from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch

from convexlab.datasets import dataset_names, load_dataset
from convexlab.errors import MisuseError
from tests.slowly import mostly_slow


def test_names_have_descriptions_of_one_line() -> None:
    names = dataset_names()
    assert set(names) >= {"digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "npz:FILE", "imagefolder:DIR"}
    assert all(text and "\n" not in text for text in names.values())
    names.clear()
    assert dataset_names()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown dataset 'digit'. Did you mean 'digits'"),
        ("cifar-10", "Did you mean 'cifar10'"),
        ("", "unknown dataset ''"),
        ("no_such_module:factory", "no module 'no_such_module'"),
        ("no_such_file.py:factory", "no file"),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        load_dataset(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 0}, "train_size must be a whole number of at least 1 .*got 0"),
        ({"train_size": -5}, "train_size"),
        ({"train_size": 10.0}, "train_size"),
        ({"train_size": True}, "train_size"),
        ({"train_size": 1443}, "train_size of digits must be from 1 to 1442 .*got 1443"),
        ({"image_size": 0}, "image_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        load_dataset("digits", **options)


def test_digits() -> None:
    dataset = load_dataset("digits")
    assert dataset.x_train.shape == (1442, 1, 32, 32)
    assert dataset.x_test.shape == (355, 1, 32, 32)
    assert dataset.classes == 10
    # Every fifth of a class is held out: a fifth of it, rounded down.
    target = sklearn.datasets.load_digits().target
    assert torch.bincount(dataset.y_test).tolist() == (np.bincount(target) // 5).tolist()
    assert (torch.bincount(dataset.y_train) + torch.bincount(dataset.y_test)).tolist() == np.bincount(target).tolist()


def test_digits_values_are_scikit_learns() -> None:
    dataset = load_dataset("digits", image_size=8)
    both = torch.cat([dataset.x_train, dataset.x_test]) * dataset.standard_deviation + dataset.mean
    ours = (both.flatten(1) * 16).round().numpy()
    labelled = np.column_stack([ours, torch.cat([dataset.y_train, dataset.y_test]).numpy()])
    digits = sklearn.datasets.load_digits()
    expected = np.column_stack([digits.data, digits.target])
    assert np.array_equal(labelled[np.lexsort(labelled.T)], expected[np.lexsort(expected.T)])


def test_seed_chooses_the_subset_and_nothing_else() -> None:
    first, second = (load_dataset("digits", train_size=100, seed=seed) for seed in (0, 1))
    again = load_dataset("digits", train_size=100, seed=0)
    assert torch.equal(first.x_train, again.x_train)
    assert not torch.equal(first.x_train, second.x_train)
    assert torch.equal(first.x_test, second.x_test)
    assert torch.equal(first.mean, second.mean)
    assert torch.bincount(first.y_train).tolist() == [10] * 10


def test_defaults_of_torch_do_not_matter() -> None:
    expected = load_dataset("digits", train_size=50)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):  # stands for any other device: nothing made on it could be read back
            found = load_dataset("digits", train_size=50)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.x_train, expected.x_train)


def test_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_dataset("digits", train_size=50, seed=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_heavy_packages_are_imported_only_when_needed() -> None:
    code = (
        "import sys, convexlab.datasets as d; d.dataset_names(); print({'torchvision', 'sklearn'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "set()"


def test_without_torchvision_its_sets_alone_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # As if it were not installed.
    assert load_dataset("digits", train_size=50).train_size == 50
    (tmp_path / "train").mkdir()
    for name in ("mnist", f"imagefolder:{tmp_path}"):
        with pytest.raises(MisuseError, match=f"^{re.escape(name)} needs torchvision, which is not installed"):
            load_dataset(name)


@pytest.mark.data
def test_real_mnist() -> None:
    dataset = load_dataset("mnist", train_size=2000, image_size=28)
    assert dataset.x_train.shape == (2000, 1, 28, 28)
    assert dataset.validation_size == 10_000
    # The widely used constants for MNIST (of the 60,000 images of 28 x 28, as fractions of 255), to their four digits.
    assert round(float(dataset.mean), 4) == 0.1307
    assert round(float(dataset.standard_deviation), 4) == 0.3081
    # Published label counts of the test split, and the training split's shares to within one in 2,000.
    assert torch.bincount(dataset.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    shares = np.array([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]) / 30
    assert (abs(torch.bincount(dataset.y_train).numpy() - shares) < 1).all()


@pytest.mark.data
@pytest.mark.parametrize(("name", "classes"), mostly_slow([("cifar10", 10), ("cifar100", 100)], quick=1))
def test_real_cifar_archive(name: str, classes: int) -> None:
    file = Path(os.environ["CONVEXLAB_DATA"]) / f"{name}-10k.npz"
    dataset = load_dataset(f"npz:{file}", train_size=1000)
    assert dataset.x_train.shape == (1000, 3, 32, 32)
    assert dataset.x_test.shape == (2000, 3, 32, 32)
    assert dataset.classes == classes
    x = np.load(file)["x_train"]
    grey = np.arange(256) / 255
    for channel in range(3):
        # From how often each grey level occurs: 256 terms, where we add 10 million, each with an error of at most eps.
        share = np.bincount(x[..., channel].ravel(), minlength=256) / x[..., channel].size
        mean = share @ grey
        np.testing.assert_allclose(dataset.mean[channel], mean, rtol=1e7 * np.finfo(float).eps)
        deviation = np.sqrt(share @ (grey - mean) ** 2)
        np.testing.assert_allclose(dataset.standard_deviation[channel], deviation, rtol=1e7 * np.finfo(float).eps)

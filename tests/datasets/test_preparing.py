from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from PIL import Image

from convexlab.datasets import arrays, preparing
from convexlab.datasets.arrays import Source
from convexlab.datasets.preparing import channel_statistics, prepare, resize, standardise
from convexlab.errors import MisuseError

EPS32 = torch.finfo(torch.float32).eps
EPS64 = torch.finfo(torch.float64).eps


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 32), (28, 28, 32), (64, 64, 32), (45, 30, 7), (5, 9, 1)])
def test_resize_is_pillows_bilinear(height: int, width: int, size: int) -> None:
    images = numbers(2, 3, height, width).float()
    ours = resize(images, size)
    assert ours.dtype == torch.float64
    for image, resized in zip(images.flatten(0, 1), ours.flatten(0, 1), strict=True):
        pillow = Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BILINEAR)
        # Pillow sums in double and stores float32 after each of its two passes: half a unit in the last place twice.
        np.testing.assert_allclose(resized.numpy(), np.asarray(pillow), rtol=0, atol=EPS32 * float(images.max()))


def test_right_size_is_left_alone_and_bytes_become_fractions() -> None:
    images = torch.tensor([[[[0, 51], [102, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(resize(images, 2), torch.tensor([[[[0, 0.2], [0.4, 1]]]], dtype=torch.float64))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("at_a_time", [1, 200, 2**18])
def test_statistics_are_exact_however_many_images_are_taken_at_a_time(
    monkeypatch: pytest.MonkeyPatch, offset: float, at_a_time: int
) -> None:
    monkeypatch.setattr(arrays, "CHUNK_VALUES", at_a_time)
    images = numbers(50, 3, 4, 4) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1) + offset
    mean, deviation = channel_statistics(images, 4)
    for channel, values in enumerate(images.transpose(0, 1).flatten(1).tolist()):
        exact = statistics.mean(values)
        # Sums of n values and at most 50 merged chunks: each step adds at most half an eps of the largest value.
        allowed = len(values) * EPS64 * max(values)
        assert float(mean[channel]) == pytest.approx(exact, rel=0, abs=allowed)
        # A mean that is off by e changes a squared deviation d^2 by 2 d e at most, so the deviation by about e.
        assert float(deviation[channel]) == pytest.approx(statistics.pstdev(values), rel=0, abs=2 * allowed)


def test_statistics_are_of_the_resized_images() -> None:
    images = numbers(20, 1, 8, 8)
    resized = torch.nn.functional.interpolate(images, size=(4, 4), mode="bilinear", antialias=True)
    _, deviation = channel_statistics(images, 4)
    np.testing.assert_allclose(deviation, resized.numpy().std((0, 2, 3)), rtol=100 * EPS64)


@pytest.mark.parametrize("value", [0.0, 0.1, 255.0, 1e30, -1e-30])
@pytest.mark.parametrize("size", [8, 13])
def test_constant_channel_becomes_zero(value: float, size: int) -> None:
    images = torch.cat([torch.full((9, 1, 8, 8), value), numbers(9, 1, 8, 8).float()], dim=1)
    mean, deviation = channel_statistics(images, size)
    assert deviation[0] == 1
    result = standardise(images, mean, deviation, size)
    assert float(result[:, 0].abs().max()) <= EPS32 * abs(value)
    assert float(result[:, 1].std()) == pytest.approx(1, abs=0.01)


def test_last_digit_of_float32_is_not_blown_up() -> None:
    noisy = torch.full((9, 1, 8, 8), 0.1)
    noisy[::2] = torch.nextafter(noisy[::2], torch.tensor(1.0))
    assert channel_statistics(noisy, 8)[1].item() == 1


def test_small_spread_of_float64_is_kept() -> None:
    images = 1 + 1e-9 * numbers(9, 1, 8, 8)
    mean, deviation = channel_statistics(images, 8)
    assert float(standardise(images, mean, deviation, 8).std()) == pytest.approx(1, abs=0.01)


def source(n: int = 40, m: int = 10) -> Source:
    labels = torch.arange(n) % 4
    return Source("made", numbers(n, 3, 8, 8), labels, numbers(m, 3, 8, 8, seed=1), torch.arange(m) % 5)


def test_prepare_standardises_both_splits_with_the_training_statistics() -> None:
    dataset = prepare(source(), image_size=8)
    assert dataset.classes == 5
    assert dataset.x_train.dtype == dataset.x_test.dtype == torch.float32
    # A float32 value of size up to 4 is off by 2 eps at most, and so is a mean of such values.
    assert float(dataset.x_train.mean((0, 2, 3)).abs().max()) <= 4 * EPS32
    train, test = source().x_train.numpy(), source().x_test.numpy()
    expected = (test - train.mean((0, 2, 3), keepdims=True)) / train.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(dataset.x_test, expected, rtol=EPS32, atol=EPS32)
    assert dataset.mean.dtype == dataset.standard_deviation.dtype == torch.float64


def test_subset_is_made_of_the_whole_sets_images_and_leaves_the_test_split_whole() -> None:
    whole, part = prepare(source(), image_size=8), prepare(source(), image_size=8, train_size=12, seed=5)
    assert torch.equal(part.mean, whole.mean)
    assert torch.equal(part.standard_deviation, whole.standard_deviation)
    assert torch.equal(part.x_test, whole.x_test)
    assert torch.bincount(part.y_train).tolist() == [3, 3, 3, 3]
    rows = [next(row for row, x in enumerate(whole.x_train) if torch.equal(x, image)) for image in part.x_train]
    assert rows == sorted(set(rows))
    assert torch.equal(part.y_train, whole.y_train[rows])


@pytest.mark.parametrize(("size", "fresh"), [(12, 12), (30, 10), (40, 0), (None, 0)])
def test_subset_brings_others_of_the_training_split_at_most_as_many(size: int | None, fresh: int) -> None:
    whole, part = prepare(source(), image_size=8), prepare(source(), image_size=8, train_size=size, seed=5)
    assert part.population == 40
    if not fresh:
        assert part.fresh is None
        return
    assert part.fresh is not None
    x, y = part.fresh
    rows = [next(row for row, image in enumerate(whole.x_train) if torch.equal(image, other)) for other in x]
    assert len(rows) == len(set(rows)) == fresh
    assert torch.equal(y, whole.y_train[rows])
    assert not any(torch.equal(image, other) for image in part.x_train for other in x)


def test_whole_set_as_subset_is_the_whole_set() -> None:
    assert torch.equal(prepare(source(), image_size=5, train_size=40).x_train, prepare(source(), image_size=5).x_train)


def test_more_than_there_is() -> None:
    with pytest.raises(MisuseError, match=r"train_size of made must be from 1 to 40 .*, got 41"):
        preparing.prepare(source(), image_size=8, train_size=41)

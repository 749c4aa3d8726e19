"""From images as read to images as trained on: resized, then standardised."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from convexlab.datasets.arrays import Source, chunks
from convexlab.datasets.dataset import Dataset
from convexlab.datasets.subset import other_indices, stratified_indices

__all__ = ["channel_statistics", "prepare", "resize", "standardise"]


def prepare(source: Source, *, image_size: int, train_size: int | None = None, seed: int = 0) -> Dataset:
    """Resize, standardise with the statistics of the whole training split, and take the training subset asked for.

    Args:
        source: checked images and labels.
        image_size: height and width wanted, in pixels.
        train_size: number of training examples, drawn by ``stratified_indices``; ``None`` takes all, in their order.
        seed: which subset.

    Raises:
        MisuseError: ``train_size`` is larger than the training split.
    """
    chosen: Tensor | slice = slice(None)
    others = source.y_train[:0]
    if train_size is not None:
        chosen = stratified_indices(source.y_train, train_size, seed=seed, name=source.name)
        others = other_indices(source.y_train, chosen, seed=seed)
    mean, deviation = channel_statistics(source.x_train, image_size)

    def training(rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        return standardise(source.x_train[rows], mean, deviation, image_size), source.y_train[rows]

    x_train, y_train = training(chosen)
    return Dataset(
        name=source.name,
        x_train=x_train,
        y_train=y_train,
        x_test=standardise(source.x_test, mean, deviation, image_size),
        y_test=source.y_test,
        classes=source.classes,
        mean=mean,
        standard_deviation=deviation,
        fresh=training(others) if len(others) else None,
        population=len(source.y_train),
    )


def resize(images: Tensor, image_size: int) -> Tensor:
    """Return images (N, C, H, W) as float64 (N, C, S, S): bilinear, with antialiasing where they shrink.

    The sides are scaled independently, so an image that is not square is squeezed. uint8 is first divided by 255.
    """
    values = images.to(torch.float64)
    if images.dtype == torch.uint8:
        values = values / 255
    if images.shape[-2:] == (image_size, image_size):
        return values
    return functional.interpolate(values, size=(image_size, image_size), mode="bilinear", antialias=True)


def channel_statistics(images: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """Return mean and population standard deviation of every channel, (C,) float64, of the images once resized.

    The squared deviations of the chunks are merged as in Chan, Golub & LeVeque 1983 (doi
    10.1080/00031305.1983.10483115): a mean far from zero costs no digits. A channel that is constant
    up to rounding gets the deviation 1.
    """
    count = 0
    mean = images.new_zeros(images.shape[1], dtype=torch.float64)
    squares, largest = torch.zeros_like(mean), torch.zeros_like(mean)
    for chunk in _resized(images, image_size):
        values = chunk.transpose(0, 1).flatten(1)
        chunk_mean, added = values.mean(1), values.shape[1]
        shift, total = chunk_mean - mean, count + added
        squares += (values - chunk_mean[:, None]).square().sum(1) + shift.square() * (count * added / total)
        mean += shift * (added / total)
        largest = torch.maximum(largest, values.abs().amax(1))
        count = total
    deviation = (squares / count).sqrt()
    return mean, torch.where(deviation <= _rounding(images.dtype) * largest, 1.0, deviation)


def standardise(images: Tensor, mean: Tensor, deviation: Tensor, image_size: int) -> Tensor:
    """Return (resized image - mean) / deviation as float32 (N, C, S, S); mean and deviation are (C,) float64."""
    result = images.new_empty(len(images), images.shape[1], image_size, image_size, dtype=torch.float32)
    start = 0
    for chunk in _resized(images, image_size):
        result[start : start + len(chunk)] = (chunk - mean[:, None, None]) / deviation[:, None, None]
        start += len(chunk)
    return result


def _rounding(dtype: torch.dtype) -> float:
    """Return the spread, relative to the largest value, that rounding alone can give to a constant channel."""
    # Resizing sums at most height + width float64 products a pixel: 4096 eps (2**-40) covers images of that size.
    # Values that came as floating point were rounded to their own type before, by up to eps/2.
    return max(2.0**-40, torch.finfo(dtype).eps if dtype.is_floating_point else 0.0)


def _resized(images: Tensor, image_size: int) -> Iterator[Tensor]:
    return (resize(chunk, image_size) for chunk in chunks(images, images.shape[1] * image_size**2))

"""Images and labels as they come from anywhere, checked before any work is done with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convexlab.errors import MisuseError

__all__ = ["Source", "check_finite", "chunks", "source_from_arrays"]

LARGEST_CHANNELS = 4
"""Grey, grey with alpha, colour, colour with alpha: an axis this short can be the channels."""
LARGEST_CLASSES = 2**20
"""More outputs than this come from labels that are identifiers, not from class numbers."""
CHUNK_VALUES = 2**18
"""Values converted at a time: 2 MiB in float64, which stays in a processor's cache (twice as fast as 32 MiB)."""


@dataclass(frozen=True, eq=False)
class Source:
    """Both splits as read, neither resized nor standardised."""

    name: str
    x_train: Tensor = field(repr=False)
    """(N, C, H, W), uint8 (0 to 255) or floating; finite."""
    y_train: Tensor = field(repr=False)
    """(N,) int64, not negative."""
    x_test: Tensor = field(repr=False)
    y_test: Tensor = field(repr=False)

    @property
    def classes(self) -> int:
        """Largest label of both splits + 1."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1


def source_from_arrays(
    name: str, x_train: Any, y_train: Any, x_test: Any, y_test: Any, *, channels_last: bool | None = None
) -> Source:
    """Check four arrays (NumPy's, tensors, or nested lists) and return them as a source.

    Images are (N, H, W), or (N, H, W, C) or (N, C, H, W). Of type uint8 they mean 0 to 255; any other real type is
    taken as it is. Labels are (N,) whole numbers of any type.

    Args:
        name: what the errors call the data.
        x_train: training images.
        y_train: training labels.
        x_test: test images.
        y_test: test labels.
        channels_last: where the channels are; ``None`` takes the one axis of at most four entries. Where that does not
            decide, it is the first in a tensor and the last in an array.

    Raises:
        MisuseError: a shape, length, type or label that does not fit, or values that are not finite.
    """
    images = {key: _images(f"{name}: {key}", x, channels_last) for key, x in (("x_train", x_train), ("x_test", x_test))}
    labels = {key: _labels(f"{name}: {key}", y) for key, y in (("y_train", y_train), ("y_test", y_test))}
    source = Source(name, images["x_train"], labels["y_train"], images["x_test"], labels["y_test"])
    _check_together(source)
    check_finite(name, "train", source.x_train)
    check_finite(name, "test", source.x_test)
    return source


def check_finite(name: str, split: str, images: Tensor) -> None:
    """Raise a MisuseError that counts the values which float32 cannot hold as finite numbers, if there are any."""
    if not images.is_floating_point():
        return
    largest = torch.finfo(torch.float32).max
    bad = sum(int((~(chunk.abs() <= largest)).sum()) for chunk in chunks(images))
    if bad:
        raise MisuseError(
            f"{name}: {bad} of {images.numel()} values of the {split} split are NaN, infinite or beyond float32. "
            "Remove or replace them."
        )


def chunks(images: Tensor, values_per_image: int = 0) -> Iterator[Tensor]:
    """Yield consecutive images, so few at a time that they (or what becomes of them) have at most 2**18 values."""
    per_image = max(1, images[0].numel(), values_per_image)
    return iter(torch.split(images, max(1, CHUNK_VALUES // per_image)))


def _numeric(label: str, value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy(force=True)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise MisuseError(f"{label} must be one array of numbers, got rows of unequal length.") from error
    if array.dtype.kind not in "biuf":
        raise MisuseError(f"{label} must hold real numbers, got type {array.dtype}.")
    if array.ndim == 0 or array.size == 0:
        raise MisuseError(f"{label} must hold at least one example, got shape {array.shape}.")
    return array


def _images(label: str, value: Any, channels_last: bool | None) -> Tensor:
    array = _numeric(label, value)
    if array.ndim not in (3, 4):
        expected = "(N, H, W) or (N, H, W, C)" if channels_last else "(N, H, W), (N, H, W, C) or (N, C, H, W)"
        raise MisuseError(f"{label} must have shape {expected}, got {array.shape}. Reshape it.")
    # np.require copies what torch cannot share: read-only memory, negative strides, another byte order.
    tensor = torch.from_numpy(np.require(array, dtype=_image_type(array.dtype), requirements=["C", "W"]))
    if tensor.ndim == 3:
        return tensor.unsqueeze(1)
    return tensor.permute(0, 3, 1, 2) if _is_last(label, array.shape, value, channels_last) else tensor


def _image_type(dtype: np.dtype[Any]) -> type[np.uint8 | np.float32 | np.float64]:
    if dtype == np.uint8:
        return np.uint8
    return np.float64 if dtype.kind == "f" and dtype.itemsize >= 8 else np.float32


def _is_last(label: str, shape: tuple[int, ...], value: Any, channels_last: bool | None) -> bool:
    first, last = shape[1] <= LARGEST_CHANNELS, shape[-1] <= LARGEST_CHANNELS
    if channels_last is None:
        return last if first != last else not isinstance(value, Tensor)
    if channels_last and first and not last:
        raise MisuseError(
            f"{label} must have shape (N, H, W) or (N, H, W, C), got {shape}, which looks like (N, C, H, W). "
            "Move the channels last: x.transpose(0, 2, 3, 1)."
        )
    return channels_last


def _labels(label: str, value: Any) -> Tensor:
    array = _numeric(label, value)
    if array.ndim != 1:
        raise MisuseError(f"{label} must have shape (N,), one class number an image, got {array.shape}.")
    if array.dtype.kind == "f" and (wrong := array[~np.isfinite(array) | (array != np.floor(array))]).size:
        raise MisuseError(f"{label} must hold whole class numbers, got {wrong.size} that are not, such as {wrong[0]}.")
    if array.min() < 0 or array.max() >= LARGEST_CLASSES:
        outlier = array.min() if array.min() < 0 else array.max()
        raise MisuseError(f"{label} must number the classes 0, 1, 2, ..., got {outlier}. Renumber the labels.")
    return torch.from_numpy(array.astype(np.int64))


def _check_together(source: Source) -> None:
    for split, x, y in (("train", source.x_train, source.y_train), ("test", source.x_test, source.y_test)):
        if len(x) != len(y):
            raise MisuseError(
                f"{source.name}: the {split} split must have one label an image, got {len(x)} images (x_{split}) "
                f"and {len(y)} labels (y_{split})."
            )
    train, test = source.x_train, source.x_test
    if train.shape[1:] != test.shape[1:]:
        shapes = f"{tuple(train.shape[1:])} and {tuple(test.shape[1:])} (channels, height, width)"
        raise MisuseError(f"{source.name}: images of x_train and x_test must have one shape, got {shapes}.")
    # uint8 means 0 to 255 and is scaled by it; anything else is not: mixed, the splits would differ by that factor.
    if (train.dtype == torch.uint8) != (test.dtype == torch.uint8):
        types = f"{train.dtype} and {test.dtype}"
        raise MisuseError(f"{source.name}: x_train and x_test must both be uint8 or neither, got {types}.")

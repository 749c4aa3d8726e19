"""A data set ready for training: both splits as tensors, and how their values came about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from convexlab.errors import MisuseError, unknown_name

__all__ = ["Batches", "Dataset"]


class Batches:
    """Consecutive slices of one split: iterable as often as wanted, always in the same order.

    The last batch is smaller where the batch size does not divide the number of examples. Nothing is copied.

    Args:
        x: images, (N, C, H, W).
        y: labels, (N,).
        batch_size: examples a batch, at least 1.

    Raises:
        MisuseError: the batch size is below 1.
    """

    def __init__(self, x: Tensor, y: Tensor, batch_size: int) -> None:
        if batch_size < 1:
            raise MisuseError(f"batch_size must be at least 1, got {batch_size}.")
        self._x, self._y, self._batch_size = x, y, batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._y) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return batch ``index`` as images (n, C, H, W) and labels (n,); negative counts from the end."""
        start = range(len(self))[index] * self._batch_size
        rows = slice(start, start + self._batch_size)
        return self._x[rows], self._y[rows]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches in order."""
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled square images in two splits, on the CPU.

    Raises:
        MisuseError: shapes, lengths, types or labels do not fit each other (checked when it is made).
    """

    name: str
    """As given to ``load_dataset``."""
    x_train: Tensor = field(repr=False)
    """(N, C, H, W) float32, standardised; H = W."""
    y_train: Tensor = field(repr=False)
    """(N,) int64, from 0 to ``classes - 1``."""
    x_test: Tensor = field(repr=False)
    """(M, C, H, W) float32, standardised with the training split's statistics."""
    y_test: Tensor = field(repr=False)
    """(M,) int64."""
    classes: int
    """Largest label of both splits + 1."""
    mean: Tensor
    """(C,) float64, subtracted from every value; of the whole training split, so that its subsets are comparable."""
    standard_deviation: Tensor
    """(C,) float64, then divided by; population form, 1 for a channel that is constant."""
    fresh: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    """Other images and labels of the training split of which this one's is a subset, at most as many; None without."""
    population: int | None = None
    """Examples of the training split of which this one's is a subset; None where that is all there is."""

    def __post_init__(self) -> None:
        """Check that all parts fit each other."""
        _check_split(self, "x_train", self.x_train, "y_train", self.y_train)
        _check_split(self, "x_test", self.x_test, "y_test", self.y_test)
        others = {"x_test": self.x_test}
        if self.fresh is not None:
            _check_split(self, "x_fresh", self.fresh[0], "y_fresh", self.fresh[1])
            others["x_fresh"] = self.fresh[0]
        for key, x in others.items():
            if self.x_train.shape[1:] != x.shape[1:]:
                shapes = f"{tuple(self.x_train.shape[1:])} and {tuple(x.shape[1:])}"
                raise MisuseError(f"{self.name}: images of x_train and {key} must have one shape, got {shapes}.")
        for key in ("mean", "standard_deviation"):
            if (shape := tuple(getattr(self, key).shape)) != (self.channels,):
                raise MisuseError(f"{self.name}: {key} must have shape ({self.channels},), got {shape}.")

    @property
    def channels(self) -> int:
        """Channels of an image, C."""
        return self.x_train.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels."""
        return self.x_train.shape[-1]

    @property
    def train_size(self) -> int:
        """Number of training examples, N."""
        return len(self.y_train)

    @property
    def validation_size(self) -> int:
        """Number of test examples, M."""
        return len(self.y_test)

    def batches(self, split: str = "train", batch_size: int = 512) -> Batches:
        """Return one split as a re-iterable of (images, labels), in order.

        Args:
            split: ``"train"`` or ``"test"``.
            batch_size: examples a batch; the default is the paper's.

        Raises:
            MisuseError: no such split, or a batch size below 1.
        """
        splits = {"train": (self.x_train, self.y_train), "test": (self.x_test, self.y_test)}
        if split not in splits:
            raise unknown_name("split", split, splits)
        return Batches(*splits[split], batch_size)


def _check_split(dataset: Dataset, x_key: str, x: Tensor, y_key: str, y: Tensor) -> None:
    if x.ndim != 4 or x.shape[-1] != x.shape[-2] or x.dtype != torch.float32 or not x.numel():
        expected = "a non-empty float32 tensor (N, C, H, W) with H = W"
        raise MisuseError(f"{dataset.name}: {x_key} must be {expected}, got {x.dtype} {tuple(x.shape)}.")
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        expected = f"an int64 tensor ({len(x)},)"
        raise MisuseError(f"{dataset.name}: {y_key} must be {expected}, got {y.dtype} {tuple(y.shape)}.")
    if (low := int(y.min())) < 0 or (high := int(y.max())) >= dataset.classes:
        outlier = low if low < 0 else high
        raise MisuseError(f"{dataset.name}: labels of {y_key} must lie from 0 to {dataset.classes - 1}, got {outlier}.")

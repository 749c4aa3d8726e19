"""Image files sorted into a folder for each class."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL.Image import DecompressionBombError, DecompressionBombWarning
from torch import Tensor

from convexlab.datasets.arrays import Source
from convexlab.datasets.preparing import resize
from convexlab.datasets.torchvision_sets import torchvision_datasets
from convexlab.errors import MisuseError

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

__all__ = ["read_imagefolder"]

LAYOUT = "DIR/train/CLASS/*.png and DIR/test/CLASS/*.png (or .jpg, ...) with the same classes in both"


def read_imagefolder(path: str, image_size: int) -> Source:
    """Read ``train/`` and ``test/`` as ``torchvision.datasets.ImageFolder`` does: three channels, classes by name.

    Each image is resized as it is read, so that only the small ones are kept.

    Args:
        path: the folder.
        image_size: height and width wanted, in pixels.

    Raises:
        MisuseError: a folder, its classes or its images are missing, the two splits differ in their classes, or an
            image cannot be read.
    """
    train, test = _open(path, "train"), _open(path, "test")
    if train.classes != test.classes:
        different = ", ".join(sorted(set(train.classes) ^ set(test.classes)))
        raise MisuseError(
            f"imagefolder:{path}: train/ and test/ must hold the same classes; only one has: {different}."
        )
    return Source(
        f"imagefolder:{path}",
        _images(train, image_size),
        torch.tensor(train.targets, device="cpu"),
        _images(test, image_size),
        torch.tensor(test.targets, device="cpu"),
    )


def _open(path: str, split: str) -> ImageFolder:
    folder = Path(path).expanduser().absolute() / split
    if not path or not folder.is_dir():
        raise MisuseError(f"no folder at {str(folder)!r}; imagefolder:DIR expects {LAYOUT}.")
    try:
        return torchvision_datasets(f"imagefolder:{path}").ImageFolder(str(folder))
    except OSError as error:
        raise MisuseError(f"{str(folder)!r}: {error} imagefolder:DIR expects {LAYOUT}.") from error


def _images(folder: ImageFolder, image_size: int) -> Tensor:
    images = torch.empty(len(folder), 3, image_size, image_size, dtype=torch.float32, device="cpu")
    for row, (file, _) in enumerate(folder.samples):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", DecompressionBombWarning)
                _check_regular(file)
                pixels = np.array(folder.loader(file))
        except (OSError, SyntaxError, ValueError, DecompressionBombWarning, DecompressionBombError) as error:
            raise MisuseError(f"{file!r} is not an image that can be read ({error}). Remove or replace it.") from error
        images[row] = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], image_size)[0]
    return images


def _check_regular(file: str) -> None:
    if not Path(file).is_file():
        raise OSError("expected a file, not a device or a pipe")

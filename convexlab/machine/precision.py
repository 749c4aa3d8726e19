"""Float32 that is float32: what torch may do in fewer bits, it does not within a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["full_float32"]


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Multiply and convolve in float32 within the block, and as before after it.

    On CUDA torch convolves in TensorFloat-32 unless told otherwise, and multiplies matrices so where
    `torch.set_float32_matmul_precision` allows it: 10 bits of mantissa instead of 23. Curvature is made of small
    differences, and its error bounds and those of a line search are float32's.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices.
    """
    try:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        # Set operation by operation (torch >= 2.9) to what these two cannot say: who does that has chosen.
        yield
        return
    try:
        _set("highest", False)
        yield
    finally:
        _set(*before)


def _set(matmul: str, convolution: bool) -> None:
    # These two and not their successors, `fp32_precision`: torch refuses to read what was set by a mixture of both.
    if torch.get_float32_matmul_precision() != matmul:
        torch.set_float32_matmul_precision(matmul)
    if torch.backends.cudnn.allow_tf32 != convolution:
        torch.backends.cudnn.allow_tf32 = convolution

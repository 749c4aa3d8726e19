"""Float32 that is float32, and fewer bits only where they are asked for: blocks that set how torch calculates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

from convexlab.errors import MisuseError, unknown_name

__all__ = ["PRECISIONS", "Precision", "calculating_in", "require_precision"]

Precision = Literal["full", "bf16", "tf32"]
"""The number format in which matrices are multiplied and images convolved."""
PRECISIONS = ("full", "bf16", "tf32")


def require_precision(precision: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise a MisuseError unless a precision is known, and one that is not full saves bits there.

    Args:
        precision: one of `PRECISIONS`.
        device: where is calculated.
        dtype: of the vectors.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "full":
        return
    if dtype != torch.float32:
        raise MisuseError(
            f"precision {precision!r} shortens float32: expected a loss in float32, got {dtype}. Evaluate in float32 "
            "(--dtype float32), or leave the precision full."
        )
    if precision == "tf32" and device.type != "cuda":
        raise MisuseError(
            f"precision 'tf32' is one of NVIDIA's tensor cores: expected a cuda device, got {device}. Take 'bf16', "
            "or leave the precision full."
        )
    if precision == "bf16" and not torch.amp.is_autocast_available(device.type):
        raise MisuseError(f"torch has no autocast to bfloat16 on {device}. Leave the precision full.")


@contextlib.contextmanager
def calculating_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Within the block, multiply and convolve float32 in a precision; afterwards all is as before.

    ``"full"`` is float32 itself. On CUDA torch convolves in TensorFloat-32 by default, and multiplies matrices in it
    where `torch.set_float32_matmul_precision` allows that: 10 bits of mantissa instead of 23. Curvature is made of
    small differences, and its error bounds, like those of a line search, are float32's. ``"tf32"`` allows that,
    ``"bf16"`` is torch's autocast to bfloat16, of 7 bits; float64 stays what it is in both.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later-devices.
    """
    # Without a cache, which would keep what was narrowed without gradients for what needs them.
    bfloat16 = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    with bfloat16, _tensor_cores(precision == "tf32"):
        yield


@contextlib.contextmanager
def _tensor_cores(allowed: bool) -> Iterator[None]:
    try:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        # Precision was set operation by operation (torch >= 2.9), which these two settings cannot express: leave it.
        yield
        return
    try:
        _set("high" if allowed else "highest", allowed)
        yield
    finally:
        _set(*before)


def _set(matmul: str, convolution: bool) -> None:
    # These two settings and not their successors, `fp32_precision`: torch refuses to read a mixture of both.
    if torch.get_float32_matmul_precision() != matmul:
        torch.set_float32_matmul_precision(matmul)
    if torch.backends.cudnn.allow_tf32 != convolution:
        torch.backends.cudnn.allow_tf32 = convolution

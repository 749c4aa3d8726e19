"""Small networks of many kinds of layers, and activations whose second derivative is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

WIDTH = 8


class Reshaped(nn.Module):
    """Applies a layer to rows of 8 numbers as a sequence, an image or whatever it takes, and gives 8 numbers back."""

    def __init__(self, inner: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.shape = inner, shape

    def forward(self, x: Tensor) -> Tensor:
        output: Any = self.inner(x.reshape(len(x), *self.shape))
        output = output[0] if isinstance(output, tuple) else output
        flat = output.reshape(len(x), -1)
        return flat if flat.shape[1] == WIDTH else flat[:, torch.arange(WIDTH) % flat.shape[1]]


class Attention(nn.Module):
    """Of a sequence to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x, x, x)[0]
        return output


def _weight_norm() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
    layer.parametrizations.weight.original0.data.mul_(1.5)  # type: ignore[union-attr]
    return layer


# How to make a layer that maps (N, 8) to (N, 8).
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "selu": nn.SELU,
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "softshrink": nn.Softshrink,
    "hardshrink": lambda: nn.Hardshrink(0.1),
    "log sigmoid": nn.LogSigmoid,
    "softmax": lambda: nn.Softmax(dim=1),
    "log softmax": lambda: nn.LogSoftmax(dim=1),
    "softmin": lambda: nn.Softmin(dim=1),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "group norm": lambda: nn.GroupNorm(2, WIDTH),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "instance norm": lambda: Reshaped(nn.InstanceNorm1d(2, affine=True), (2, 4)),
    "dropout": nn.Dropout,
    "convolution": lambda: Reshaped(nn.Conv1d(2, 2, 3, padding=1), (2, 4)),
    "transposed convolution": lambda: Reshaped(nn.ConvTranspose1d(2, 2, 3, padding=1), (2, 4)),
    "image convolution": lambda: Reshaped(nn.Conv2d(2, 2, 3, padding=1), (2, 2, 2)),
    "average pooling": lambda: Reshaped(nn.AvgPool1d(2), (2, 4)),
    "max pooling": lambda: Reshaped(nn.MaxPool1d(2), (2, 4)),
    "adaptive pooling": lambda: Reshaped(nn.AdaptiveAvgPool1d(3), (2, 4)),
    "upsampling": lambda: Reshaped(nn.Upsample(scale_factor=2, mode="linear"), (2, 4)),
    "gated": lambda: Reshaped(nn.GLU(), (WIDTH,)),
    "lstm": lambda: Reshaped(nn.LSTM(4, 4, batch_first=True), (2, 4)),
    "gru": lambda: Reshaped(nn.GRU(4, 4, batch_first=True), (2, 4)),
    "rnn": lambda: Reshaped(nn.RNN(4, 4, batch_first=True), (2, 4)),
    "attention": lambda: Reshaped(Attention(), (2, 4)),
    "encoder layer": lambda: Reshaped(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), (2, 4)),
    "weight norm": _weight_norm,
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
}

FAULTS = ("once differentiable", "detached", "doubled", "asymmetric")


class _Faulty(torch.autograd.Function):
    """The hyperbolic tangent, with the right gradient and a wrong second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fault: str, share: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.fault, ctx.share = fault, share
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        slope = 1 - torch.tanh(x).square()
        fixed = slope.detach()
        if ctx.fault == "detached":
            return g * (fixed * ctx.share + slope * (1 - ctx.share)), None, None
        if ctx.fault == "doubled":
            return g * (slope + ctx.share * (slope - fixed)), None, None
        # A part that is zero, and whose derivative is a matrix that is not symmetric.
        turned = x.roll(1, dims=1) * torch.arange(x.shape[1], dtype=x.dtype)
        return g * slope + ctx.share * g.detach().abs().mean() * (turned - turned.detach()), None, None


class _Once(torch.autograd.Function):
    """The hyperbolic tangent, whose gradient says that it must not be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x).square())


class Fault(nn.Module):
    """An activation with a planted fault in its double backward."""

    def __init__(self, fault: str, share: float = 1.0) -> None:
        super().__init__()
        self.fault, self.share = fault, share

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "once differentiable":
            return _Once.apply(x)  # type: ignore[no-any-return]
        return _Faulty.apply(x, self.fault, self.share)  # type: ignore[no-any-return]

"""The Vision Transformer in the paper's four variants.

The paper's parameter counts (Table 1) fix which weights there are. The paper does not state the following, which is
chosen here. There is a normalisation before each branch, mean pooling after the final normalisation, two-dimensional
sine-cosine positions, and no output activation. Without an MLP the second branch of a layer is its normalisation alone.
The initialisation is chosen here too.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from convexlab.errors import MisuseError

__all__ = ["Attention", "EncoderLayer", "VisionTransformer", "initialise_linear", "sine_cosine_positions"]

INITIAL_STANDARD_DEVIATION = 0.02
"""Of all weight matrices: Dosovitskiy et al. state none; 0.02, truncated at ±2, is what timm and DeiT use."""


def sine_cosine_positions(side: int, width: int) -> Tensor:
    """Return the fixed position vectors (side², width) of a square grid, row by row.

    A quarter of the width each holds sin(row ω_k), cos(row ω_k), sin(column ω_k), cos(column ω_k), with
    ω_k = 10000^(-4k / width), k = 0 ... width/4 - 1 (Beyer et al. 2022, arXiv 2205.01580).

    Raises:
        MisuseError: a width that is not a multiple of 4.
    """
    if width < 4 or width % 4:
        raise MisuseError(f"expected a width that is a multiple of 4 (sine and cosine, row and column), got {width}.")
    frequency = 10000.0 ** (-4 * torch.arange(width // 4, dtype=torch.float64) / width)
    angle = torch.outer(torch.arange(side, dtype=torch.float64), frequency)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)
    grid = torch.cat([line.repeat_interleave(side, dim=0), line.repeat(side, 1)], dim=1)
    return grid.to(torch.get_default_dtype())


class Attention(nn.Module):
    """Multi-head self-attention without biases, softmax(Q Kᵀ / √(width / heads)) V a head, then the output matrix.

    Input and output (..., tokens, width). Matrices are (width, width) parameters that act as x Wᵀ.

    Products and softmax are separate on purpose. The fused kernels behind ``scaled_dot_product_attention`` have no
    second and no forward-mode derivative, and are no faster at 16 tokens.
    """

    query: Tensor
    key: Tensor
    query_key: Tensor
    value: Tensor
    output: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        shared_query_key: bool = False,
        value_output: bool = True,
        causal: bool = False,
    ) -> None:
        """Build the matrices.

        Args:
            width: of a token; a multiple of ``heads``.
            heads: the number of heads.
            shared_query_key: whether one matrix, ``query_key``, serves as ``query`` and ``key``.
            value_output: whether there are ``value`` and ``output`` matrices; without, both are the identity.
            causal: whether a token attends to itself and those before it alone.

        Raises:
            MisuseError: a width that the heads do not divide.
        """
        super().__init__()
        if width % heads:
            raise MisuseError(f"expected a width that is a multiple of the {heads} heads, got {width}.")
        self.heads = heads
        self.scale = 1 / math.sqrt(width // heads)
        names = ["query_key"] if shared_query_key else ["query", "key"]
        for name in names + (["value", "output"] if value_output else []):
            self.register_parameter(name, nn.Parameter(_initial_matrix(width)))
        self.shared_query_key = shared_query_key
        self.value_output = value_output
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens, in the shape of ``x`` (..., tokens, width)."""
        if self.shared_query_key:
            keys = self._split(functional.linear(x, self.query_key))
            queries = keys * self.scale
        else:
            keys = self._split(functional.linear(x, self.key))
            queries = self._split(functional.linear(x, self.query * self.scale))  # cheaper than scaling the scores
        values = self._split(functional.linear(x, self.value) if self.value_output else x)
        scores = queries @ keys.mT
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        mixed = torch.softmax(scores, dim=-1) @ values
        joined = mixed.transpose(-3, -2).flatten(-2)
        return functional.linear(joined, self.output) if self.value_output else joined

    def _split(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.heads, -1)).transpose(-3, -2)


class EncoderLayer(nn.Module):
    """One layer: x ← x + attention(norm(x)), then x ← x + mlp(norm(x)); see `VisionTransformer` for the sizes."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp: bool,
        shared_query_key: bool = False,
        value_output: bool = True,
        causal: bool = False,
    ) -> None:
        """Build the layer; without ``mlp`` the identity stands in its place."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(
            width, heads, shared_query_key=shared_query_key, value_output=value_output, causal=causal
        )
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = _mlp(width) if mlp else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the transformed tokens, in the shape of ``x`` (..., tokens, width)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """A Vision Transformer without class token, in the paper's variants and sizes.

    Patches, bias-free projection, fixed positions, encoder layers with affine normalisation before each branch, final
    normalisation, mean over tokens, linear head. MLPs are width → 4 width → width with biases and GELU (erf form).
    Weight matrices start as a normal distribution of standard deviation 0.02 truncated at ±2, biases at zero.

    Input (N, channels, image_size, image_size), output (N, classes) without an activation.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929; the reductions of Bermeitinger et al. 2024, arXiv 2410.13732.
    """

    positions: Tensor

    def __init__(
        self,
        channels: int = 3,
        classes: int = 10,
        image_size: int = 32,
        *,
        mlp: bool = True,
        shared_query_key: bool = False,
        value_output: bool = True,
        patch_size: int = 8,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
    ) -> None:
        """Build the network with torch's global random generator; the defaults are ``vit-mlp``.

        Args:
            channels: channels of an image.
            classes: outputs.
            image_size: height and width in pixels, a multiple of ``patch_size``.
            mlp: whether the layers have MLPs.
            shared_query_key: whether keys and queries share one matrix (the paper's ``wkewq``).
            value_output: whether attention has value and output matrices (the paper's ``wvwo`` has none).
            patch_size: height and width of a patch in pixels.
            width: of a token, a multiple of 4 and of ``heads``.
            depth: the number of encoder layers.
            heads: attention heads a layer.

        Raises:
            MisuseError: an image size or a width that is no such multiple.
        """
        super().__init__()
        if image_size < patch_size or image_size % patch_size:
            raise MisuseError(
                f"expected an image size that is a multiple of {patch_size} (the patches' size), got {image_size}. "
                "Resize the images, for example to 32."
            )
        self.patch_size = patch_size
        self.projection = nn.Linear(channels * patch_size**2, width, bias=False)
        self.register_buffer("positions", sine_cosine_positions(image_size // patch_size, width), persistent=False)
        self.encoder = nn.Sequential(
            *(
                EncoderLayer(width, heads, mlp=mlp, shared_query_key=shared_query_key, value_output=value_output)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.apply(initialise_linear)

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs (N, classes) of images (N, channels, image_size, image_size)."""
        tokens = self.projection(self._patches(images)) + self.positions
        return self.head(self.norm(self.encoder(tokens)).mean(dim=-2))  # type: ignore[no-any-return]

    def _patches(self, images: Tensor) -> Tensor:
        """Return (N, tokens, channels · patch_size²), patches row by row, each channel by channel."""
        split = (-1, self.patch_size)
        grid = torch.unflatten(
            torch.unflatten(images, -1, split), -3, split
        )  # (N, channels, rows, pixels, columns, pixels)
        return grid.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def _mlp(width: int) -> nn.Sequential:
    layers = {"expand": nn.Linear(width, 4 * width), "activation": nn.GELU(), "contract": nn.Linear(4 * width, width)}
    return nn.Sequential(OrderedDict(layers))


def _initial_matrix(width: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(width, width), std=INITIAL_STANDARD_DEVIATION)


def initialise_linear(module: nn.Module) -> None:
    """Start a linear layer as those of the Vision Transformer: see there."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INITIAL_STANDARD_DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

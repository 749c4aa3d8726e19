"""A small decoder-only transformer: the layers of the Vision Transformer, each token seeing those before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convexlab.architectures.vision_transformer import INITIAL_STANDARD_DEVIATION, EncoderLayer, initialise_linear

__all__ = ["TextTransformer"]


class TextTransformer(nn.Module):
    """Predicts at every place of a text the symbol that follows, from all until there.

    Embedding and learnt positions; then layers with affine normalisation before each branch. A layer has bias-free
    causal attention and an MLP of width → 4 width → width with GELU. At the end final normalisation and a linear head.
    Matrices, embedding and positions start as a normal distribution of standard deviation 0.02 truncated at ±2, biases
    at zero.

    Input (N, places) of symbols from 0, output (N, places, symbols) without an activation.

    Source: Radford et al. 2019 (GPT-2), without dropout and with a head of its own.
    """

    def __init__(self, symbols: int, places: int, *, width: int = 32, depth: int = 2, heads: int = 4) -> None:
        """Build the network with torch's global random generator.

        Args:
            symbols: there are.
            places: of a text at most.
            width: of a token, a multiple of ``heads``.
            depth: the number of layers.
            heads: attention heads a layer.

        Raises:
            MisuseError: a width that is no such multiple.
        """
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.positions = nn.Parameter(torch.empty(places, width))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, mlp=True, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)
        self.apply(initialise_linear)
        for table in (self.embedding.weight, self.positions):
            nn.init.trunc_normal_(table, std=INITIAL_STANDARD_DEVIATION)

    def forward(self, text: Tensor) -> Tensor:
        """Return the outputs (N, places, symbols) of texts (N, places)."""
        tokens = self.embedding(text) + self.positions[: text.shape[-1]]
        return self.head(self.norm(self.layers(tokens)))  # type: ignore[no-any-return]

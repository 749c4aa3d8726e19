from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from convexlab.architectures.vision_transformer import (
    INITIAL_STANDARD_DEVIATION,
    Attention,
    EncoderLayer,
    VisionTransformer,
    sine_cosine_positions,
)
from convexlab.errors import MisuseError

# Two implementations of the same float64 function: sums of at most 256 terms of size O(1) through a few layers.
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}


def randomise(module: nn.Module) -> nn.Module:
    """Weights far from the initial ones, so that a swapped or forgotten one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.double()


def tokens() -> torch.Tensor:
    return torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shared_query_key", [False, True])
@pytest.mark.parametrize("value_output", [False, True])
def test_attention_agrees_with_torch(shared_query_key: bool, value_output: bool) -> None:
    ours = randomise(Attention(8, 2, shared_query_key=shared_query_key, value_output=value_output))
    reference = nn.MultiheadAttention(8, 2, bias=False, batch_first=True, dtype=torch.float64)
    matrices = dict(ours.named_parameters())
    query = matrices["query_key" if shared_query_key else "query"]
    key = matrices["query_key" if shared_query_key else "key"]
    identity = torch.eye(8, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([query, key, matrices.get("value", identity)]))
        reference.out_proj.weight.copy_(matrices.get("output", identity))
    x = tokens()
    torch.testing.assert_close(ours(x), reference(x, x, x, need_weights=False)[0], **ROUNDING)


def test_attention_has_second_derivatives() -> None:
    attention = randomise(Attention(4, 2))
    names = [name for name, _ in attention.named_parameters()]

    def function(x: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(attention, dict(zip(names, matrices, strict=True)), (x,))

    x = tokens()[:1, :3, :4].clone().requires_grad_()
    torch.autograd.gradgradcheck(function, (x, *attention.parameters()))


def test_encoder_layer_agrees_with_torch() -> None:
    ours = randomise(EncoderLayer(8, 2, mlp=True))
    reference = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    attention = ours.attention
    with torch.no_grad():
        reference.self_attn.in_proj_weight.copy_(torch.cat([attention.query, attention.key, attention.value]))
        reference.self_attn.out_proj.weight.copy_(attention.output)
        reference.self_attn.in_proj_bias.zero_()
        reference.self_attn.out_proj.bias.zero_()
    reference.linear1, reference.linear2 = ours.mlp.expand, ours.mlp.contract
    reference.norm1, reference.norm2 = ours.attention_norm, ours.mlp_norm
    torch.testing.assert_close(ours(tokens()), reference(tokens()), **ROUNDING)


def test_encoder_layer_without_mlp_adds_its_normalisation() -> None:
    ours = randomise(EncoderLayer(8, 2, mlp=False))
    attended = tokens() + ours.attention(ours.attention_norm(tokens()))
    x = attended.detach().numpy()
    normalised = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    scale, shift = ours.mlp_norm.weight.detach().numpy(), ours.mlp_norm.bias.detach().numpy()
    np.testing.assert_allclose(ours(tokens()).detach(), x + normalised * scale + shift, **ROUNDING)


def test_whole_network_without_layers_agrees_with_a_convolution() -> None:
    model = randomise(VisionTransformer(channels=3, classes=6, image_size=32, depth=0))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kernels = model.projection.weight.reshape(64, 3, 8, 8)
    embedded = functional.conv2d(images, kernels, stride=8).flatten(2).mT + model.positions
    normalised = functional.layer_norm(embedded, (64,), model.norm.weight, model.norm.bias)
    expected = normalised.mean(1) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected, **ROUNDING)


def test_positions_have_their_closed_form() -> None:
    side, width = 3, 8
    expected = [
        [
            function(place / 10000 ** (4 * k / width))
            for place in (row, column)
            for function in (math.sin, math.cos)
            for k in range(width // 4)
        ]
        for row in range(side)
        for column in range(side)
    ]
    # Computed in float64, then rounded once to float32.
    np.testing.assert_allclose(sine_cosine_positions(side, width), expected, rtol=0, atol=np.finfo(np.float32).eps)


def test_positions_break_the_symmetry_under_exchanged_patches() -> None:
    model = randomise(VisionTransformer(channels=1, image_size=16, mlp=False, depth=1))
    images = torch.randn(1, 1, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exchanged = images.roll(8, dims=-1)
    assert (model(images) - model(exchanged)).norm() > 1e-3
    model.positions.zero_()
    torch.testing.assert_close(model(images), model(exchanged), **ROUNDING)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = VisionTransformer()
    matrices = torch.cat([p.detach().flatten() for name, p in model.named_parameters() if p.dim() == 2])
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    # The sample deviation of n normal numbers has standard error σ / √(2n); 5 of them.
    assert abs(matrices.std() / INITIAL_STANDARD_DEVIATION - 1) <= 5 / math.sqrt(2 * matrices.numel())
    assert all((bias == 0).all() for bias in biases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 66}, "multiple of 4"),
        ({"width": 64, "heads": 3}, "multiple of the 3 heads, got 64"),
        ({"image_size": 30, "patch_size": 4}, "multiple of 4 .*got 30"),
    ],
)
def test_sizes_that_do_not_divide(options: dict[str, int], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        VisionTransformer(**options)

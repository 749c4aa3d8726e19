"""What the text transformer may see, what it has, and what it starts from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from convexlab.architectures import TextTransformer
from convexlab.errors import MisuseError


def built(**sizes: int) -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer(11, 6, width=8, heads=2, **sizes)


def test_no_output_depends_on_what_comes_later() -> None:
    model, text = built().double(), torch.arange(6)[None]
    changed = text.clone()
    changed[0, 4] = 10
    before, after = model(text), model(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_a_shorter_text_is_the_beginning_of_a_longer_one() -> None:
    model, text = built().double(), torch.arange(6)[None]
    torch.testing.assert_close(model(text[:, :3]), model(text)[:, :3])


def test_attention_is_the_mean_of_values_where_all_scores_are_equal() -> None:
    attention = built().double().layers[0].attention
    nn.init.zeros_(attention.query)
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    values = functional.linear(x, attention.value)
    means = values.cumsum(dim=1) / torch.arange(1, 5)[:, None]
    torch.testing.assert_close(attention(x), functional.linear(means, attention.output))


def test_parameters_are_those_of_the_layers() -> None:
    width, layer = 8, 4 * 8 * 8 + (8 * 32 + 32) + (32 * 8 + 8) + 4 * 8
    expected = 11 * width + 6 * width + 3 * layer + 2 * width + 11 * width + 11
    assert sum(parameter.numel() for parameter in built(depth=3).parameters()) == expected


def test_it_starts_near_the_uniform_distribution() -> None:
    text = torch.arange(6)[None]
    loss = functional.cross_entropy(built()(text)[0], text[0])
    assert loss.item() == pytest.approx(math.log(11), rel=0.1)


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(MisuseError, match="multiple of the 3 heads"):
        TextTransformer(11, 6, width=8, heads=3)

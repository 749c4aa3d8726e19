"""Networks by name: the paper's four Vision Transformers, its VGG5 and its two toy models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from torch import nn

from convexlab.architectures.perceptron import Perceptron
from convexlab.architectures.tanh import OneLayerTanh, TwoLayerTanh
from convexlab.architectures.text_transformer import TextTransformer
from convexlab.architectures.vgg import VGG5
from convexlab.architectures.vision_transformer import VisionTransformer
from convexlab.errors import MisuseError, unknown_name
from convexlab.importing import call_accepted, is_spec, load_object

__all__ = [
    "ARCHITECTURES",
    "VGG5",
    "Architecture",
    "OneLayerTanh",
    "Perceptron",
    "TextTransformer",
    "TwoLayerTanh",
    "VisionTransformer",
    "build_model",
    "model_names",
]


@dataclass(frozen=True)
class Architecture:
    """A network that `build_model` knows by name."""

    description: str
    """One line."""
    build: Callable[..., nn.Module]
    """Takes those of the keyword arguments ``channels``, ``classes`` and ``image_size`` that it names."""


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "vit-mlp": Architecture(
            "Vision Transformer: 3 layers, 4 heads, width 64, MLPs of 256 units", VisionTransformer
        ),
        "vit-nomlp": Architecture("the same without MLPs", partial(VisionTransformer, mlp=False)),
        "vit-nomlp-wkewq": Architecture(
            "without MLPs, one matrix for keys and queries",
            partial(VisionTransformer, mlp=False, shared_query_key=True),
        ),
        "vit-nomlp-wkewq-wvwo": Architecture(
            "without MLPs, one matrix for keys and queries, none for values and output",
            partial(VisionTransformer, mlp=False, shared_query_key=True, value_output=False),
        ),
        "vgg5-max-relu": Architecture("VGG: 3 convolutions with max-pooling, 2 linear layers, ReLU", VGG5),
        "tanh-1d": Architecture("toy, one parameter: sum of tanh(p x) over units (equation 3)", OneLayerTanh),
        "tanh-2layer": Architecture("toy, one parameter: two tanh layers, C = 0.5 (equations 5 and 6)", TwoLayerTanh),
    }
)
"""Every network by its name, in the order in which they are listed."""


def model_names() -> tuple[str, ...]:
    """Return the names that `build_model` knows."""
    return tuple(ARCHITECTURES)


def build_model(
    name: str, *, channels: int | None = 3, classes: int | None = 10, image_size: int | None = 32
) -> nn.Module:
    """Build a network by its name, with fresh weights from torch's global random generator.

    The toy models have one parameter, take vectors (N, units) instead of images and ignore the three sizes.

    Args:
        name: one of `model_names`, or ``package.module:factory`` or ``file.py:factory``, whose factory returns a
            module. It is called with those of the keyword arguments below that it names.
        channels: channels of an image; None leaves it to the factory, likewise the next two.
        classes: outputs.
        image_size: height and width in pixels.

    Raises:
        MisuseError: an unknown name, a size below 1 or that the network cannot take, or a factory that cannot be
            imported or returns no module.
    """
    asked = {"channels": channels, "classes": classes, "image_size": image_size}
    sizes = {size: value for size, value in asked.items() if value is not None}
    for size, value in sizes.items():
        if value < 1:
            raise MisuseError(f"expected {size} of at least 1, got {value}.")
    model = call_accepted(_factory(name), name, **sizes)
    if not isinstance(model, nn.Module):
        raise MisuseError(f"{name!r} returned {type(model).__name__}: expected a torch.nn.Module.")
    return model


def _factory(name: str) -> Callable[..., object]:
    if is_spec(name):
        return load_object(name)  # type: ignore[no-any-return]
    if name not in ARCHITECTURES:
        raise unknown_name("model", name, ARCHITECTURES)
    return ARCHITECTURES[name].build

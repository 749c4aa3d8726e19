"""The paper's architectures at sizes whose Hessian fits into memory, and what they are trained on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

import convexlab as cl
from convexlab.architectures import VGG5, OneLayerTanh, TwoLayerTanh, VisionTransformer
from tests.dense import as_vector, derivatives, loss_of

_SMALL = {"channels": 1, "classes": 3, "image_size": 8, "patch_size": 4, "width": 4, "depth": 1, "heads": 2}

# Constructor, and the parameters that the Hessian is taken in: None is all of them.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...] | None]] = {
    "vit-mlp, width 4": (partial(VisionTransformer, **_SMALL), None),
    "vit-nomlp, width 4": (partial(VisionTransformer, mlp=False, **_SMALL), None),
    "vit-nomlp-wkewq, width 4": (partial(VisionTransformer, mlp=False, shared_query_key=True, **_SMALL), None),
    "vit-nomlp-wkewq-wvwo, width 4": (
        partial(VisionTransformer, mlp=False, shared_query_key=True, value_output=False, **_SMALL),
        None,
    ),
    "vgg5-max-relu, ends": (
        partial(VGG5, channels=1, classes=3, image_size=8),
        ("features.0.bias", "features.6.bias", "hidden.bias", "head.*"),
    ),
    "tanh-1d": (partial(OneLayerTanh, 0.7), None),
    "tanh-2layer": (partial(TwoLayerTanh, 0.7), None),
}
SIZES = (5, 2, 4)  # Of the batches: their means do not weigh alike.


class Small:
    """A network, its data and its criterion, all in float64."""

    def __init__(self, name: str, criterion: nn.Module, without: str) -> None:
        build, params = ARCHITECTURES[name]
        torch.manual_seed(0)
        self.model = build().double()
        self.criterion = criterion
        if name.startswith("vit"):  # Away from the start, where a Vision Transformer is almost linear.
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        self.x, self.y = self._data(toy=name.startswith("tanh"))
        if without:
            params = tuple(path for path, _ in self.model.named_parameters() if without not in path)
        self.objective = cl.Objective(self.model, self.batches, criterion, params=params)

    def _data(self, *, toy: bool) -> tuple[Tensor, Tensor]:
        rows = sum(SIZES)
        x = torch.randn(rows, 6) if toy else torch.randn(rows, 1, 8, 8)
        if isinstance(self.criterion, nn.CrossEntropyLoss):
            return x.double(), torch.randint(0, 3, (rows,))
        return x.double(), torch.randn(rows, 1 if toy else 3).double()

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.x.split(SIZES), self.y.split(SIZES), strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        return self.objective.parameter_names

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: self.model.get_parameter(name) for name in self.names}

    @cache  # noqa: B019 - there are a handful
    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return value, gradient and Hessian by autograd, over all examples at once."""
        loss = loss_of(self.model, self.criterion, self.x, self.y, self.names)
        return derivatives(loss, as_vector(self.model, self.names))


@cache
def small(name: str, criterion: str = "mse", without: str = "") -> Small:
    """Return the network; the Hessian is taken in all parameters but those whose name contains ``without``."""
    return Small(name, nn.CrossEntropyLoss() if criterion == "cross-entropy" else nn.MSELoss(), without)


def relative(found: Tensor, exact: Tensor) -> float:
    """Return the largest error, relative to the largest entry."""
    return float((found - exact).abs().max() / exact.abs().max())

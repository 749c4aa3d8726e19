"""A multilayer perceptron with tanh units, for regression and for physics-informed networks."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from convexlab.errors import MisuseError

__all__ = ["Perceptron"]


class Perceptron(nn.Module):
    """``depth`` hidden layers of ``width`` tanh units, then a linear layer; smooth, so that it has all derivatives.

    Input (N, inputs), output (N, outputs). Weights start uniform (Glorot and Bengio 2010, AISTATS, equation 16), biases
    at zero, drawn from torch's global random generator. The defaults are the usual network for physics-informed
    problems of one space dimension and time: 4 × 50, 7,851 parameters (Krishnapriyan et al. 2021, arXiv 2109.01050).

    Args:
        inputs: numbers an example.
        outputs: numbers predicted.
        width: units of a hidden layer.
        depth: hidden layers.

    Raises:
        MisuseError: one of these is below 1.
    """

    def __init__(self, inputs: int = 2, outputs: int = 1, *, width: int = 50, depth: int = 4) -> None:
        for name, value in {"inputs": inputs, "outputs": outputs, "width": width, "depth": depth}.items():
            if value < 1:
                raise MisuseError(f"expected {name} of at least 1, got {value!r}.")
        super().__init__()
        layers: list[nn.Module] = []
        for taken, given in pairwise([inputs, *[width] * depth, outputs]):
            layers += [_linear(taken, given), nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (N, outputs) of x (N, inputs)."""
        return self.layers(x)  # type: ignore[no-any-return]


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

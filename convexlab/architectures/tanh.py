"""The paper's two toy models, each a function of one scalar parameter p."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["OneLayerTanh", "TwoLayerTanh"]


class OneLayerTanh(nn.Module):
    """The one-dimensional model y(x) = Σ_i tanh(p x_i) (name ``tanh-1d``; equations 3 and 4, figures 1 and 2).

    Input (N, units), output (N, 1). The paper draws 100 units from (-0.5, 0.5) and the target from (0, 1), and takes
    the squared error as the loss.
    """

    def __init__(self, p: float = 1.0) -> None:
        """Start at the parameter value ``p``; nothing is random."""
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))

    def forward(self, x: Tensor) -> Tensor:
        """Return y (N, 1) of x (N, units)."""
        return torch.tanh(self.p * x).sum(dim=-1, keepdim=True)


class TwoLayerTanh(nn.Module):
    """The two-layer model h = tanh(p x), y = tanh(h) - C tanh(2h) (name ``tanh-2layer``; equations 5 and 6, figure 4).

    Input (N, units), output (N, 1), summed over units as in `OneLayerTanh`; the paper's model has one unit.

    Two readings of the paper are choices. It prints h = tanh(x) and no parameter: p scales the input, so at x = 1 the
    loss over p is the paper's function. And the sign of C is minus. With y = tanh(h) + C tanh(2h), C > 0, the output is
    monotone in p, and the squared error has a single minimum for every C. Minus gives what the paper says of figure 4.
    For the target 0.1 there is one convex region at C = 0.40, two at 0.45 and 0.50, and two local minima from 0.55 on.
    dy/dh at h = 0 is 1 - 2C. A negative ``weight`` gives the other reading.
    """

    def __init__(self, p: float = 1.0, *, weight: float = 0.5) -> None:
        """Start at the parameter value ``p``, with the constant C = ``weight``, which is not trained."""
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.weight = float(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return y (N, 1) of x (N, units)."""
        hidden = torch.tanh(self.p * x)
        units = torch.tanh(hidden) - self.weight * torch.tanh(2 * hidden)
        return units.sum(dim=-1, keepdim=True)

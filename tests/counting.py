"""A model that tells how many examples each of its evaluations had."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.rows = nn.Linear(4, 3), []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return torch.tanh(self.body(x))

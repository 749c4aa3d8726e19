"""The diagonal of a symmetric matrix that is known by its products."""

from __future__ import annotations

import torch
from torch import Tensor

from convexlab.linalg.operators import MatrixVectorProduct
from convexlab.linalg.vectors import accumulation_dtype

__all__ = ["sampled_diagonal"]


def sampled_diagonal(operator: MatrixVectorProduct, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the means (n,) of z ∘ A z over random signs z, and the sums (n,) of squares about them.

    Bekas, Kokiopoulou & Saad 2007, doi 10.1016/j.apnum.2007.01.003: unbiased, with variance Σ_{j≠i} a_ij² / ``samples``
    in entry i. In one pass, by Welford's recurrence (1962, doi 10.1080/00401706.1962.10490022).
    """
    generator = torch.Generator().manual_seed(seed)
    size, dtype = operator.shape[0], accumulation_dtype(operator.device)
    mean, squares = torch.zeros((2, size), dtype=dtype, device=operator.device)
    for count in range(1, samples + 1):
        signs = torch.randint(0, 2, (size,), generator=generator).to(operator.device, operator.dtype) * 2 - 1
        value = (signs * operator.matvec(signs)).to(dtype)
        change = value - mean
        mean += change / count
        squares += change * (value - mean)
    return mean, squares

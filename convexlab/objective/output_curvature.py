"""The second derivative of a criterion in the model's output, by a formula where that saves memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from convexlab.objective.differentiation import differentiate

__all__ = ["DifferentiatedCurvature", "OutputCurvature", "SoftmaxCurvature", "softmax_curvature"]

# Bytes of probabilities that are held at a time.
_CHUNK_BYTES = 2**24


class OutputCurvature(Protocol):
    """A symmetric matrix that acts on tensors of the output's shape."""

    def times(self, u: Tensor) -> Tensor:
        """Return its product with ``u``, whose place the product may take."""
        ...


@dataclass(frozen=True)
class DifferentiatedCurvature:
    """H_L of any criterion, by differentiating its slope."""

    at: Tensor
    """The output, without its graph."""
    slope: Tensor
    """Derivative of the criterion at the output, with a graph."""

    def times(self, u: Tensor) -> Tensor:
        """Return H_L u."""
        return differentiate([self.slope], [self.at], [u], retain_graph=True)[0]


@dataclass(frozen=True)
class SoftmaxCurvature:
    """H_L of a mean cross-entropy: s_i (diag p_i - p_i p_iᵀ) at every position i, p_i = softmax of the logits there.

    A product by autograd holds some ten tensors of the logits' size; this one holds none.
    """

    logits: Tensor
    """(B, C, ...), without a graph."""
    scales: Tensor
    """(B, ...): s_i, the weights of the positions in the mean."""

    def times(self, u: Tensor) -> Tensor:
        """Return H_L u for u of the logits' shape, in the place of ``u``."""
        rows = max(1, _CHUNK_BYTES // max(1, self.logits[0].nbytes))
        for start in range(0, len(u), rows):
            part = u[start : start + rows]
            chances = torch.softmax(self.logits[start : start + rows], dim=1)
            part.sub_((chances * part).sum(dim=1, keepdim=True))
            part.mul_(chances.mul_(self.scales[start : start + rows].unsqueeze(1)))
        return u


def softmax_curvature(
    criterion: Callable[[Any, Any], Tensor] | None, output: Tensor, target: Any
) -> SoftmaxCurvature | None:
    """Return the curvature of torch's own cross-entropy; None for another criterion, or shapes it does not take.

    For class weights w, a target class y and smoothing ε, s = ((1 - ε) w_y + ε Σ_c w_c / C) / Σ w_y. It is 0 where the
    target is ignored. For class probabilities t it is Σ_c w_c t_c, smoothed likewise, over the number of positions.
    """
    if type(criterion) is not nn.CrossEntropyLoss or not isinstance(target, Tensor) or output.ndim < 2:
        return None
    classes, smoothing = output.shape[1], criterion.label_smoothing
    output = output.detach()
    weights = output.new_ones(classes) if criterion.weight is None else criterion.weight.detach().to(output)
    if target.is_floating_point():
        if target.shape != output.shape:
            return None
        masses = torch.movedim(target.to(output), 1, -1) @ weights
        kept, count = torch.ones_like(masses), torch.full_like(masses.sum(), target.numel() / classes)
    else:
        if target.shape != output.shape[:1] + output.shape[2:]:
            return None
        kept = (target != criterion.ignore_index).to(output)
        masses = weights[torch.where(kept > 0, target, 0)] * kept
        count = masses.sum()
    return SoftmaxCurvature(output, ((1 - smoothing) * masses + smoothing * weights.mean() * kept) / count)

"""What a batch is: its examples, its parts, its weight in the mean, and its loss under a criterion."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from convexlab.errors import MisuseError

__all__ = ["batch_loss_of", "common_rows", "criterion_weight", "moved", "rows_of", "split"]


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0]


def rows_of(batch: Any) -> int:
    """Return the number of examples: the rows of the first tensor.

    Raises:
        MisuseError: the batch has no tensor.
    """
    tensors = _tensors(batch)
    if not tensors:
        raise MisuseError(
            "cannot count the examples of a batch without tensors. Pass weight=, a function of the batch."
        )
    return len(tensors[0])


def common_rows(batch: Any) -> int | None:
    """Return the length that every leaf of the batch shares, or None: then it cannot be split."""
    tensors = _tensors(batch)
    lengths = {len(tensor) for tensor in tensors}
    return lengths.pop() if len(lengths) == 1 and len(tensors) == len(tree_leaves(batch)) else None


def split(batch: Any, size: int | None) -> Iterator[Any]:
    """Yield parts of a batch of at most ``size`` examples; None, or one that cannot be split, leaves it whole."""
    rows = common_rows(batch)
    if size is None or rows is None or rows <= size:
        yield batch
        return
    for start in range(0, rows, size):
        yield tree_map(lambda item, start=start: item[start : start + size], batch)


def moved(item: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return an item of a batch on a device and in a dtype: whole numbers (labels, indices) keep theirs."""
    if not isinstance(item, Tensor):
        return item
    # A copy to the host that does not block may be read before it is there.
    return item.to(
        device=device, dtype=dtype if item.is_floating_point() else item.dtype, non_blocking=device.type != "cpu"
    )


def criterion_weight(criterion: Callable[[Any, Any], Tensor]) -> Callable[[Any], float] | None:
    """Return what a batch counts in the mean under those criteria of torch that do not count examples equally."""
    if not isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return None

    def weight(batch: Any) -> float:
        target = batch[1]
        if target.is_floating_point():  # Class probabilities: torch divides by their number, whatever their weights.
            return float(target.numel() / target.shape[1])
        kept = target[target != criterion.ignore_index]
        return float(kept.numel() if criterion.weight is None else criterion.weight.to(kept.device)[kept].sum())

    return weight


def batch_loss_of(criterion: Callable[[Any, Any], Tensor], output: Any, target: Any) -> Tensor:
    """Return the loss of a batch; a criterion's own tensors, such as class weights, count in the output's dtype."""
    if not isinstance(criterion, nn.Module) or not isinstance(output, Tensor):
        return criterion(output, target)
    named = itertools.chain(criterion.named_parameters(), criterion.named_buffers())
    state = {name: tensor.detach().to(output) if tensor.is_floating_point() else tensor for name, tensor in named}
    loss: Tensor = functional_call(criterion, state, (output, target))
    return loss

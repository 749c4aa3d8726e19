"""What a batch is: its examples, its parts, its weight in the mean, and its loss under a criterion."""

from __future__ import annotations

import copy
import itertools
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from convexlab.errors import MisuseError

__all__ = [
    "batch_loss_of",
    "common_rows",
    "criterion_weight",
    "leaves_of",
    "mapped",
    "moved",
    "pair_of",
    "rows_of",
    "split",
]


def mapped(change: Callable[..., Any], batch: Any) -> Any:
    """Return the batch with ``change`` made to every leaf, in containers of the same kinds.

    Containers are those that torch knows, and dictionaries of other kinds such as Hugging Face's ``BatchEncoding``.
    """

    def change_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, UserDict):
            return change(leaf)
        other = copy.copy(leaf)
        other.data = {key: mapped(change, item) for key, item in leaf.data.items()}
        return other

    return tree_map(change_leaf, batch)


def leaves_of(batch: Any) -> list[Any]:
    """Return what `mapped` would change."""
    parts = (leaves_of(leaf.data) if isinstance(leaf, UserDict) else [leaf] for leaf in tree_leaves(batch))
    return list(itertools.chain.from_iterable(parts))


def pair_of(batch: Any) -> tuple[Any, Any]:
    """Return the input and the target of a batch.

    Raises:
        MisuseError: it is no pair.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Tensor):
        got = f"a tensor of shape {tuple(batch.shape)}. If the data are one pair (x, y), pass [(x, y)]"
    elif isinstance(batch, Mapping):
        got = f"a {type(batch).__name__} with the keys {', '.join(map(str, list(batch)[:6]))}"
    elif isinstance(batch, tuple | list):
        got = f"a {type(batch).__name__} of {len(batch)}"
    else:
        got = type(batch).__name__
    raise MisuseError(
        f"expected batches that are pairs (input, target), got {got}. For batches of any other kind use "
        "Objective.from_batch_loss(model, data, fn), where fn(model, batch) returns the mean loss; on the command line "
        "--loss file.py:fn."
    )


def _tensors(batch: Any) -> list[Tensor]:
    return [leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor) and leaf.ndim > 0]


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
    return lengths.pop() if len(lengths) == 1 and len(tensors) == len(leaves_of(batch)) else None


def split(batch: Any, size: int | None) -> Iterator[Any]:
    """Yield parts of a batch of at most ``size`` examples; None, or one that cannot be split, leaves it whole."""
    rows = common_rows(batch)
    if size is None or rows is None or rows <= size:
        yield batch
        return
    for start in range(0, rows, size):
        yield mapped(lambda item, start=start: item[start : start + size], batch)


def moved(item: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return an item of a batch on a device and in a dtype: whole numbers (labels, indices) keep theirs."""
    if not isinstance(item, Tensor):
        return item
    if item.is_inference():
        item = item.clone()  # Outside inference mode this is a tensor that a graph can hold.
    # A copy to the host that does not block may be read before it is there.
    return item.to(
        device=device, dtype=dtype if item.is_floating_point() else item.dtype, non_blocking=device.type != "cpu"
    )


def criterion_weight(criterion: Callable[[Any, Any], Tensor]) -> Callable[[Any], float] | None:
    """Return what a batch counts in the mean under those criteria of torch that do not count examples equally."""
    if not isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return None

    def weight(batch: Any) -> float:
        target = pair_of(batch)[1]
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

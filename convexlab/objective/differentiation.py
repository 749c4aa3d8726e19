"""Derivatives in the parameters, and the memory that their graphs take."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from convexlab.errors import FailureError
from convexlab.objective.batches import leaves_of

__all__ = ["BY_DIFFERENCES", "differentiate", "saved_bytes"]

BY_DIFFERENCES = (
    "differences of gradients: objective.hessian(products='differences'), on the command line --products differences"
)
"""The way out where torch cannot differentiate twice, for errors."""

# How torch says that an operation cannot be differentiated twice, with the name of the operation.
_NO_SECOND_DERIVATIVE = (
    re.compile(r"derivative for '?(?:aten::)?_?(\w+)'? is not implemented"),
    re.compile(r"double backwards on (\w+) not supported"),
    re.compile(r"differentiate twice (a function) that was marked"),
    re.compile(r"(torch\.compile) with aot_autograd does not currently support double backward"),
)


def saved_bytes(build: Callable[[], object], batch: Any, shared: Iterable[Tensor]) -> int:
    """Return the bytes that the graph made by ``build`` from a batch holds for a backward pass.

    Each storage counts once; that of ``shared`` tensors does not count. If the batch is a slice of the whole data set,
    only the slice counts. The graph is thrown away, because a graph built under these hooks would call them again at
    every product.
    """
    rows = [leaf for leaf in leaves_of(batch) if isinstance(leaf, Tensor)]
    known = {tensor.untyped_storage().data_ptr() for tensor in (*shared, *rows)}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        build()
    return sum(sizes.values()) + sum(tensor.nbytes for tensor in rows)


def differentiate(
    outputs: list[Tensor],
    inputs: list[Tensor],
    directions: list[Tensor] | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool = False,
    stacked: bool = False,
) -> list[Tensor]:
    """Return the transposed Jacobian of ``outputs`` in ``inputs`` times ``directions``; None stands for scalar 1s.

    An input that no output depends on gets zeros, even where that is so for all inputs. Stacked, directions and results
    have one more dimension in front, and all pass through the graph at once (`vmap`).
    """
    ones = directions if directions is not None else [torch.ones_like(output) for output in outputs]
    pairs = [(output, part) for output, part in zip(outputs, ones, strict=True) if output.requires_grad]
    if not pairs:
        return [_like(torch.zeros_like(leaf), leaf, ones[0] if stacked else None) for leaf in inputs]
    try:
        derivatives = torch.autograd.grad(
            [output for output, _ in pairs],
            inputs,
            [part for _, part in pairs],
            create_graph=create_graph,
            retain_graph=retain_graph or create_graph,
            allow_unused=True,
            materialize_grads=True,
            is_grads_batched=stacked,
        )
    except RuntimeError as error:
        if operation := _without_second_derivative(str(error)):
            raise FailureError(
                f"{operation} has no second derivative in torch, so there are no exact products of the Hessian. "
                f"Multiply by {BY_DIFFERENCES}; or write the operation in others that have one."
            ) from error
        raise
    dense = [derivative.to_dense() if derivative.is_sparse else derivative for derivative in derivatives]
    return [_like(each, leaf, ones[0]) for each, leaf in zip(dense, inputs, strict=True)] if stacked else dense


def _like(derivative: Tensor, leaf: Tensor, direction: Tensor | None) -> Tensor:
    """Return a derivative once for every direction of a stack; where it is zero for all, torch gives it but once."""
    once = direction is not None and derivative.ndim == leaf.ndim
    return derivative.expand(len(direction), *leaf.shape) if once else derivative  # type: ignore[arg-type]


def _without_second_derivative(text: str) -> str | None:
    """Return the name of the operation that torch cannot differentiate twice, if that is what its error says."""
    matches = (sign.search(text) for sign in _NO_SECOND_DERIVATIVE)
    return next((match.group(1).removesuffix("_backward") for match in matches if match), None)

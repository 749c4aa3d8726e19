"""Losses by name, as functions ``(output, target)`` or ``(model, batch)``, and the accuracy.

Those of ours work under ``torch.func`` transforms and are twice differentiable; nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from convexlab.errors import MisuseError, unknown_name
from convexlab.importing import call_accepted, is_spec, load_object, required_of

__all__ = [
    "Loss",
    "accuracy",
    "build_loss",
    "cross_entropy",
    "loss_names",
    "mean_squared_error",
    "residuals_of",
    "takes_model",
]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Output (..., classes) and target to the mean loss, a scalar tensor of the output's dtype."""


def mean_squared_error(output: Tensor, target: Tensor, *, classes: int | None = None) -> Tensor:
    """Return the mean of (output - target)² over examples and output units, the loss of the paper's experiments.

    Args:
        output: (..., classes), or any shape with a floating-point target.
        target: integer labels (...), compared as one-hot vectors, or floating-point values in the output's shape.
        classes: the number of classes; None is that of the outputs.

    Raises:
        MisuseError: the shapes do not belong together (they are never broadcast).
    """
    # Not functional.mse_loss: its gradient has no forward-mode derivative (torch 2.14: "ZeroTensors are immutable").
    return _errors(output, target, classes).square().mean()


def residuals_of(loss: Callable[[Any, Any], Tensor]) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the function of (output, target) whose values' squares sum to a loss that `build_loss` has made.

    None where the loss is not known as a sum of squares.
    """
    if not isinstance(loss, partial) or loss.func is not mean_squared_error:
        return None
    classes = loss.keywords["classes"]
    return lambda output, target: _errors(output, target, classes) / math.sqrt(output.numel())


def _errors(output: Tensor, target: Tensor, classes: int | None) -> Tensor:
    if target.is_floating_point():
        _require_same_shape(output, target)
    else:
        _require_labels(output, target, classes)
        # Not functional.one_hot: it inspects the labels' values, which vmap forbids and an accelerator waits for.
        target = target.unsqueeze(-1) == torch.arange(output.shape[-1], device=target.device)
    return output - target.to(output.dtype)


def cross_entropy(output: Tensor, target: Tensor, *, classes: int | None = None) -> Tensor:
    """Return the mean over examples of -Σ_c t_c log softmax(output)_c, in nats.

    Args:
        output: unnormalised log-probabilities, (..., classes).
        target: integer labels (...), or class probabilities t in the output's shape.
        classes: the number of classes; None is that of the outputs.

    Raises:
        MisuseError: the shapes do not belong together.
    """
    logits = output.reshape(-1, output.shape[-1])
    if target.is_floating_point():
        _require_same_shape(output, target)
        return functional.cross_entropy(logits, target.to(output.dtype).reshape(logits.shape))
    _require_labels(output, target, classes)
    return functional.cross_entropy(logits, target.reshape(-1))


_LOSSES: dict[str, Callable[..., Tensor]] = {"mse": mean_squared_error, "cross-entropy": cross_entropy}


def loss_names() -> tuple[str, ...]:
    """Return the names that `build_loss` knows."""
    return tuple(_LOSSES)


def build_loss(name: str, *, classes: int | None = None) -> Callable[[Any, Any], Tensor]:
    """Return a loss by its name.

    Args:
        name: one of `loss_names`, or ``package.module:function`` or ``file.py:function``. A function of two arguments
            is the loss itself, see `takes_model`. One that needs none, or ``classes`` alone, is a factory of it.
        classes: the number of classes, and of the model's outputs; None where nothing counts them.

    Raises:
        MisuseError: an unknown name, an object that cannot be imported, or neither a loss nor a factory of one.
    """
    if not is_spec(name):
        if name not in _LOSSES:
            raise unknown_name("loss", name, _LOSSES)
        return partial(_LOSSES[name], classes=classes)
    loss = load_object(name)
    if isinstance(loss, type) or not set(_arguments(loss)) - {"classes"}:
        offered = {} if classes is None else {"classes": classes}
        loss = call_accepted(loss, name, **offered)
    if not callable(loss):
        raise MisuseError(f"{name!r} returned {type(loss).__name__}: expected {_EXPECTED}.")
    if len(_arguments(loss)) > 2 or len(_arguments(loss)) == 1:
        raise MisuseError(f"{name!r} requires {', '.join(_arguments(loss))}: expected {_EXPECTED}.")
    return loss  # type: ignore[no-any-return]


_EXPECTED = (
    "a loss (output, target) or (model, batch) that returns the mean, or a factory of one that needs no argument"
)
# What a loss may call its first argument where that is the model.
_MODEL = frozenset({"model", "net", "network", "module"})


def takes_model(loss: Callable[[Any, Any], Tensor]) -> bool:
    """Return whether a loss is called as ``loss(model, batch)``; else it is called as ``loss(output, target)``.

    Its first argument is called model, net, network or module then, or its second one batch.
    """
    names = _arguments(loss)
    return len(names) == 2 and (names[0] in _MODEL or names[1] == "batch")


def _arguments(loss: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments that a loss needs; those of ``forward`` for a module."""
    return required_of(loss.forward if isinstance(loss, nn.Module) else loss)


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """Return the share of examples whose largest output is at the target's label.

    Args:
        output: (..., classes).
        target: integer labels (...).

    Returns:
        A scalar tensor on the output's device, float64 (float32 on ``mps``, which has no float64).

    Raises:
        MisuseError: the target is not one integer an example.
    """
    _require_labels(output, target, output.shape[-1])
    hits = output.argmax(dim=-1) == target
    return hits.to(torch.float32 if hits.device.type == "mps" else torch.float64).mean()


def _require_same_shape(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise MisuseError(
            f"expected floating-point targets in the output's shape {tuple(output.shape)}, got {tuple(target.shape)}. "
            "Reshape the targets, or pass labels as integers."
        )


def _require_labels(output: Tensor, target: Tensor, classes: int | None) -> None:
    if target.is_floating_point() or target.shape != output.shape[:-1]:
        raise MisuseError(
            f"expected one integer label an example, of shape {tuple(output.shape[:-1])}, "
            f"got {target.dtype} of shape {tuple(target.shape)}. Reshape the targets, or convert them to labels."
        )
    if classes is not None and output.shape[-1] != classes:
        raise MisuseError(
            f"expected a model with {classes} outputs, one a class, got {output.shape[-1]}. "
            "Build the model with the data set's number of classes."
        )

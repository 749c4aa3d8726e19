"""Losses by name, as functions ``(output, target) -> mean loss``, and the accuracy.

Both work under ``torch.func`` transforms and are twice differentiable; nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from convexlab.errors import MisuseError, unknown_name
from convexlab.importing import call_accepted, is_spec, load_object

__all__ = ["Loss", "accuracy", "build_loss", "cross_entropy", "loss_names", "mean_squared_error"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Output (..., classes) and target to the mean loss, a scalar tensor of the output's dtype."""


def mean_squared_error(output: Tensor, target: Tensor, *, classes: int) -> Tensor:
    """Return the mean of (output - target)² over examples and output units, the loss of the paper's experiments.

    Args:
        output: (..., classes), or any shape with a floating-point target.
        target: integer labels (...), compared as one-hot vectors, or floating-point values in the output's shape.
        classes: the number of classes.

    Raises:
        MisuseError: the shapes do not belong together (they are never broadcast).
    """
    if target.is_floating_point():
        _require_same_shape(output, target)
    else:
        _require_labels(output, target, classes)
        # Not functional.one_hot: it inspects the labels' values, which vmap forbids and an accelerator waits for.
        target = target.unsqueeze(-1) == torch.arange(classes, device=target.device)
    # Not functional.mse_loss: its gradient has no forward-mode derivative (torch 2.14: "ZeroTensors are immutable").
    return (output - target.to(output.dtype)).square().mean()


def cross_entropy(output: Tensor, target: Tensor, *, classes: int) -> Tensor:
    """Return the mean over examples of -Σ_c t_c log softmax(output)_c, in nats.

    Args:
        output: unnormalised log-probabilities, (..., classes).
        target: integer labels (...), or class probabilities t in the output's shape.
        classes: the number of classes.

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


def build_loss(name: str, *, classes: int) -> Loss:
    """Return a loss by its name.

    Args:
        name: one of `loss_names`, or ``package.module:factory`` or ``file.py:factory``, whose factory returns the
            loss and is called with the keyword argument ``classes`` if it takes it.
        classes: the number of classes, and of the model's outputs.

    Raises:
        MisuseError: an unknown name, an object that cannot be imported, or a factory that returns no callable.
    """
    if is_spec(name):
        loss = call_accepted(load_object(name), name, classes=classes)
        if not callable(loss):
            raise MisuseError(
                f"{name!r} returned {type(loss).__name__}: expected a callable (output, target) -> mean loss."
            )
        return loss  # type: ignore[no-any-return]
    if name not in _LOSSES:
        raise unknown_name("loss", name, _LOSSES)
    return partial(_LOSSES[name], classes=classes)


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


def _require_labels(output: Tensor, target: Tensor, classes: int) -> None:
    if target.is_floating_point() or target.shape != output.shape[:-1]:
        raise MisuseError(
            f"expected one integer label an example, of shape {tuple(output.shape[:-1])}, "
            f"got {target.dtype} of shape {tuple(target.shape)}. Reshape the targets, or convert them to labels."
        )
    if output.shape[-1] != classes:
        raise MisuseError(
            f"expected a model with {classes} outputs, one a class, got {output.shape[-1]}. "
            "Build the model with the data set's number of classes."
        )

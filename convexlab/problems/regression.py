"""A regression of tabular data."""

from __future__ import annotations

import torch
from torch import nn

from convexlab.architectures import Perceptron
from convexlab.errors import MisuseError
from convexlab.machine.random_state import drawn_from
from convexlab.objective import Objective
from convexlab.problems.minibatches import RandomRows, default_batch_size
from convexlab.problems.problem import Problem

__all__ = ["friedman"]

_EXAMPLES, _VALIDATION = 1000, 2000
_NOISE, _INPUTS, _WIDTH, _DEPTH = 0.1, 8, 64, 2


def friedman(
    *,
    train_size: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Problem:
    """Return Friedman's first function (1991) of 8 variables, of which 5 count, for a perceptron 8-64-64-1.

    Values are standardised; the noise is 2 % of them.

    Args:
        train_size: examples; None is 1,000.
        batch_size: Adam's; None is a twentieth of the examples, from 16 to 512.
        seed: of the examples and the weights.
        device: where to train; None is the CPU.

    Raises:
        MisuseError: fewer than two examples, whose values have no spread to standardise by.
    """
    from sklearn.datasets import make_friedman1

    size = _EXAMPLES if train_size is None else train_size
    if size < 2:
        raise MisuseError(f"values are standardised by their spread: expected train_size to be at least 2, got {size}.")
    inputs, values = make_friedman1(size + _VALIDATION, n_features=_INPUTS, noise=_NOISE, random_state=seed)
    values = (values - values[:size].mean()) / values[:size].std()
    x, y = (torch.from_numpy(part).float().to(device) for part in (2 * inputs - 1, values[:, None]))
    model = drawn_from(seed, lambda: Perceptron(_INPUTS, width=_WIDTH, depth=_DEPTH)).to(device)
    criterion = nn.MSELoss()
    # One batch: the network is too small to fall out of the cache, and calls cost more than arithmetic.
    objective = Objective(model, [(x[:size], y[:size])], criterion, micro_batch=None)
    held_out = Objective(model, [(x[size:], y[size:])], criterion, micro_batch=None)
    batch_size = batch_size or default_batch_size(size)
    return Problem(
        model,
        objective,
        minibatches=RandomRows((x[:size], y[:size]), size, batch_size),
        validate=lambda: {"validation_loss": held_out.value()},
        about="Friedman's first function",
    )

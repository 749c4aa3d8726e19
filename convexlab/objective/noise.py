"""How coarsely a function rounds. Whatever its dtype, it may compute in a narrower one inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["NEARBY", "POINTS", "coarsest_eps", "noise_of"]

NEARBY = 2.0**-22
"""How far, relatively, parameters are moved to see rounding alone. It is far enough that float64 rounds differently
even a quantity that lost nine digits to cancellation, and no further than float32 can resolve."""
POINTS = 5
"""Values from which noise is measured."""


def noise_of(values: Tensor) -> float:
    """Return the standard deviation of the noise in a function's values at equally spaced points, very near each other.

    The k-th differences of m + 1 values of a smooth function vanish as k grows. Those of noise of variance σ² have the
    variance σ² (2k)! / (k!)² (Moré & Wild 2011, "Estimating computational noise", doi 10.1137/100786125, equation 2.4).
    The smallest of the estimates by order is taken, because the smooth part can only increase them.

    Args:
        values: (m + 1,), or (m + 1, n) of a function of n values; the noise is then that of the whole vector.
    """
    table, estimates = values.to(torch.float64).reshape(len(values), -1), []
    for order in range(1, len(values) - 1):  # The last difference, a single one, is too few.
        table = table.diff(dim=0)
        scale = math.factorial(order) ** 2 / math.factorial(2 * order)
        estimates.append(scale * table.square().sum(dim=1).mean())
    return math.sqrt(float(torch.stack(estimates).min()))


def coarsest_eps(run: Callable[[], object]) -> float:
    """Return the largest ε of the floating-point numbers that ``run`` calculates in; 0 where there are none.

    A function does not change where its arguments move by less than that.
    """
    with _Dtypes() as dtypes:  # Gradients stay on: a loss may differentiate in its input.
        run()
    return max((torch.finfo(dtype).eps for dtype in dtypes.floating), default=0.0)


class _Dtypes(TorchDispatchMode):
    """Notes the floating-point dtypes of what operations return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.floating: set[torch.dtype] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # As in `LiveTensors`: with True, torch imports its compiler, which takes seconds.

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.floating |= {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        return output

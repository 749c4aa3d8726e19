"""A model evaluated so that its loss is one function, whichever derivative of it is asked for.

In eval mode torch may run other code than in training mode. Examples are an encoder's fused fast path, where no
gradient is needed, and compiled code. These round differently, have no second derivative, or (with padding) give other
values.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.overrides import TorchFunctionMode

__all__ = ["as_one_function"]


@contextlib.contextmanager
def as_one_function(model: nn.Module) -> Iterator[None]:
    """Within the block: eval mode, no fast path, no compiled code, dense gradients, `torch._weight_norm` by formula.

    Afterwards everything is as it was.
    """
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    sparse = [module for module in modules if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with contextlib.ExitStack() as stack:
        if any(map(_normalises_weights, modules)):
            stack.enter_context(_WeightNormByFormula())
        if "torch._dynamo" in sys.modules:  # Without it nothing is compiled, and importing it takes a second.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for embedding in sparse:
                embedding.sparse = False
            model.eval()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for embedding in sparse:
                embedding.sparse = True
            for module, training in modes:
                module.training = training


class _WeightNormByFormula(TorchFunctionMode):
    """Replaces `torch._weight_norm` by v · g / ‖v‖ in operations whose second derivatives are right.

    Those of the fused operation are not: the Hessian through it comes out asymmetric (seen in torch 2.14).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return v · g / ‖v‖, the norm taken over all dimensions but ``dim``; over all of them where that is -1.

    Source: Salimans & Kingma 2016, "Weight normalization", equation (2).
    """
    others = [other for other in range(v.ndim) if dim == -1 or other != dim % v.ndim]
    normed: Tensor = v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))
    return normed


def _normalises_weights(module: nn.Module) -> bool:
    """Return whether the module is torch's weight norm, as a parametrization or as the older hook."""
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, parametrizations._WeightNorm) or any(
        type(hook).__name__ == "WeightNorm" for hook in hooks
    )

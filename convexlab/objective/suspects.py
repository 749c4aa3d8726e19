"""Which module of a model has wrong second derivatives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from convexlab.errors import FailureError
from convexlab.objective.soundness import compare_second_derivatives

__all__ = ["suspect_in"]


@dataclass(frozen=True)
class _Call:
    """How a module was called first."""

    inputs: list[Any]
    """The leaves of its arguments, detached."""
    structure: Any


def suspect_in(model: nn.Module, run: Callable[[], object]) -> str:
    """Return words for the innermost module whose second derivatives are wrong when ``run`` calls the model.

    Each module is called again on its own, with the arguments of its first call. Its products are compared with
    differences of gradients. Where all modules are right, the fault is in the loss of the model's output.

    Args:
        model: whose parameters are in the dtype to check in, as swapped by ``run`` itself.
        run: evaluates the loss once.
    """
    with _calls_of(model) as calls:
        run()
    modules, wrong = dict(model.named_modules()), list[tuple[str, str]]()
    # Children before their parents.
    for name in sorted(calls, key=lambda name: (-name.count(".") - bool(name), name)):
        inner = any(other == name or other.startswith(f"{name}." if name else "") for other, _ in wrong)
        if not inner and _is_wrong(modules[name], calls[name]):
            wrong.append((name, _words(name, modules[name])))
    if not wrong:
        return "what the loss does with the model's output"
    return " and ".join(words for _, words in wrong[:3])


@contextlib.contextmanager
def _calls_of(model: nn.Module) -> Iterator[dict[str, _Call]]:
    """Record the first call of every module, with the parameters that it had then."""
    calls: dict[str, _Call] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if name not in calls:
                state = {
                    key: tensor.detach().clone()
                    for key, tensor in (*module.named_parameters(), *module.named_buffers())
                }
                inputs, structure = tree_flatten((state, args, kwargs))
                calls[name] = _Call([item.detach() if isinstance(item, Tensor) else item for item in inputs], structure)

        return hook

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            handle = module.register_forward_pre_hook(record(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield calls


def _is_wrong(module: nn.Module, call: _Call) -> bool:
    """Return whether products through the module, in its inputs and parameters, are wrong."""
    places = [
        place
        for place, item in enumerate(call.inputs)
        if isinstance(item, Tensor) and item.is_floating_point() and item.numel()
    ]

    def scalar(leaves: list[Tensor]) -> Tensor:
        inputs = list(call.inputs)
        for place, leaf in zip(places, leaves, strict=True):
            inputs[place] = leaf
        state, args, kwargs = tree_unflatten(inputs, call.structure)
        outputs = tree_leaves(functional_call(module, state, args, kwargs))
        total = torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device)
        generator = torch.Generator().manual_seed(2)
        for output in outputs:
            if isinstance(output, Tensor) and output.is_floating_point() and output.requires_grad:
                weights = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
                total = total + (output * weights).sum() + (output.square() * weights).sum() / 2
        return total

    if not places:
        return False
    leaves = [call.inputs[place].clone().requires_grad_() for place in places]
    try:
        return compare_second_derivatives(scalar, leaves).refuted
    except FailureError:
        return True  # An operation says itself that it cannot be differentiated twice.
    except (RuntimeError, TypeError, ValueError):
        return False  # It does not stand alone, such as one whose state is elsewhere.


def _words(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    return f"the model's own forward ({kind})" if not name else f"module {name!r} ({kind})"

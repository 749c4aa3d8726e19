"""A model's selected parameters as one flat vector, and inner products that do not lose digits."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError, unknown_name

__all__ = [
    "SHARDED",
    "accumulation_dtype",
    "dot",
    "flatten",
    "gradient_of",
    "is_sharded",
    "norm",
    "scale_of",
    "select_parameters",
    "unflatten",
    "unit_columns",
]


SHARDED = (
    "a DTensor, of which every process has a part (FSDP2, tensor parallelism). Expected parameters that are whole in "
    "every process: products would gather the model. Gather it first (torch.distributed.checkpoint.state_dict."
    "get_model_state_dict with full_state_dict=True, into a model that is not sharded); examples and long vectors are "
    "shared out by group= all the same. docs/distributed.md has the plan for sharded models."
)
"""The text for a parameter that `is_sharded`."""


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor; there are none where its module was never imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which sums are kept: float64, but float32 on ``mps``, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def dot(u: Tensor, v: Tensor) -> Tensor:
    """Return uᵀv of two flat vectors, accumulated in float64, as a 0-dimensional tensor on their device."""
    dtype = accumulation_dtype(u.device)
    return torch.dot(u.to(dtype), v.to(dtype))


def norm(u: Tensor) -> Tensor:
    """Return ‖u‖ of a flat vector, accumulated in float64, as a 0-dimensional tensor on its device."""
    length: Tensor = torch.linalg.vector_norm(u, dtype=accumulation_dtype(u.device))
    return length


def scale_of(tensors: Iterable[Tensor]) -> float:
    """Return the length of the vector that the tensors make, as a scale for steps; 1 where it is zero."""
    return float(norm(flatten(tensor.detach() for tensor in tensors))) or 1.0


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Return one vector (n,) of all entries, tensor after tensor."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Return views of ``flat`` (n,) in the shapes of ``like``; the inverse of `flatten`."""
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def unit_columns(vectors: Tensor, size: int, device: torch.device) -> Tensor:
    """Return vectors of shape (n,) or (n, k) as columns (n, k) of unit length, in float64 on ``device``.

    Raises:
        MisuseError: another shape, n being ``size``, or a vector that is zero or not finite.
    """
    if vectors.ndim not in {1, 2} or vectors.shape[0] != size:
        raise MisuseError(f"expected vectors of shape ({size},) or ({size}, k), got {tuple(vectors.shape)}.")
    columns = vectors.detach().reshape(size, -1) if vectors.ndim == 1 else vectors.detach()
    columns = columns.to(device=device, dtype=accumulation_dtype(device))
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0)
    if not bool(((lengths > 0) & lengths.isfinite()).all()):
        raise MisuseError(
            f"expected vectors of finite length above 0, got lengths {lengths.tolist()}. Leave out what is zero or not "
            "finite."
        )
    return columns / lengths


def select_parameters(
    model: nn.Module, params: Iterable[str | nn.Parameter] | str | nn.Parameter | None = None
) -> dict[str, nn.Parameter]:
    """Return the selected parameters by name, in the model's order; a tied parameter counts once.

    Args:
        model: the module.
        params: names of parameters or of modules, glob patterns (``"encoder.*.query"``) or parameters; None selects
            all that require a gradient. A tied parameter may be called by any of its names.

    Raises:
        MisuseError: a name or pattern that matches nothing, a parameter of another model, one that is not of real
            floating point, or an empty selection.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if params is None:
        chosen = {id(parameter) for parameter in named.values() if parameter.requires_grad}
    else:
        requests = [params] if isinstance(params, str | nn.Parameter) else list(params)
        chosen = {id(named[name]) for request in requests for name in _matches(named, request)}
    if not chosen:
        raise MisuseError(
            "no parameter is selected: expected at least one that requires a gradient. "
            "Call requires_grad_() on some, or name them through `params`."
        )
    selected = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in chosen}
    for name, parameter in selected.items():
        if is_sharded(parameter):
            raise MisuseError(f"parameter {name!r} is {SHARDED}")
        if parameter.is_complex():
            raise MisuseError(
                f"expected parameters of real floating point, got {name!r} of {parameter.dtype}. Keep its real and "
                "imaginary parts as one real parameter, with torch.view_as_complex in forward; or leave it out of "
                "`params`."
            )
        if not parameter.is_floating_point():
            raise MisuseError(
                f"expected parameters of real floating point, got {name!r} of {parameter.dtype}. "
                "Leave it out of `params`."
            )
    return selected


def _matches(named: dict[str, nn.Parameter], request: str | nn.Parameter) -> list[str]:
    if isinstance(request, str):
        names = fnmatch.filter(named, request) or [name for name in named if name.startswith(f"{request}.")]
        if not names:
            raise unknown_name("parameter", request, named)
        return names
    names = [name for name, parameter in named.items() if parameter is request]
    if not names:
        raise MisuseError("a parameter in `params` does not belong to the model. Pass parameters of this model.")
    return names


def gradient_of(parameter: Tensor) -> Tensor:
    """Return what the last backward pass has left; zeros where there is nothing."""
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad

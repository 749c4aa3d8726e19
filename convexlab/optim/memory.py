"""What a flat optimiser carries from one step to the next: a dataclass a method, and the one way to store it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Self, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from convexlab.linalg.vectors import accumulation_dtype
from convexlab.machine.ranks import Ranks
from convexlab.optim.evaluation import Evaluation

__all__ = ["ACCUMULATED", "ROWS", "VECTORS", "Memory"]

# Of a count; sums of it with others are still whole numbers of 64 bits.
_LARGEST = 2**53

ACCUMULATED: Mapping[str, bool] = MappingProxyType({"accumulated": True})
"""Metadata of a field whose tensor has the dtype of sums (`accumulation_dtype`), whatever the parameters' is."""
VECTORS: Mapping[str, Any] = MappingProxyType({"split": -1})
"""Metadata of a field whose tensor is rows (k, n) of which every rank holds its part of the columns."""
ROWS: Mapping[str, Any] = MappingProxyType({"split": 0})
"""Metadata of a field whose tensor is a matrix (n, n) of which every rank holds its part of the rows."""


@dataclass
class Memory:
    """What every method remembers; each adds its own fields.

    Tensors are flat, in the parameters' dtype and on their device, and never changed in place unless their field says
    so. What is stored has the names of the fields: renaming one makes older states unreadable.
    """

    weights: Tensor | None = None
    """x where the last step ended, (n,); None before the first. Others in their place were set by someone else."""
    kept_loss: float = 0.0
    """f(x)."""
    kept_gradient: Tensor | None = None
    """g at x, (n,); None if the last step did not evaluate it there, which leaves the other two without a meaning."""
    kept_squared_norm: float = 0.0
    """gᵀg."""
    step_size: float = 0.0
    """α of the last step taken; 0 before the first."""
    slope: float = 0.0
    """gᵀd where that step began: loss per unit of α, negative."""
    direction: Tensor | None = None
    """d of the last step, (n,); None where the next one has nothing to learn from it."""
    first_step: float | None = None
    """α to try first, where the limit of evaluations cut the last search short."""
    resolution: float | None = None
    """Relative rounding error of a loss, where a search has measured more than that of the dtype."""
    restarted: str | None = None
    """Why the memory was dropped, for the report of the step that begins afresh."""
    halted: str | None = None
    """Why no direction descends from these weights, once a step has tried all directions in vain."""
    halted_as: str | None = None
    """The state that such a step reported."""
    renewals: float = 0.0
    """Count of changes of the closure to another function: 1 each, reduced by a tenth with every step."""

    @property
    def kept(self) -> Evaluation | None:
        """The evaluation where the last step ended, if there was one."""
        gradient = self.kept_gradient
        return None if gradient is None else Evaluation(self.kept_loss, gradient, self.kept_squared_norm)

    def ending(self, weights: Tensor, evaluation: Evaluation | None) -> Self:
        """Return the memory after a step that ended at these weights, and what is known there."""
        ended = replace(
            self, weights=weights, kept_gradient=None, first_step=None, restarted=None, halted=None, halted_as=None
        )
        return ended if evaluation is None else ended.keeping(evaluation)

    def keeping(self, evaluation: Evaluation) -> Self:
        """Return the memory with this evaluation in place of the last."""
        return replace(
            self,
            kept_loss=evaluation.loss,
            kept_gradient=evaluation.gradient,
            kept_squared_norm=evaluation.squared_norm,
            halted=None,
            halted_as=None,
        )

    def as_state(self) -> dict[str, Any]:
        """Return the fields that are set: tensors, not copied, numbers, lists of numbers, and text."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def like(self, parameter: Tensor) -> Self:
        """Return the memory in the dtype and on the device of a parameter.

        In another dtype the loss is another function, so its evaluations and its rounding are left out.
        """
        if self.weights is None or (self.weights.dtype, self.weights.device) == (parameter.dtype, parameter.device):
            return self
        moved = self.from_state(self.as_state(), parameter)
        if self.weights.dtype == parameter.dtype:
            return moved
        return replace(moved, kept_gradient=None, resolution=None, halted=None, halted_as=None)

    @classmethod
    def from_state(cls, stored: Mapping[str, Any], like: Tensor) -> Self:
        """Return a copy of what `as_state` returned, in the dtype and on the device of a parameter."""
        sums = accumulation_dtype(like.device)
        dtypes = {each.name: sums if "accumulated" in each.metadata else like.dtype for each in fields(cls)}
        return cls(**{name: _copy(value, like.device, dtypes[name]) for name, value in stored.items()})

    def joined(self, ranks: Ranks, size: int) -> Self:
        """Return the memory of all ranks, of which each holds a part, in rank 0; the others get it without the parts.

        Args:
            ranks: all of which have to call it.
            size: of the vectors.
        """
        if ranks.size == 1:
            return self
        wholes: dict[str, Any] = {
            name: ranks.joined_by_writer(tensor.movedim(split, -1), size).movedim(-1, split).contiguous()
            for name, tensor, split in self._split()
        }
        return replace(self, **wholes)

    def part(self, ranks: Ranks, size: int) -> Self:
        """Return what this rank holds of a memory that is whole."""
        if ranks.size == 1:
            return self
        ours = ranks.part_of(size)
        parts = {name: tensor.movedim(split, 0)[ours].movedim(0, split) for name, tensor, split in self._split()}
        kept: dict[str, Any] = {name: part.clone(memory_format=torch.contiguous_format) for name, part in parts.items()}
        return replace(self, **kept)

    def holds_part(self, ranks: Ranks, size: int) -> bool:
        """Whether it is what one of these ranks holds."""
        part = ranks.part_of(size)
        return all(tensor.shape[split] == part.stop - part.start for _, tensor, split in self._split())

    def _split(self) -> list[tuple[str, Tensor, int]]:
        """Return name, tensor and dimension of what is split over the ranks, as far as it is there."""
        kinds = [(each.name, each.metadata["split"]) for each in fields(self) if "split" in each.metadata]
        there = [(name, getattr(self, name), split) for name, split in kinds]
        return [(name, tensor, split) for name, tensor, split in there if tensor is not None and tensor.numel()]

    def shapes(self, size: int) -> dict[str, tuple[int, ...]]:
        """Return what shape each tensor that is set has, for parameters of so many numbers."""
        return dict.fromkeys(("weights", "kept_gradient", "direction"), (size,))

    def misfit(self, size: int) -> str | None:
        """Return what is not as a step leaves it, for parameters of so many numbers; None where all is."""
        kinds = get_type_hints(type(self))
        for name, kind in kinds.items():
            if not _fits(getattr(self, name), kind):
                return f"{name} is a {type(getattr(self, name)).__name__} of no use there"
        for name, shape in self.shapes(size).items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                return f"{name} has shape {tuple(tensor.shape)}, expected {shape}"
        return None


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of the kind that a field is annotated with; whole numbers are of a count's size."""
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    kinds = get_args(kind) or (kind,)
    if value is None or isinstance(value, bool | str | Tensor):
        return isinstance(value, tuple(kinds))
    if isinstance(value, float):
        return float in kinds
    return isinstance(value, int) and abs(value) <= _LARGEST and (float in kinds or (int in kinds and value >= 0))


def _copy(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype, copy=True)
    return list(value) if isinstance(value, list) else value

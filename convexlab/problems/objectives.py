"""Objectives by name: losses that are not of images and labels, each with its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch

from convexlab.architectures import Perceptron
from convexlab.errors import MisuseError, unknown_name
from convexlab.importing import call_accepted, is_spec, load_object
from convexlab.machine.environment import resolve_device, resolve_dtype
from convexlab.machine.random_state import drawn_from
from convexlab.objective import Objective
from convexlab.problems.physics_informed import DifferentialEquation, burgers, convection

__all__ = ["build_objective", "objective_names", "physics_informed"]

_POINTS = 1000


def physics_informed(
    equation: DifferentialEquation,
    *,
    train_size: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Objective:
    """Return the loss of a physics-informed network of 4 × 50 tanh units (7,851 parameters, float32).

    Args:
        equation: what it shall solve.
        train_size: random points in the interior; None is 1,000. Of the initial condition there are 100, of the
            boundary 100 pairs.
        seed: of the weights and of the points.
        device: where to evaluate; None is the CPU.
    """
    points = equation.points(_POINTS if train_size is None else train_size, seed=seed)
    return Objective.from_batch_loss(drawn_from(seed, Perceptron).to(device=device), [points], equation.loss)


@dataclass(frozen=True)
class _Named:
    description: str
    build: Callable[..., Objective]


_OBJECTIVES: Mapping[str, _Named] = MappingProxyType(
    {
        f"pinn-{name}": _Named(
            f"physics-informed, 4 x 50 tanh units: {equation().description}",
            partial(physics_informed, equation()),
        )
        for name, equation in {"convection": convection, "burgers": burgers}.items()
    }
)


def objective_names() -> dict[str, str]:
    """Return the name of every objective that `build_objective` knows, with its one-line description."""
    return {name: named.description for name, named in _OBJECTIVES.items()}


def build_objective(
    name: str, *, train_size: int | None = None, seed: int = 0, dtype: str | None = None, device: str = "auto"
) -> Objective:
    """Return an objective, with its model, by its name.

    Args:
        name: one of `objective_names`, or ``package.module:factory`` or ``file.py:factory``, whose factory returns an
            `Objective` and is called with those of the keyword arguments ``train_size``, ``seed`` and ``device`` that
            it names. ``device`` is a `torch.device`.
        train_size: how many examples, or points; None leaves it to the factory.
        seed: of whatever the factory draws.
        dtype: to evaluate in; None leaves it to the factory.
        device: where to evaluate, if the factory asks.

    Raises:
        MisuseError: an unknown name, a factory that cannot be imported or returns anything but an `Objective`.
        FailureError: the factory raised an error of its own.
    """
    precision = None if dtype is None else resolve_dtype(dtype)
    available: dict[str, object] = {"seed": seed, "device": resolve_device(device)}
    if train_size is not None:  # Else a default of the factory's own stands.
        available["train_size"] = train_size
    objective = call_accepted(_factory(name), name, **available)
    if not isinstance(objective, Objective):
        raise MisuseError(
            f"{name!r} returned {type(objective).__name__}: expected a convexlab.Objective. Build one by "
            "Objective(model, batches, criterion) or Objective.from_batch_loss(model, batches, fn)."
        )
    if precision is None or precision == objective.dtype:
        return objective
    objective.model.to(dtype=precision)  # Else weights of that precision would be rounded to the model's own.
    return objective.in_dtype(precision)


def _factory(name: str) -> Callable[..., object]:
    if is_spec(name):
        return load_object(name)  # type: ignore[no-any-return]
    if name not in _OBJECTIVES:
        raise unknown_name("objective", name, _OBJECTIVES)
    return _OBJECTIVES[name].build

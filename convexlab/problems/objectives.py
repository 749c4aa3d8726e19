"""Problems by name that are not of images and labels, each with its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch

from convexlab.architectures import Perceptron
from convexlab.errors import MisuseError, unknown_name
from convexlab.importing import call_asked, is_spec, load_object
from convexlab.machine.environment import resolve_device, resolve_dtype
from convexlab.machine.random_state import drawn_from
from convexlab.objective import Objective
from convexlab.problems.physics_informed import (
    DifferentialEquation,
    Points,
    allen_cahn,
    burgers,
    convection,
    helmholtz,
    klein_gordon,
    wave,
)
from convexlab.problems.problem import Problem
from convexlab.problems.regression import friedman
from convexlab.problems.text import text

__all__ = ["Factory", "build_objective", "objective_epochs", "objective_names", "physics_informed"]

_POINTS = 1000

Factory = Callable[..., Problem | Objective]
"""Is called with those of the keywords ``train_size``, ``batch_size``, ``seed`` and ``device`` that it names."""


def physics_informed(
    equation: DifferentialEquation,
    *,
    width: int = 50,
    depth: int = 4,
    train_size: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Problem:
    """Return a physics-informed network of tanh units (7,851 parameters, float32), trained on the whole batch.

    Its validation gives ``validation_loss``, at as many other points, and the solution's ``relative_error``.

    Args:
        equation: the equation that it has to solve.
        width: units of a hidden layer.
        depth: hidden layers.
        train_size: random points in the interior; None is 1,000. Of the initial condition there are 100, of the
            boundary 100 pairs.
        seed: of the weights and of the points.
        device: where to evaluate; None is the CPU.
    """
    size = _POINTS if train_size is None else train_size
    model = drawn_from(seed, lambda: Perceptron(width=width, depth=depth)).to(device=device)

    def loss_at(seed: int) -> Objective:
        points = Points(*(part.to(device) for part in equation.points(size, seed=seed)))
        return Objective.from_batch_loss(model, [points], equation.loss, residuals=equation.scaled_residuals)

    fresh = loss_at(seed + 1)

    def validate() -> dict[str, float]:
        return {"validation_loss": fresh.value(), "relative_error": equation.relative_error(model, device=device)}

    return Problem(model, loss_at(seed), validate=validate, about=equation.description.partition(",")[0])


@dataclass(frozen=True)
class _Named:
    description: str
    build: Factory
    epochs: int
    """The budget of a training that is asked for by the name alone."""


def _pinn(equation: Callable[[], DifferentialEquation], width: int, depth: int, epochs: int) -> _Named:
    return _Named(
        f"physics-informed, {depth} x {width} tanh units: {equation().description}",
        partial(physics_informed, equation(), width=width, depth=depth),
        epochs,
    )


_OBJECTIVES: Mapping[str, _Named] = MappingProxyType(
    {
        "pinn-helmholtz": _pinn(helmholtz, 30, 3, 2000),
        "pinn-klein-gordon": _pinn(klein_gordon, 30, 3, 2000),
        "pinn-allen-cahn": _pinn(allen_cahn, 30, 3, 2000),
        "pinn-wave": _pinn(wave, 30, 3, 2000),
        "pinn-convection": _pinn(convection, 50, 4, 5000),
        "pinn-burgers": _pinn(burgers, 50, 4, 5000),
        "friedman": _Named("regression: Friedman's first function of 8 variables, 2 x 64 tanh units", friedman, 150),
        "text": _Named("language: names of Unicode characters by bytes, a 2-layer decoder-only transformer", text, 100),
    }
)


def objective_epochs(name: str) -> int | None:
    """Return the budget in epochs that goes with an objective's name; None where it has none."""
    named = _OBJECTIVES.get(name)
    return None if named is None else named.epochs


def objective_names() -> dict[str, str]:
    """Return the name of every problem that `build_objective` knows, with its one-line description."""
    return {name: named.description for name, named in _OBJECTIVES.items()}


def build_objective(
    subject: str | Factory | Problem | Objective,
    *,
    train_size: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
) -> Problem:
    """Return a problem by its name, by a factory, or of an objective at hand.

    Args:
        subject: one of `objective_names`; ``package.module:factory`` or ``file.py:factory``, or the factory itself; an
            `Objective` or a `Problem`, which is taken as it is. A factory returns either, and is called with those of
            the keyword arguments ``train_size``, ``batch_size``, ``seed`` and ``device`` that it names. ``device`` is a
            `torch.device`.
        train_size: how many examples, or points; None leaves it to the factory.
        batch_size: Adam's; None leaves it to the factory.
        seed: of whatever the factory draws.
        dtype: to train and evaluate in; None leaves it to the factory.
        device: where, if the factory asks.

    Raises:
        MisuseError: an unknown name, a factory that cannot be imported, returns anything else or takes no size that
            was asked for.
        FailureError: the factory raised an error of its own.
    """
    precision = None if dtype is None else resolve_dtype(dtype)
    if isinstance(subject, Problem | Objective):
        return _in_dtype(Problem.of(subject), precision)
    place = resolve_device(device)
    if not (isinstance(subject, str) or callable(subject)):
        raise MisuseError(
            "expected an objective by name, a factory of one, a convexlab.Objective or a convexlab.Problem, got "
            f"{type(subject).__name__}."
        )
    factory = _factory(subject) if isinstance(subject, str) else subject
    name = subject if isinstance(subject, str) else getattr(subject, "__qualname__", repr(subject))
    # A default of the factory's own stands where nothing is asked for.
    asked = {"train_size": train_size, "batch_size": batch_size}
    made = call_asked(factory, name, asked, seed=seed, device=place)
    if not isinstance(made, Problem | Objective):
        raise MisuseError(
            f"{name!r} returned {type(made).__name__}: expected a convexlab.Objective or a convexlab.Problem. Build "
            "one by Objective(model, batches, criterion) or Objective.from_batch_loss(model, batches, fn)."
        )
    return _in_dtype(Problem.of(made), precision)


def _in_dtype(problem: Problem, precision: torch.dtype | None) -> Problem:
    if precision is None or precision == problem.objective.dtype:
        return problem
    problem.model.to(dtype=precision)  # Weights of that precision would be rounded to the model's own otherwise.
    return dataclasses.replace(problem, objective=problem.objective.in_dtype(precision))


def _factory(name: str) -> Factory:
    if is_spec(name):
        return load_object(name)  # type: ignore[no-any-return]
    if name not in _OBJECTIVES:
        raise unknown_name("objective", name, _OBJECTIVES)
    return _OBJECTIVES[name].build

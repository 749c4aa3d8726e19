"""What is trained in a study: a training loss with its mini-batches, of images or of any other kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from sklearn.datasets import make_friedman1
from torch import Tensor, nn

from convexlab.architectures import Perceptron
from convexlab.datasets import Batches
from convexlab.linalg.vectors import unflatten
from convexlab.machine.random_state import drawn_from
from convexlab.objective import Objective
from convexlab.problems.objectives import physics_informed
from convexlab.problems.physics_informed import DifferentialEquation, Points
from convexlab.problems.problem import build_problem

__all__ = ["Task", "images", "perceptron", "physics", "regression"]

_VALIDATION = 2000
_EVALUATION_BATCH = 512
_SIDE = 8
_NOISE, _INPUTS, _WIDTH, _DEPTH = 0.1, 8, 64, 2


@dataclass(frozen=True)
class Task:
    """A problem at hand: the training loss, its mini-batches, its validation."""

    model: nn.Module
    objective: Objective
    loss: Callable[[Tensor | None], Tensor]
    """The mean loss of some examples, by their rows, or of all of them; with its graph."""
    validate: Callable[[], tuple[float, float | None]]
    """Validation loss and accuracy at the present weights; of a physics-informed network, the relative error."""
    examples: int
    """Of the training set; of a physics-informed network, points in the interior."""
    batch_size: int
    """Adam's; 0 is the whole set, so that a step of Adam is a gradient equivalent."""
    initial: Tensor
    """(n,), the start."""
    train_accuracy: Callable[[], float] | None = field(default=None, kw_only=True)
    """Share of the training examples whose class is right at the present weights; None where there are no classes."""

    def write(self, weights: Tensor) -> None:
        """Set the parameters from a flat vector (n,)."""
        parameters: list[Tensor] = list(self.model.parameters())
        with torch.no_grad():
            torch._foreach_copy_(parameters, unflatten(weights, parameters))

    def batches(self, order: torch.Generator) -> Iterator[Tensor | None]:
        """Yield the rows of one epoch's mini-batches, in random order; None for the whole set."""
        if not self.batch_size:
            return iter([None])
        return iter(torch.randperm(self.examples, generator=order).split(self.batch_size))


def images(
    model: str,
    dataset: str,
    loss: str,
    *,
    train_size: int | None,
    seed: int,
    batch_size: int,
    validation: int = _VALIDATION,
    device: str = "cpu",
) -> Task:
    """Return a network on a data set, both by name as in `build_problem`.

    ``validation`` is the most examples that are held out.
    """
    problem = build_problem(model, dataset, loss, train_size=train_size, seed=seed, device=device)
    data, x, y = problem.dataset, problem.x, problem.y
    every = max(1, data.validation_size // validation)
    held_out = Batches(data.x_test[::every], data.y_test[::every], _EVALUATION_BATCH)

    def batch_loss(rows: Tensor | None) -> Tensor:
        return problem.loss(problem.model(x if rows is None else x[rows]), y if rows is None else y[rows])

    start = problem.objective.flat_parameters()
    return Task(
        problem.model,
        problem.objective,
        batch_loss,
        lambda: problem.evaluate(held_out),
        len(y),
        batch_size,
        start,
        train_accuracy=lambda: problem.evaluate(Batches(x, y, _EVALUATION_BATCH))[1],
    )


def perceptron(channels: int, classes: int, image_size: int) -> nn.Module:
    """Return two layers of 16 tanh units on images of 8 × 8: far fewer parameters than the digits have conditions.

    As a model by name it is ``convexlab.problems.tasks:perceptron``.
    """
    side = min(image_size, _SIDE)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(side), nn.Flatten(), Perceptron(channels * side**2, classes, width=16, depth=2)
    )


def regression(*, train_size: int, seed: int, batch_size: int, device: str = "cpu") -> Task:
    """Return Friedman's first function (1991) of 8 variables, of which 5 count, for a perceptron 8-64-64-1.

    Values are standardised; the noise is 2 % of them.
    """
    inputs, values = make_friedman1(train_size + _VALIDATION, n_features=_INPUTS, noise=_NOISE, random_state=seed)
    values = (values - values[:train_size].mean()) / values[:train_size].std()
    x, y = (torch.from_numpy(part).float().to(device) for part in (2 * inputs - 1, values[:, None]))
    model = drawn_from(seed, lambda: Perceptron(_INPUTS, width=_WIDTH, depth=_DEPTH)).to(device)
    criterion = nn.MSELoss()
    # One batch: the network is too small to fall out of the cache, and calls cost more than arithmetic.
    objective = Objective(model, [(x[:train_size], y[:train_size])], criterion, micro_batch=None)
    held_out = Objective(model, [(x[train_size:], y[train_size:])], criterion, micro_batch=None)

    def batch_loss(rows: Tensor | None) -> Tensor:
        chosen = slice(train_size) if rows is None else rows
        return criterion(model(x[chosen]), y[chosen])  # type: ignore[no-any-return]

    def validate() -> tuple[float, float | None]:
        return held_out.value(), None

    return Task(model, objective, batch_loss, validate, train_size, batch_size, objective.flat_parameters())


def physics(equation: DifferentialEquation, *, points: int, seed: int, device: str = "cpu") -> Task:
    """Return a physics-informed network of 4 × 50 tanh units with so many random points in the interior."""
    objective = physics_informed(equation, train_size=points, seed=seed, device=device)
    model, drawn = objective.model, Points(*(part.to(device) for part in equation.points(points, seed=seed)))

    def batch_loss(rows: Tensor | None) -> Tensor:
        return equation.loss(model, drawn)

    def validate() -> tuple[float, float | None]:
        return equation.relative_error(model, device=device), None

    return Task(model, objective, batch_loss, validate, points, 0, objective.flat_parameters())

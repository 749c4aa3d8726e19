"""The problems of `phase_two.py` by name: images, physics-informed networks, a regression."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from pathlib import Path

import torch
from sklearn.datasets import make_friedman1
from torch import Tensor, nn

import convexlab as cl
from convexlab.architectures import Perceptron
from convexlab.datasets import Batches
from convexlab.datasets.torchvision_sets import data_folder
from convexlab.losses import accuracy
from convexlab.parameters import unflatten
from convexlab.physics_informed import burgers, convection
from convexlab.problem import build_problem

__all__ = ["EQUATIONS", "PROBLEMS", "Setting", "Task", "build_task", "matching", "measure_seconds"]

MODELS = ("vit-mlp", "vit-nomlp", "vit-nomlp-wkewq", "vit-nomlp-wkewq-wvwo", "vgg5-max-relu")
EQUATIONS = {"pinn/convection": convection, "pinn/burgers": burgers}
REGRESSION = "perceptron/friedman/mse"
PROBLEMS = (
    *("/".join(parts) for parts in product(MODELS, ("mnist", "cifar10"), ("mse", "cross-entropy"))),
    "vit-nomlp-wkewq-wvwo/digits/mse",
    REGRESSION,
    *EQUATIONS,
)
"""Every problem, as model/data/loss."""

# Mini-batches of a twentieth of the data within these limits: some 20 steps an epoch of 2,000 examples.
_LEAST_BATCH, _LARGEST_BATCH = 16, 128
_VALIDATION = 2000
_EVALUATION_BATCH = 512
_NOISE, _INPUTS, _WIDTH, _DEPTH = 0.1, 8, 64, 2


@dataclass(frozen=True)
class Setting:
    """What two runs that are compared have in common."""

    problem: str
    seed: int
    budget: int
    """Gradient equivalents."""
    train_size: int
    """Examples; of a physics-informed problem, points in the interior."""
    batch_size: int
    """Adam's; 0 is the whole set, so that a step of Adam is a gradient equivalent."""

    @classmethod
    def of(cls, problem: str, seed: int, *, budget: int, train_size: int, batch_size: int | None) -> Setting:
        """Return the setting with what the problem leaves open filled in."""
        if problem in EQUATIONS:
            return cls(problem, seed, budget, 1000, 0)
        if "/digits/" in problem:
            train_size = min(train_size, 1442)  # All there are.
        return cls(
            problem, seed, budget, train_size, batch_size or min(_LARGEST_BATCH, max(_LEAST_BATCH, train_size // 20))
        )

    @property
    def label(self) -> str:
        """The problem with its size and budget: what results are compared within."""
        return f"{self.problem} ({self.train_size}, {self.budget})"


@dataclass(frozen=True)
class Task:
    """A problem at hand: the training loss, its mini-batches, its validation."""

    setting: Setting
    model: nn.Module
    objective: cl.Objective
    loss: Callable[[Tensor | None], Tensor]
    """The mean loss of some examples, by their rows, or of all of them; with its graph."""
    validate: Callable[[], tuple[float, float | None]]
    """Validation loss and accuracy at the present weights; of a physics-informed problem, the relative error."""
    initial: Tensor
    """(n,), the common start."""

    def write(self, weights: Tensor) -> None:
        """Set the parameters from a flat vector (n,)."""
        parameters: list[Tensor] = list(self.model.parameters())
        with torch.no_grad():
            torch._foreach_copy_(parameters, unflatten(weights, parameters))

    def batches(self, order: torch.Generator) -> Iterator[Tensor | None]:
        """Yield the rows of one epoch's mini-batches, in random order; None for the whole set."""
        if not self.setting.batch_size:
            return iter([None])
        return iter(torch.randperm(self.setting.train_size, generator=order).split(self.setting.batch_size))


def matching(names: Iterable[str], patterns: str) -> list[str]:
    """Return the names that match any of the comma-separated patterns, in their order."""
    wanted = patterns.split(",")
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in wanted)]


@lru_cache(maxsize=2)
def build_task(setting: Setting) -> Task:
    """Return the problem at its start; the last two are kept."""
    if setting.problem in EQUATIONS:
        return _physics(setting)
    return _regression(setting) if setting.problem == REGRESSION else _images(setting)


def _images(setting: Setting) -> Task:
    name, data, loss_name = setting.problem.split("/")
    source = f"npz:{Path(data_folder()) / 'cifar10-10k.npz'}" if data == "cifar10" else data
    problem = build_problem(name, source, loss_name, train_size=setting.train_size, seed=setting.seed, device="cpu")
    dataset = problem.dataset
    every = max(1, dataset.validation_size // _VALIDATION)
    x, y = problem.x, problem.y
    held_out = Batches(dataset.x_test[::every].to(x), dataset.y_test[::every], _EVALUATION_BATCH)

    def loss(rows: Tensor | None) -> Tensor:
        return problem.loss(problem.model(x if rows is None else x[rows]), y if rows is None else y[rows])

    def validate() -> tuple[float, float | None]:
        total = right = torch.zeros((), dtype=torch.float64)
        with problem.objective.evaluating(), torch.no_grad():
            for images, labels in held_out:
                output = problem.model(images)
                total = total + problem.loss(output, labels).double() * len(labels)
                right = right + accuracy(output, labels).double() * len(labels)
        examples = len(dataset.y_test[::every])
        return float(total) / examples, float(right) / examples

    return Task(setting, problem.model, problem.objective, loss, validate, problem.objective.flat_parameters())


def _regression(setting: Setting) -> Task:
    """Friedman's first function (1991) of 8 variables, of which 5 count, standardised; the noise is 2 % of it."""
    size = setting.train_size
    inputs, values = make_friedman1(size + _VALIDATION, n_features=_INPUTS, noise=_NOISE, random_state=setting.seed)
    x = torch.from_numpy(2 * inputs - 1).float()
    y = torch.from_numpy((values - values[:size].mean()) / values[:size].std()).float()[:, None]
    model = _seeded(setting.seed, lambda: Perceptron(_INPUTS, width=_WIDTH, depth=_DEPTH))
    criterion = nn.MSELoss()
    # One batch: the network is too small to fall out of the cache, and calls cost more than arithmetic.
    objective = cl.Objective(model, [(x[:size], y[:size])], criterion, micro_batch=None)
    held_out = cl.Objective(model, [(x[size:], y[size:])], criterion, micro_batch=None)

    def loss(rows: Tensor | None) -> Tensor:
        chosen = slice(size) if rows is None else rows
        return criterion(model(x[chosen]), y[chosen])  # type: ignore[no-any-return]

    return Task(setting, model, objective, loss, lambda: (held_out.value(), None), objective.flat_parameters())


def _physics(setting: Setting) -> Task:
    equation = EQUATIONS[setting.problem]()
    points = equation.points(setting.train_size, seed=setting.seed)
    model = _seeded(setting.seed, Perceptron)
    objective = cl.Objective.from_batch_loss(model, [points], equation.loss)

    def loss(rows: Tensor | None) -> Tensor:
        return equation.loss(model, points)

    def validate() -> tuple[float, float | None]:
        return equation.relative_error(model), None

    return Task(setting, model, objective, loss, validate, objective.flat_parameters())


def _seeded(seed: int, build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


@cache
def measure_seconds(setting: Setting) -> tuple[float, float, float]:
    """Return the processor seconds of a gradient over all examples, of a value, and of an epoch of Adam, roughly."""
    task = build_task(setting)
    adam = torch.optim.Adam(task.model.parameters(), lr=0.0, fused=True)

    def epoch() -> None:
        for rows in task.batches(torch.Generator()):
            adam.zero_grad()
            task.loss(rows).backward()
            adam.step()

    calls: list[Callable[[], object]] = [task.objective.gradient, task.objective.value, epoch]
    times = []
    for call in calls:
        call()
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return times[0], times[1], times[2]

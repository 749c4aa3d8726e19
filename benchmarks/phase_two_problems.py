"""The problems of `phase_two.py` by name: images, physics-informed networks, a regression."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path

import torch
from torch import nn

from convexlab.datasets.torchvision_sets import data_folder
from convexlab.objective import Objective
from convexlab.problems import Problem, build_problem, friedman, physics_informed
from convexlab.problems.physics_informed import burgers, convection

__all__ = ["EQUATIONS", "PROBLEMS", "Setting", "Task", "build_task", "clock", "matching"]

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

_TRAIN_SIZE = 2000
# Of networks whose gradient takes long, fewer, so that no problem takes more than an hour of a core.
_FEWER = {"vit-mlp": 1000, "vgg5-max-relu": 500}
# Mini-batches of a twentieth of the data within these limits: some 20 steps an epoch of 2,000 examples.
_LEAST_BATCH, _LARGEST_BATCH = 16, 128
_HELD_OUT = 2000


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
    def of(cls, problem: str, seed: int, *, budget: int, train_size: int | None, batch_size: int | None) -> Setting:
        """Return the setting with what the problem leaves open, and what is None, filled in."""
        if problem in EQUATIONS:
            return cls(problem, seed, budget, 1000, 0)
        train_size = train_size or _FEWER.get(problem.split("/")[0], _TRAIN_SIZE)
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
    """A problem at hand, with what two runs of it have in common."""

    setting: Setting
    problem: Problem

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.problem.model

    @property
    def objective(self) -> Objective:
        """The training loss."""
        return self.problem.objective

    def validate(self) -> tuple[float, float | None]:
        """Return validation loss and accuracy; of a physics-informed network, the relative error."""
        measures = self.problem.measures()
        return measures.get("relative_error", measures["validation_loss"]), measures.get("validation_accuracy")


def matching(names: Iterable[str], patterns: str) -> list[str]:
    """Return the names that match any of the comma-separated patterns, in their order."""
    wanted = patterns.split(",")
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in wanted)]


@lru_cache(maxsize=2)
def build_task(setting: Setting, device: str = "cpu") -> Task:
    """Return the problem at its start; the last two are kept."""
    return Task(setting, _problem(setting, device))


def _problem(setting: Setting, device: str) -> Problem:
    size, seed, batch_size = setting.train_size, setting.seed, setting.batch_size
    if setting.problem in EQUATIONS:
        return physics_informed(EQUATIONS[setting.problem](), train_size=size, seed=seed, device=device)
    if setting.problem == REGRESSION:
        return friedman(train_size=size, seed=seed, batch_size=batch_size, device=device)
    model, data, loss = setting.problem.split("/")
    source = f"npz:{Path(data_folder()) / 'cifar10-10k.npz'}" if data == "cifar10" else data
    return build_problem(
        model,
        source,
        loss,
        train_size=size,
        batch_size=batch_size,
        most_held_out=_HELD_OUT,
        seed=seed,
        device=device,
    )


def clock(device: torch.device) -> float:
    """Return seconds: of the processor, or on an accelerator those that pass until it has done what it was told."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()

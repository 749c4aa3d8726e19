"""The settings of a two-phase run: the command line's options, their defaults and their limits."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from convexlab.detection import DEFAULT_DETECTOR, detector_names
from convexlab.errors import MisuseError, unknown_name
from convexlab.machine.environment import resolve_dtype
from convexlab.objective import Objective
from convexlab.problems import Problem, Setting
from convexlab.problems.objectives import Factory, objective_epochs
from convexlab.problems.setting import refuse_beside_data, refuse_beside_objective
from convexlab.training.phases import AUTO, phase_two, phase_two_names

__all__ = [
    "DEFAULT_DATASET",
    "DEFAULT_DTYPE",
    "DEFAULT_LOSS",
    "DEFAULT_MODEL",
    "FIRST_EPOCHS",
    "FIRST_EXAMPLES",
    "FROM_PYTHON",
    "OTHER_EPOCHS",
    "TwoPhaseConfig",
]

DEFAULT_MODEL, DEFAULT_DATASET, DEFAULT_LOSS, DEFAULT_DTYPE = "vit-mlp", "digits", "mse", "float32"

FIRST_EPOCHS, FIRST_EXAMPLES = 100, 250
"""Budget and examples of a run without options: a long budget for its examples, where two phases pay."""
OTHER_EPOCHS = 30
"""Budget of a run on data or an objective that is named, unless the objective's name comes with its own."""

# A year of epochs of three seconds each, for a run and its two baselines; more is a slip of the keyboard.
_MOST_EPOCHS = 10_000_000
_MOST_SEEDS = 10_000
# Ten times this, which Adam's first step takes, is still a number of float32.
_LARGEST_RATE = 1e30
# What torch takes for a size or a seed.
_LARGEST_WHOLE = 2**63 - 1

FROM_PYTHON = "(from Python)"
"""Stands in ``config.json`` for an objective that was passed as an object."""


@dataclass(frozen=True)
class TwoPhaseConfig:
    """The settings of a two-phase run: everything that decides its numbers.

    Raises:
        MisuseError: a value out of range or an unknown name.
    """

    objective: str | Factory | Problem | Objective | None = None
    """As for `convexlab.problems.build_objective`; None trains on images, with the three that follow."""
    model: str | None = None
    """None is `DEFAULT_MODEL`, unless there is an objective, which comes with its model; likewise for the next two."""
    dataset: str | None = None
    loss: str | None = None
    data: str | None = None
    """What returns batches, in place of a data set, as for `convexlab.problems.loaders.build_from_batches`; None is the
    data set."""
    epochs: int = None  # type: ignore[assignment]  # A number from the moment that the settings are made.
    """Budget in epoch equivalents, for the two-phase run and each baseline. None is `FIRST_EPOCHS` where no data set is
    named, and the objective's own number where an objective is named; else `OTHER_EPOCHS`."""
    detector: str = DEFAULT_DETECTOR
    switch_epoch: int | None = None
    """Adam epochs before the switch; None leaves the decision to the detector."""
    phase_two: str = AUTO
    batch_size: int | None = None
    """Adam's batch size. None is the paper's 512, or a twentieth of a smaller training set, at least 16, or the
    objective's own."""
    lr: float = 2e-3
    """Adam's learning rate. The paper does not state its own; a high one helps before a switch: phase two removes
    the noise that it leaves."""
    train_size: int | None = None
    """Training examples used; None is `FIRST_EXAMPLES` where no data set is named, else all, or what an objective's
    factory chose."""
    seed: int = 0
    """Seed of the initial weights, the order of examples and the subset."""
    seeds: int = 1
    """Runs, from ``seed`` upwards."""
    probe_every: int | None = None
    """Epochs between two probed checkpoints; None probes the start, the switch and the end, 0 nothing."""
    checkpoint_every: int | None = None
    """Epochs between two checkpoints, besides start, switch and end; None is ``probe_every``, else a sixth of
    ``epochs``."""
    no_baseline: bool = False
    oracle_every: int | None = None
    """Epochs between two of the switches that are tried from Adam at a constant rate; None tries none."""
    dtype: str | None = None
    """None is float32, or what an objective's factory chose."""
    device: str = "auto"
    force: bool = False
    """Allow more than 10,000,000 epochs or 10,000 seeds."""

    def __post_init__(self) -> None:
        for name in ("no_baseline", "force"):
            if not isinstance(getattr(self, name), bool):
                raise MisuseError(f"expected {name} to be True or False, got {getattr(self, name)!r}.")
        self._settle_size()
        _within("epochs", self.epochs, 1, _LARGEST_WHOLE if self.force else _MOST_EPOCHS)
        _within("seeds", self.seeds, 1, _LARGEST_WHOLE if self.force else _MOST_SEEDS)
        for name in ("batch_size", "switch_epoch", "train_size", "checkpoint_every"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 1)
        _within("seed", self.seed, 0)
        if self.probe_every is not None:
            _within("probe_every", self.probe_every, 0)
        is_number = isinstance(self.lr, int | float) and not isinstance(self.lr, bool)
        if not is_number or not 0 < self.lr < math.inf:
            raise MisuseError(f"expected lr to be a positive number, got {self.lr!r}.")
        if self.lr > _LARGEST_RATE:
            raise MisuseError(f"expected lr to be at most {_LARGEST_RATE:g}, got {self.lr:g}.")
        _check_names(self)
        if self.detector not in detector_names():
            raise unknown_name("detector", self.detector, detector_names())
        if self.phase_two not in phase_two_names():
            raise unknown_name("phase two", self.phase_two, phase_two_names())
        if self.switch_epoch is not None and self.switch_epoch >= self.epochs:
            raise MisuseError(
                f"switch_epoch {self.switch_epoch} leaves nothing of the budget of {self.epochs} epochs for phase "
                "two. Choose a smaller switch_epoch or more epochs."
            )
        if self.oracle_every is not None:
            self._check_oracle(self.oracle_every)
        self._settle_names()
        resolve_dtype(self.dtype or DEFAULT_DTYPE)

    def _settle_size(self) -> None:
        """Fill in the budget and, where no data set is named, the examples."""
        first = self.objective is None and self.dataset is None and self.data is None
        if self.epochs is None:
            named = objective_epochs(self.objective) if isinstance(self.objective, str) else None
            object.__setattr__(self, "epochs", FIRST_EPOCHS if first else named or OTHER_EPOCHS)
        if first and self.train_size is None:
            object.__setattr__(self, "train_size", FIRST_EXAMPLES)

    def _settle_names(self) -> None:
        """Fill in the defaults of images, or refuse what has no meaning beside an objective or data."""
        defaults = {"model": DEFAULT_MODEL, "dataset": DEFAULT_DATASET, "loss": DEFAULT_LOSS, "dtype": DEFAULT_DTYPE}
        if self.objective is None and self.data is not None:
            self._settle_data()
            return
        if self.objective is None:
            for name, default in defaults.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, default)
            return
        refuse_beside_objective({name: getattr(self, name) for name in ("model", "dataset", "loss", "data")})
        if not isinstance(self.objective, Problem | Objective):
            return
        for name in ("train_size", "batch_size"):
            if getattr(self, name) is not None:
                raise MisuseError(
                    f"an objective that is built already has its examples and batches: expected no {name}, got "
                    f"{getattr(self, name)!r}. Pass a factory that takes it, or leave it out."
                )
        if self.seeds > 1:
            raise MisuseError(
                f"an objective that is built already has one start: expected seeds=1, got {self.seeds}. Pass a factory "
                "that takes seed."
            )

    def _settle_data(self) -> None:
        refuse_beside_data({"data": self.data, "dataset": self.dataset})
        for name in ("model", "loss"):
            if getattr(self, name) is None:
                raise MisuseError(f"data {self.data!r} are of any kind: name the {name} for them too, by --{name}.")

    @property
    def setting(self) -> Setting:
        """What is trained."""
        return Setting(
            self.objective,
            self.model or "",
            self.dataset or "",
            self.loss or "",
            self.train_size,
            None,
            self.seed,
            self.dtype,
            self.batch_size,
            self.data,
        )

    def _check_oracle(self, every: int) -> None:
        _within("oracle_every", every, 1)
        if self.no_baseline:
            raise MisuseError(
                f"oracle_every {every} starts phase two from the epochs of Adam at a constant rate, which no_baseline "
                "leaves out. Leave out one of the two."
            )
        if not self.oracle_epochs:
            raise MisuseError(
                f"oracle_every {every} leaves phase two no step within the budget of {self.epochs} epochs. Choose a "
                "smaller oracle_every or more epochs."
            )

    @property
    def oracle_epochs(self) -> range:
        """Epochs of Adam from which the oracle starts the second phase: those that leave it a step of the budget."""
        if self.oracle_every is None:
            return range(0)
        last = math.floor(self.epochs - phase_two(self.phase_two).least_cost)
        return range(self.oracle_every, last + 1, self.oracle_every)

    @classmethod
    def of(cls, options: dict[str, Any]) -> TwoPhaseConfig:
        """Return the configuration with these options, the rest at their defaults.

        Raises:
            MisuseError: an unknown option, or see the class.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in options:
            if name not in known:
                raise unknown_name("option", name, known)
        return cls(**options)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as they are stored in ``config.json``; an objective from Python has no name there."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.objective is not None and not isinstance(self.objective, str):
            settings["objective"] = FROM_PYTHON
        return settings


def _check_names(config: TwoPhaseConfig) -> None:
    """Refuse what is no name before it is looked up."""
    for name in ("model", "dataset", "loss", "data", "detector", "phase_two", "dtype", "device"):
        value = getattr(config, name)
        optional = name not in ("detector", "phase_two", "device")
        if not isinstance(value, str) and not (optional and value is None):
            raise MisuseError(f"expected {name} to be a name, got {value!r}.")


def _within(name: str, value: object, least: int, most: int = _LARGEST_WHOLE) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise MisuseError(f"expected {name} to be a whole number from {least}, got {value!r}.")
    if value > most:
        way_out = "" if most == _LARGEST_WHOLE else " Pass --force if it is to be tried all the same."
        raise MisuseError(f"expected {name} to be at most {most:,}, got {value:,}: that would never end.{way_out}")

"""Random generators: torch's from a fixed seed for a while, and all of them in their former state afterwards."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor

__all__ = [
    "drawn_from",
    "fixed_random_state",
    "generators_of",
    "loader_generators",
    "other_python_draws",
    "restore_all",
    "seed_all",
    "spread_rows",
]

Built = TypeVar("Built")

_SPARE = np.random.MT19937(0)
"""The source of NumPy's global functions while a loss is evaluated."""


def drawn_from(seed: int, build: Callable[[], Built]) -> Built:
    """Return what ``build`` makes, such as a model with fresh weights, with the CPU's generator at ``seed``.

    The generator is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would seed the accelerators too, and they are not restored.
        torch.default_generator.manual_seed(seed)
        return build()


@contextlib.contextmanager
def fixed_random_state(
    device: torch.device, seed: int = 0, *, data: object = None, everything: bool = False
) -> Iterator[None]:
    """Let torch draw from ``seed`` within the block; afterwards every generator is as it was.

    Torch's are those of the CPU and of ``device``, and those that ``data``, a loader, has of its own. Python's and
    NumPy's generators are seeded only with ``everything``. A loss that draws from them is no function of the
    parameters, and its evaluations should show that.
    """
    generators = [*generators_of(device), *loader_generators(data)]
    states = [generator.get_state() for generator in generators]
    python, legacy = random.getstate(), mtrand.get_bit_generator()
    mtrand.set_bit_generator(_SPARE)  # Copying the state of NumPy's own would take longer than a small gradient.
    try:
        seed_all(generators, seed)
        if everything:
            random.seed(seed)
            _SPARE.state = np.random.MT19937(seed).state
        yield
    finally:
        mtrand.set_bit_generator(legacy)
        random.setstate(python)
        restore_all(generators, states)


@contextlib.contextmanager
def other_python_draws() -> Iterator[None]:
    """Let Python's generator draw other numbers within the block than outside; it is as it was afterwards."""
    state = random.getstate()
    random.seed(repr(state))
    try:
        yield
    finally:
        random.setstate(state)


def loader_generators(data: object) -> list[torch.Generator]:
    """Return the generators that a data loader, its sampler or its batch sampler draws from by itself."""
    places: list[Any] = [data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)]
    generators = {id(place.generator): place.generator for place in places if hasattr(place, "generator")}
    return [generator for generator in generators.values() if isinstance(generator, torch.Generator)]


def generators_of(device: torch.device) -> list[torch.Generator]:
    """Return the generators that code on ``device`` draws from: the CPU's and its own."""
    if device.type == "cuda":
        return [torch.default_generator, torch.cuda.default_generators[_index(device)]]
    if device.type == "mps":
        return [torch.default_generator, torch.mps._get_default_mps_generator()]
    return [torch.default_generator]


def seed_all(generators: Iterable[torch.Generator], seed: int) -> None:
    """Seed each of them alike."""
    for generator in generators:
        generator.manual_seed(seed)


def restore_all(generators: Iterable[torch.Generator], states: Iterable[Tensor]) -> None:
    """Put each of them back to its state."""
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)


def spread_rows(size: int, wanted: int, generator: torch.Generator) -> Tensor:
    """Return ``wanted`` of ``size`` rows, ascending: one at random from each of equal stretches.

    So a sample has of everything its share where rows are in some order, such as that of their labels.
    """
    starts = torch.arange(wanted + 1) * size // wanted
    within = torch.rand(wanted, generator=generator, dtype=torch.float64) * starts.diff()
    return starts[:-1] + within.long()


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index

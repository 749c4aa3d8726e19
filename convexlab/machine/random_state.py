"""Torch's random generators: a fixed seed for a while, and then their former state."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["drawn_from", "fixed_random_state", "generators_of", "restore_all", "seed_all"]

Built = TypeVar("Built")


def drawn_from(seed: int, build: Callable[[], Built]) -> Built:
    """Return what ``build`` makes, such as a model with fresh weights, with the CPU's generator at ``seed``.

    The generator is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would seed the accelerators too, and they are not restored.
        torch.default_generator.manual_seed(seed)
        return build()


@contextlib.contextmanager
def fixed_random_state(device: torch.device, seed: int = 0) -> Iterator[None]:
    """Draw from ``seed`` within the block; then restore the generators of the CPU and of ``device``."""
    generators = generators_of(device)
    states = [generator.get_state() for generator in generators]
    try:
        seed_all(generators, seed)
        yield
    finally:
        restore_all(generators, states)


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


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index

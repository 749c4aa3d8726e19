"""A smaller training set in which the classes keep their shares."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from convexlab.datasets.dataset import Dataset
from convexlab.errors import MisuseError

__all__ = ["other_indices", "stratified_indices", "subset_of"]


def subset_of(dataset: Dataset, size: int, *, seed: int = 0) -> Dataset:
    """Return the data set with ``size`` of its training examples, drawn by `stratified_indices` from ``seed``.

    Its `population` is the training set that they were drawn from, and `fresh` holds others of that.

    Raises:
        MisuseError: ``size`` is below 1 or above the number of training examples.
    """
    chosen = stratified_indices(dataset.y_train, size, seed=seed, name=dataset.name)
    others = other_indices(dataset.y_train, chosen, seed=seed)
    return replace(
        dataset,
        x_train=dataset.x_train[chosen],
        y_train=dataset.y_train[chosen],
        fresh=(dataset.x_train[others], dataset.y_train[others]) if len(others) else None,
        population=dataset.train_size,
    )


def stratified_indices(labels: Tensor, size: int, *, seed: int = 0, name: str = "labels") -> Tensor:
    """Draw ``size`` examples so that each class keeps its share to within one example.

    A class of n_c among n examples is due q_c = size n_c / n, and gets floor(q_c). The examples still missing go one
    each to the classes with the largest remainder q_c - floor(q_c) (Hamilton's method). But classes that would
    otherwise be absent come first. Ties and the examples of a class are drawn from ``seed``.

    Args:
        labels: (n,) int64, not negative.
        size: how many, from 1 to n; below the number of classes some classes are absent.
        seed: which draw.
        name: what the error calls the data.

    Returns:
        (size,) int64 indices, ascending: the examples stay in their order.

    Raises:
        MisuseError: ``size`` is below 1 or above n.
    """
    if not 1 <= size <= len(labels):
        raise MisuseError(f"train_size of {name} must be from 1 to {len(labels)} (all its examples), got {size}.")
    generator = torch.Generator("cpu").manual_seed(seed)
    counts = torch.bincount(labels).tolist()
    quotas = _quotas(counts, size, torch.randperm(len(counts), generator=generator, device="cpu").tolist())
    shuffled = torch.randperm(len(labels), generator=generator, device="cpu")
    by_class = torch.split(shuffled[labels[shuffled].argsort(stable=True)], counts)
    chosen = torch.cat([members[:quota] for members, quota in zip(by_class, quotas, strict=True)])
    return chosen.sort().values


def other_indices(labels: Tensor, chosen: Tensor, *, seed: int = 0) -> Tensor:
    """Draw as many examples as were ``chosen`` from the others, or all others if they are fewer.

    Args:
        labels: (n,) int64, not negative.
        chosen: (m,) int64 indices, each once.
        seed: which draw; the classes keep their shares among the others as in `stratified_indices`.

    Returns:
        (min(m, n - m),) int64 indices, ascending.
    """
    left = torch.ones(len(labels), dtype=torch.bool, device="cpu")
    left[chosen] = False
    others = left.nonzero()[:, 0]
    size = min(len(chosen), len(others))
    return others[stratified_indices(labels[others], size, seed=seed)] if size else others


def _quotas(counts: list[int], size: int, order: list[int]) -> list[int]:
    """Apportion ``size`` to the classes; ``order`` breaks ties. Whole numbers throughout, so nothing is rounded."""
    total = sum(counts)
    quotas = [count * size // total for count in counts]
    remainders = [count * size % total for count in counts]

    def last_served(label: int) -> tuple[bool, bool, int, int]:
        return remainders[label] == 0, quotas[label] > 0, -remainders[label], order[label]

    for label in sorted(range(len(counts)), key=last_served)[: size - sum(quotas)]:
        quotas[label] += 1
    return quotas

"""A model, batches and a loss from the reader's own functions, put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from convexlab.architectures import build_model
from convexlab.datasets.mapped import open_pairs
from convexlab.datasets.reading import read_ahead
from convexlab.datasets.shards import open_shards
from convexlab.errors import ConvexLabError, MisuseError
from convexlab.importing import call_accepted, call_asked, failure_in, is_spec, load_object, remember
from convexlab.machine.environment import resolve_device, resolve_dtype
from convexlab.machine.random_state import drawn_from
from convexlab.objective import Objective
from convexlab.problems.losses import build_loss, residuals_of, takes_model
from convexlab.problems.minibatches import MappedRows, MiniBatches, default_batch_size
from convexlab.problems.problem import Problem

__all__ = ["build_from_batches"]

# Examples in a batch that is evaluated; the objective cuts smaller ones where that is faster.
_BATCH = 512
_EXPECTED = "batches that can be iterated again and again, such as a list of (input, target) or a DataLoader"


def build_from_batches(
    model: str,
    data: str,
    loss: str,
    *,
    train_size: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
) -> Problem:
    """Build the model with fresh weights drawn from ``seed``, get the batches, and evaluate the first one.

    Args:
        model: as for `build_model`; a factory gets no arguments.
        data: ``package.module:loader`` or ``file.py:loader``, which returns batches, see `_batches`. It is called with
            those of ``train_size``, ``batch_size``, ``seed`` and ``device`` that it names. Or files: ``npy:FOLDER``
            (`MappedPairs`) or ``webdataset:PATTERN`` (`Shards`), of which a batch at a time is in memory.
        loss: as for `build_loss`. A loss of (output, target) needs batches that are pairs; one of (model, batch) takes
            batches of any kind.
        train_size: how many examples; None leaves it to the loader.
        batch_size: Adam's; None leaves it to the loader.
        seed: of the weights, and of what the loader draws.
        dtype: of weights and batches; None is the model's own.
        device: of weights and batches.

    Raises:
        MisuseError: an unknown name, what a loader returns that are no batches, or parts that do not fit each other.
        FailureError: the factory or the loader raised an error of its own.
    """
    place, precision = resolve_device(device), None if dtype is None else resolve_dtype(dtype)
    network = drawn_from(seed, lambda: build_model(model, channels=None, classes=None, image_size=None))
    network = network.to(device=place, dtype=precision)
    sizes = {"train_size": train_size, "batch_size": batch_size}
    stored = _stored(data, train_size, batch_size, seed, place)
    batches, minibatches = stored or (_batches(data, sizes, seed, place), None)
    function = build_loss(loss)
    if takes_model(function):
        objective, called = Objective.from_batch_loss(network, batches, function), "(model, batch)"
    else:
        objective, called = Objective(network, batches, function, residuals=residuals_of(function)), "(output, target)"
    _check_first(objective, f"the loss {loss!r}, called with {called}, of the model {model!r}", data)
    return Problem(network, objective, minibatches=minibatches, about=data)


def _stored(
    spec: str, train_size: int | None, batch_size: int | None, seed: int, device: torch.device
) -> tuple[Iterable[Any], MiniBatches | None] | None:
    """Return the batches in files that are named, and Adam's if these are others; None where a loader is named."""
    kind, _, place = spec.partition(":")
    if batch_size is not None and batch_size < 1:
        raise MisuseError(f"batch_size must be at least 1, got {batch_size}.")
    if kind == "npy":
        pairs = open_pairs(place, _BATCH)
        pairs = pairs if train_size is None else pairs.sample(train_size, seed)
        remember(spec)
        return read_ahead(pairs, device), MappedRows(pairs, batch_size or default_batch_size(pairs.examples))
    if kind != "webdataset":
        return None
    if train_size is not None:
        raise MisuseError(
            f"{spec!r} is read from end to end: expected no train_size, got {train_size}. Name fewer shards."
        )
    shards = open_shards(place, batch_size or _BATCH)
    remember(spec)
    return read_ahead(shards, device), None


def _batches(spec: str, sizes: Mapping[str, int | None], seed: int, device: torch.device) -> Iterable[Any]:
    """Return what a loader returns; what a generator yields is read once, and kept."""
    if not is_spec(spec):
        raise MisuseError(
            f"expected data as 'package.module:loader', 'file.py:loader', 'npy:FOLDER' or 'webdataset:PATTERN', got "
            f"{spec!r}. Name a known data set of images by --dataset."
        )
    loader = load_object(spec)
    made = call_asked(loader, spec, sizes, seed=seed, device=device)
    if isinstance(made, Iterator):
        generator = made
        made = call_accepted(lambda: list(generator), spec)
    if wrong := _not_batches(made):
        raise MisuseError(f"{spec!r} returned {wrong}: expected {_EXPECTED}.")
    return made  # type: ignore[no-any-return]


def _not_batches(made: Any) -> str:
    """Return what a loader has returned in place of batches; "" if it returned these."""
    if isinstance(made, tuple) and made and all(isinstance(part, Tensor) for part in made):
        return f"{described(made)}, which is one batch; put it into a list"
    if isinstance(made, Dataset) and not isinstance(made, IterableDataset):
        return f"a {type(made).__name__} of single examples; give it to a DataLoader"
    if isinstance(made, Tensor | Mapping | str) or not (hasattr(made, "__iter__") or hasattr(made, "__getitem__")):
        return described(made)
    return "no batch" if hasattr(made, "__len__") and len(made) == 0 else ""


def _check_first(objective: Objective, what: str, data: str) -> None:
    """Evaluate the first batch, to find out now that parts do not fit each other.

    Raises:
        MisuseError: they do not, or the batch holds no numbers.
    """
    first = next(iter(objective.data), None)
    if first is None:
        raise MisuseError(f"{data!r} returned no batch: expected {_EXPECTED}.")
    try:
        with torch.no_grad():
            objective.over([first]).value()
    except ConvexLabError:
        raise
    except Exception as error:
        reason = failure_in(error) or f"{type(error).__name__}: {error}"
        raise MisuseError(f"{what} fails on the first batch of {data!r}, {described(first)}: {reason}.") from error


def described(batch: Any) -> str:
    """Return what a batch is in words, such as "a tuple of (100, 3, 32, 32) float32 and (100,) int64"."""
    if isinstance(batch, Tensor):
        return f"a tensor {_shape(batch)}"
    if isinstance(batch, Mapping):
        parts = [f"{name} {_shape(part)}" for name, part in batch.items()]
        return f"a {type(batch).__name__} with {', '.join(parts) or 'nothing'}"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {' and '.join(map(_shape, batch[:4])) or 'nothing'}"
    return f"a {type(batch).__name__}"


def _shape(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"{tuple(part.shape)} {str(part.dtype).removeprefix('torch.')}"
    return f"a {type(part).__name__}"

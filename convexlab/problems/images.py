"""Networks on images with labels: a model, a data set and a loss by name, put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convexlab.architectures import Perceptron, build_model
from convexlab.datasets import Batches, Dataset, load_dataset
from convexlab.datasets.subset import subset_of
from convexlab.errors import MisuseError
from convexlab.importing import failure_in
from convexlab.machine.environment import resolve_device, resolve_dtype
from convexlab.machine.memory import available_memory
from convexlab.machine.random_state import drawn_from
from convexlab.objective import Objective
from convexlab.problems.losses import Loss, accuracy, build_loss, residuals_of, takes_model
from convexlab.problems.minibatches import RandomRows, default_batch_size
from convexlab.problems.problem import Problem

__all__ = ["ImageProblem", "build_problem", "perceptron"]

# Examples in one evaluation batch; the objective cuts smaller ones where that is faster.
_BATCH = 512
# Least batches of a sample that a standard error is taken over: the interval is 4 % wider than by 32, in half the time.
_LEAST_BATCHES = 16
_PERCEPTRON_SIDE = 8


@dataclass(eq=False, kw_only=True)
class ImageProblem(Problem):
    """A problem whose examples are images with class labels.

    Its validation gives ``train_accuracy``, ``validation_loss`` and ``validation_accuracy``.
    """

    dataset: Dataset
    loss: Loss
    x: Tensor
    """(N, C, H, W), the training images on the model's device and in its dtype."""
    y: Tensor
    """(N,)."""
    held_out: Iterable[tuple[Tensor, Tensor]]
    """Batches of (images, labels) that the validation evaluates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate = self._validate

    @property
    def overdetermination(self) -> float:
        """Q = K M / P of equation 7: training examples × outputs / parameters."""
        return self.dataset.train_size * self.dataset.classes / self.objective.size

    @property
    def population(self) -> int:
        """Examples of the training split, of which the objective may have a part."""
        return self.dataset.population or self.dataset.train_size

    def facts(self) -> dict[str, Any]:
        """See `Problem`."""
        data = self.dataset
        return {"train_size": data.train_size, "validation_size": data.validation_size, "classes": data.classes}

    def metadata(self) -> dict[str, Any]:
        """See `Problem`."""
        data = self.dataset
        return {"channels": data.channels, "classes": data.classes, "image_size": data.image_size}

    def sample(self) -> Objective:
        """Return the training loss with its examples in random batches, enough for a standard error over them."""
        return self._in_random_batches(self.x, self.y)

    def fresh(self) -> Objective:
        """Return the loss of examples that the objective does not have, at most as many, in random batches.

        They are of the training split where the data set has some left, else of the test split.
        """
        return self._in_random_batches(*(self.dataset.fresh or (self.dataset.x_test, self.dataset.y_test)))

    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Return mean loss and accuracy of the model as it is now, over batches of (images, labels).

        Of several ranks each takes batches in turn.
        """
        loss = right = torch.zeros((), dtype=torch.float64)
        examples, ranks = 0, self.objective.ranks
        with self.objective.evaluating(), torch.no_grad():
            for number, (images, labels) in enumerate(batches):
                examples += len(labels)
                if number % ranks.size != ranks.rank:
                    continue
                output, target = self.model(images.to(self.x)), labels.to(self.x.device)
                loss = loss + self.loss(output, target).cpu().double() * len(labels)
                right = right + accuracy(output, target).cpu().double() * len(labels)
        loss, right = ranks.added(torch.stack([loss, right]))
        return float(loss) / examples, float(right) / examples

    def _validate(self) -> Mapping[str, float]:
        _, train_accuracy = self.evaluate(Batches(self.x, self.y, _BATCH))
        loss, validation_accuracy = self.evaluate(self.held_out)
        return {
            "train_accuracy": train_accuracy,
            "validation_loss": loss,
            "validation_accuracy": validation_accuracy,
        }

    def _in_random_batches(self, x: Tensor, y: Tensor) -> Objective:
        batches = _RandomBatches(x, y, min(len(y), self.dataset.train_size))
        return self.objective.over(batches)


class _RandomBatches:
    """About equal batches of examples in random order, always the same: re-iterable."""

    def __init__(self, x: Tensor, y: Tensor, size: int) -> None:
        """Draw ``size`` examples."""
        self._x, self._y = x, y
        self._rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))[:size]
        # Two examples at least: networks and losses that squeeze their output trip over one.
        self._count = max(1, min(size // 2, max(_LEAST_BATCHES, -(-size // _BATCH))))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self._x[rows], self._y[rows]) for rows in self._rows.tensor_split(self._count))


def build_problem(
    model: str,
    dataset: str,
    loss: str,
    *,
    train_size: int | None = None,
    probe_size: int | None = None,
    batch_size: int | None = None,
    most_held_out: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
) -> ImageProblem:
    """Load the data, build the model with fresh weights drawn from ``seed``, and move both to the device.

    Args:
        model: as for `build_model`.
        dataset: as for `load_dataset`; likewise ``train_size``.
        loss: as for `build_loss`.
        train_size: training examples; None is all.
        probe_size: the training loss is that of a stratified sample of so many of these examples; None is all.
        batch_size: Adam's; None is the paper's 512, or a twentieth of a smaller training set, at least 16.
        most_held_out: test examples that the validation evaluates, evenly spaced; None is all.
        seed: of the weights, the training subset and the sample.
        dtype: of weights and images.
        device: of weights and images.

    Raises:
        MisuseError: an unknown name, data that cannot be had, a model that does not fit the data.
    """
    place, precision = resolve_device(device), resolve_dtype(dtype)
    data = _sample(load_dataset(dataset, train_size=train_size, seed=seed), probe_size, seed)
    sizes = {"channels": data.channels, "classes": data.classes, "image_size": data.image_size}
    network = drawn_from(seed, lambda: build_model(model, **sizes)).to(device=place, dtype=precision)
    criterion = build_loss(loss, classes=data.classes)
    if takes_model(criterion):
        raise MisuseError(
            f"{loss!r} is a loss (model, batch): expected (output, target), as a data set of images has these two. "
            "Name your batches by --data instead of --dataset, or call its first argument output."
        )
    x, y = data.x_train.to(device=place, dtype=precision), data.y_train.to(place)
    # An accelerator is given all at once: the objective cuts what does not fit, if the memory that is free is known.
    whole = place.type != "cpu" and available_memory(place) is not None
    batches = Batches(x, y, len(y) if whole else _BATCH)
    every = 1 if most_held_out is None else max(1, data.validation_size // most_held_out)
    problem = ImageProblem(
        network,
        Objective(network, batches, criterion, residuals=residuals_of(criterion)),
        minibatches=RandomRows((x, y), len(y), batch_size or default_batch_size(len(y))),
        dataset=data,
        loss=criterion,
        x=x,
        y=y,
        held_out=Batches(data.x_test[::every], data.y_test[::every], _BATCH),
    )
    _check_fit(model, problem)
    return problem


def _sample(data: Dataset, size: int | None, seed: int) -> Dataset:
    if size is None or size == data.train_size:
        return data
    if not 1 <= size < data.train_size:
        raise MisuseError(
            f"expected a probe_size from 1 to {data.train_size}, the training examples of {data.name}, got {size}."
        )
    return subset_of(data, size, seed=seed)


def _check_fit(name: str, problem: ImageProblem) -> None:
    """Find out now, not after a minute, that a model does not take these images or this loss not its output."""
    x = problem.x[:2]
    try:
        with problem.objective.evaluating(), torch.no_grad():
            problem.loss(problem.model(x), problem.y[:2])
    except (RuntimeError, ValueError, TypeError) as error:
        reason = failure_in(error) or (str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise MisuseError(
            f"model {name!r} does not fit the data: it fails on images of shape {tuple(x.shape[1:])} ({reason}). "
            "Choose another model or data set; `convexlab models` lists those there are."
        ) from error


def perceptron(channels: int, classes: int, image_size: int) -> nn.Module:
    """Return two layers of 16 tanh units on images of 8 × 8: far fewer parameters than the digits have conditions.

    As a model by name it is ``convexlab.problems.images:perceptron``.
    """
    side = min(image_size, _PERCEPTRON_SIDE)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(side), nn.Flatten(), Perceptron(channels * side**2, classes, width=16, depth=2)
    )

"""The one problem: a model with its training loss, Adam's mini-batches and a validation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError
from convexlab.machine.ranks import Ranks
from convexlab.objective import Objective
from convexlab.objective.batches import rows_of
from convexlab.problems.minibatches import LoaderBatches, MiniBatches, RandomRows

__all__ = ["Problem", "Validation"]

Validation = Callable[[], Mapping[str, float]]
"""Returns named numbers at the model's present parameters, such as ``validation_loss`` or ``relative_error``."""

# Fields of a row of metrics.jsonl or of a summary's outcome, which a validation may not use.
_TAKEN = frozenset(
    [
        "run",
        "phase",
        "epoch",
        "gradient_equivalents",
        "seconds",
        "vector_seconds",
        "train_loss",
        "gradient_norm",
        "told",
        "cost_breakdown",
        "switch_epoch",
        "safe_resort",
        "diverged",
    ]
)


@dataclass(eq=False)
class Problem:
    """A model with its training loss, mini-batches and validation: what is trained, probed and published.

    Args:
        model: the model of the objective; it is trained on its present device.
        objective: the training loss.
        minibatches: the batches of an epoch of Adam, in the form that the objective's loss takes. They are iterated
            anew every epoch. None is the objective's own. With a single batch a step of Adam sees all examples: it is
            an epoch, and costs a gradient equivalent.
        validate: returns a mapping of names to numbers at the model's present parameters. It is called in eval mode,
            without gradients (use `torch.enable_grad` where a residual needs them). The numbers appear in metrics,
            summary, tables and charts under their names.

    Raises:
        MisuseError: the objective is of another model, or mini-batches that can be iterated only once.
    """

    model: nn.Module
    objective: Objective
    minibatches: MiniBatches | Iterable[Any] | None = field(default=None, kw_only=True)
    validate: Validation | None = field(default=None, kw_only=True)
    about: str = field(default="", kw_only=True)
    """The data in a few words."""

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            raise MisuseError(
                f"expected a convexlab.Objective as the training loss, got {type(self.objective).__name__}. Build one "
                "by Objective(model, batches, criterion) or Objective.from_batch_loss(model, batches, fn)."
            )
        if self.objective.model is not self.model:
            raise MisuseError("the objective is of another model: expected a Problem of the model in the objective.")
        if hasattr(self.minibatches, "__next__"):
            raise MisuseError(
                "the mini-batches can be iterated only once (they are an iterator or a generator): expected a list or "
                "a DataLoader. Wrap them in list(...)."
            )
        self._initial = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    @classmethod
    def of(cls, subject: Problem | Objective) -> Problem:
        """Return the problem of an objective alone; a problem is returned as it is."""
        return Problem(subject.model, subject) if isinstance(subject, Objective) else subject

    def share_out(self, ranks: Ranks) -> None:
        """Have the training loss evaluated by these ranks together.

        Raises:
            MisuseError: it is already evaluated by other ranks.
        """
        if self.objective.ranks.shared and self.objective.ranks is not ranks:
            raise MisuseError(
                "the objective is shared out to a process group already: pass the same group=, such as "
                "torch.distributed.group.WORLD, to what trains or probes it."
            )
        self.objective.ranks = ranks

    @cached_property
    def whole_batch(self) -> bool:
        """Whether a step of Adam sees all examples."""
        return self.minibatches is None and len(list(itertools.islice(self.objective.data, 2))) == 1

    @cached_property
    def steps_tell_the_loss(self) -> bool:
        """Whether the loss of a step of Adam is the training loss before it.

        On the whole batch it is, unless the model differs in training mode: dropout, batch normalisation.
        """
        moody = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)
        return self.whole_batch and not any(isinstance(module, moody) for module in self.model.modules())

    @cached_property
    def batches(self) -> MiniBatches:
        """The mini-batches of an epoch."""
        if isinstance(self.minibatches, MiniBatches):
            return self.minibatches
        return LoaderBatches(self.objective.data if self.minibatches is None else self.minibatches)

    @cached_property
    def examples(self) -> int | None:
        """Examples of the training loss; None where its batches have no rows to count."""
        if isinstance(self.batches, RandomRows):
            return self.batches.rows
        try:
            return sum(map(rows_of, self.objective.data))
        except MisuseError:
            return None

    @property
    def batch_size(self) -> int | None:
        """Adam's; None where the problem brings its own batches along."""
        return self.batches.size if isinstance(self.batches, RandomRows) else None

    @property
    def overdetermination(self) -> float | None:
        """Q = K M / P of the paper's equation 7, conditions over parameters; None where these are not known."""
        return None

    def facts(self) -> dict[str, Any]:
        """Return what a summary says of the data."""
        return {"train_size": self.examples}

    def metadata(self) -> dict[str, Any]:
        """Return what a checkpoint says beside the names that it is built from."""
        return {}

    def reset(self) -> None:
        """Set the model's parameters and buffers to what they were when the problem was made."""
        self.model.load_state_dict(self._initial)

    def measures(self) -> dict[str, float]:
        """Return the named numbers of the validation at the model's present parameters; empty without one.

        Raises:
            MisuseError: it returned something else, or a name that is taken.
        """
        if self.validate is None:
            return {}
        with self.objective.evaluating(), torch.no_grad():
            measured = self.validate()
        if not isinstance(measured, Mapping) or not all(isinstance(name, str) for name in measured):
            raise MisuseError(
                f"expected the validation to return a mapping of names to numbers, got {type(measured).__name__}: "
                'return {"validation_loss": ...}.'
            )
        if taken := sorted(_TAKEN & measured.keys()):
            raise MisuseError(f"the validation returned {taken[0]!r}, which a run records itself. Choose another name.")
        try:
            return {name: float(value) for name, value in measured.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise MisuseError(
                f"expected the validation to return a mapping of names to numbers, got a value that is none ({error}): "
                'return {"validation_loss": ...}.'
            ) from error

    def loss_of_rows(self, rows: Tensor) -> Tensor:
        """Evaluate some training examples by their rows (m,) as a torch closure does: mean loss, gradients set.

        Raises:
            MisuseError: the mini-batches are not of rows in memory.
        """
        return self.objective.over([self.random_rows().of(rows)]).closure()

    def random_rows(self) -> RandomRows:
        """Return the mini-batches as rows in memory, which second phases on samples draw from.

        Raises:
            MisuseError: they are not.
        """
        if not isinstance(self.batches, RandomRows):
            raise MisuseError(
                "this second phase draws samples of the training examples: expected mini-batches that are rows in "
                "memory. Choose another --phase-two, or pass minibatches=RandomRows(...) to the Problem."
            )
        return self.batches

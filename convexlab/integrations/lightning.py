"""Two phases in a Lightning trainer: its epochs are measured, and from the switch on the second phase takes the steps.

Needs the extra ``lightning``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from convexlab.errors import MisuseError
from convexlab.importing import imported
from convexlab.integrations.hosted import HostedRun, Settings
from convexlab.objective import Objective
from convexlab.runs import Run

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import SingleDeviceStrategy
else:
    Callback = imported("lightning.pytorch", "lightning").Callback
    SingleDeviceStrategy = imported("lightning.pytorch.strategies", "lightning").SingleDeviceStrategy

__all__ = ["TwoPhaseCallback"]

_PRECISIONS = ("32-true", "64-true")


class TwoPhaseCallback(Callback):
    """Measures a training run, hands over from its Adam to the second phase, and writes a run directory.

    ::

        objective = cl.Objective(module.net, DataLoader(data, batch_size=512), nn.MSELoss())
        callback = TwoPhaseCallback(objective, out="runs/first")
        Trainer(max_epochs=100, callbacks=[callback]).fit(module, loader)

    then ``convexlab report runs/first``. The module is one of automatic optimisation with one ``torch.optim.Adam`` or
    ``AdamW``, whose every parameter is the objective's. Its epochs are the trainer's own until the switch. After it,
    the second phase minimises the objective, the whole training set in evaluation mode, starting with Adam's second
    moments. The trainer takes one batch an epoch, whose gradient is dropped. So its loggers, validation, schedulers,
    early stopping and checkpoints go on. Clipping, weight decay and learning-rate schedules end with Adam. The budget
    is the trainer's ``max_epochs`` (or ``max_steps``) in gradient equivalents, with every evaluation charged. When it
    is spent, the trainer is stopped. If the second phase fails, Adam goes on.

    The trainer's checkpoints hold the whole state of the run. ``fit(..., ckpt_path=...)`` with a new callback resumes
    it. Rows beyond the checkpoint are dropped. In Adam's epochs the gradient norm, the curvature along the gradient and
    both ends of the spectrum are logged, as ``convexlab/...``. They are measured as often as ``share`` pays for them.
    In the second phase loss and gradient norm over all examples are logged.

    Args:
        objective: the training loss; or, where the trainer moves the model to another device, a function of the
            module that returns it.
        **settings: the fields of `Settings`.

    Raises:
        MisuseError: a setting out of range; as training begins, several devices or optimisers, mixed or reduced
            precision, manual optimisation, or another optimiser than Adam.
    """

    def __init__(self, objective: Objective | Callable[[Any], Objective], **settings: Any) -> None:
        self._objective, self._settings = objective, Settings(**settings)
        self._hosted: HostedRun | None = None
        self._state: Mapping[str, Any] | None = None
        self._losses: list[torch.Tensor] = []
        self._began = 0.0
        # The trainer's own, while an epoch of it is a batch.
        self._batches: int | float = 1
        self._check_every: int | float | None = None

    @property
    def run(self) -> Run:
        """The run directory.

        Raises:
            MisuseError: training has not begun.
        """
        return self._running.run

    def state_dict(self) -> dict[str, Any]:
        """Return what the trainer's checkpoint is to hold."""
        return {} if self._hosted is None else self._hosted.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint held."""
        self._state = state_dict or None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be supported, and begin or go on."""
        _check(trainer, pl_module)
        objective = self._objective if isinstance(self._objective, Objective) else self._objective(pl_module)
        self._hosted = HostedRun(
            "lightning",
            objective,
            trainer.optimizers[0],
            self._settings,
            budget=_budget(trainer),
            steps=_steps_an_epoch(trainer),
            clipped=bool(trainer.gradient_clip_val),
            state=self._state,
        )
        self._check_every = None
        self._one_batch(trainer)
        trainer.should_stop = trainer.should_stop or self._hosted.over

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, and in the second phase make the epoch short."""
        self._losses, self._began = [], time.perf_counter()
        self._one_batch(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch's loss."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)  # Which Lightning has divided it by.

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """In the second phase take its steps instead of Adam's, which finds no gradients and does nothing."""
        if self._running.in_second_phase:
            numbers = self._running.second_phase()
            pl_module.log_dict({f"convexlab/{name}": value for name, value in numbers.items()}, on_step=True)
            optimizer.zero_grad(set_to_none=True)
        elif self._running.over:  # The trainer was asked to stop, and goes on for reasons of its own.
            optimizer.zero_grad(set_to_none=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in an epoch of Adam's, and end training where the budget is spent."""
        hosted, seconds = self._running, time.perf_counter() - self._began
        if self._check_every is None and not hosted.over:
            loss = fmean(torch.stack(self._losses).tolist()) if self._losses else None
            numbers = hosted.adam_epoch(loss, cost=1.0, seconds=seconds)
            pl_module.log_dict({f"convexlab/{name}": value for name, value in numbers.items()})
        if not hosted.in_second_phase:
            self._all_batches(trainer)
        if hosted.over:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary."""
        self._all_batches(trainer)
        self._running.finish()

    @property
    def _running(self) -> HostedRun:
        if self._hosted is None:
            raise MisuseError("the trainer has not begun: expected a fit() with this callback before.")
        return self._hosted

    def _one_batch(self, trainer: Trainer) -> None:
        """In the second phase, let an epoch of the trainer be a batch, and validate at its end as before."""
        if not self._running.in_second_phase:
            return
        if self._check_every is None:
            self._batches, self._check_every = trainer.num_training_batches, trainer.val_check_batch
        trainer.fit_loop.max_batches = 1
        if self._check_every != math.inf:
            trainer.val_check_batch = 1  # Of an infinite one, validation is by epochs alone.

    def _all_batches(self, trainer: Trainer) -> None:
        if self._check_every is not None:
            trainer.fit_loop.max_batches, trainer.val_check_batch = self._batches, self._check_every
            self._check_every = None


def _check(trainer: Trainer, module: LightningModule) -> None:
    """Refuse what cannot be supported.

    Raises:
        MisuseError: says what was expected, what came, and what to do.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy) or trainer.world_size != 1:
        raise MisuseError(
            f"expected training on one device, got {type(trainer.strategy).__name__} over {trainer.world_size}: a step "
            "of the second phase is on the whole training set, in one process. Use Trainer(devices=1)."
        )
    if trainer.precision not in _PRECISIONS:
        raise MisuseError(
            f"expected precision {' or '.join(_PRECISIONS)}, got {trainer.precision}: the second phase compares losses "
            "closer than lower precision resolves. Use Trainer(precision='32-true')."
        )
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        raise MisuseError(
            f"expected automatic optimisation with one optimiser, got {len(trainer.optimizers)} with "
            f"automatic_optimization={module.automatic_optimization}. In a loop of your own use convexlab.Watch and "
            "convexlab.second_phase."
        )
    if trainer.num_training_batches == math.inf:
        raise MisuseError("expected a training loader with a length, got one without. Use limit_train_batches=.")


def _budget(trainer: Trainer) -> float | None:
    """Return the epochs that the trainer was given, in gradient equivalents; None where it knows no end."""
    ends = [
        float(trainer.max_epochs) if trainer.max_epochs is not None and trainer.max_epochs >= 0 else math.inf,
        trainer.max_steps / _steps_an_epoch(trainer) if trainer.max_steps >= 0 else math.inf,
    ]
    return None if min(ends) == math.inf else min(ends)


def _steps_an_epoch(trainer: Trainer) -> int:
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)

"""Two phases in a Hugging Face ``Trainer``: its epochs are measured, from the switch on the second phase steps.

Needs the extra ``huggingface``.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convexlab.errors import FailureError, MisuseError
from convexlab.importing import imported
from convexlab.integrations.hosted import HostedRun, Settings
from convexlab.machine.atomic import write_atomically
from convexlab.objective import Objective
from convexlab.objective.batches import rows_of
from convexlab.runs import Run

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback
else:
    TrainerCallback = imported("transformers.trainer_callback", "huggingface").TrainerCallback
    imported("accelerate", "huggingface")

__all__ = ["TwoPhaseCallback"]

_STATE = "convexlab.pt"
_IGNORED = -100  # A label that Hugging Face's losses leave out.


class TwoPhaseCallback(TrainerCallback):
    """Measures a training run, hands over from its Adam to the second phase, and writes a run directory.

    ::

        trainer = Trainer(model, TrainingArguments(num_train_epochs=100, ...), train_dataset=data)
        trainer.add_callback(TwoPhaseCallback(trainer, out="runs/first"))
        trainer.train()

    then ``convexlab report runs/first``. The optimiser is one of torch's Adam or AdamW, which the default is. Its
    epochs are the trainer's own until the switch. After it, the second phase minimises the objective, the whole
    training set in evaluation mode, starting with Adam's second moments. The trainer takes one step an epoch, whose
    gradient is dropped. So its logs, evaluations, schedules and checkpoints go on. Clipping, weight decay and
    learning-rate schedules end with Adam. The budget is the trainer's epochs (or ``max_steps``) in gradient
    equivalents, with every evaluation charged. When it is spent, the trainer is stopped. If the second phase fails,
    Adam goes on.

    Beside each of the trainer's checkpoints a file ``convexlab.pt`` holds the rest of the run's state.
    ``train(resume_from_checkpoint=True)`` with a new callback resumes the run. Rows beyond the checkpoint are dropped.
    In Adam's epochs the trainer logs the gradient norm, the curvature along the gradient and both ends of the spectrum,
    as ``convexlab/...``. They are measured as often as ``share`` pays for them. In the second phase it logs loss and
    gradient norm over all examples.

    Args:
        trainer: the trainer that the callback is added to.
        objective: the training loss, or a function of the model that returns it. None is the trainer's own loss
            (``compute_loss``) over the batches of its loader. Those are drawn once and kept in memory.
        resume_from: the checkpoint that training is resumed from, where that is not in the trainer's ``output_dir``.
        **settings: the fields of `Settings`.

    Raises:
        MisuseError: a setting out of range; as training begins, several devices, mixed precision, or another optimiser
            than Adam.
        FailureError: the checkpoint that training is resumed from has no state of ours.
    """

    def __init__(
        self,
        trainer: Trainer,
        objective: Objective | Callable[[Any], Objective] | None = None,
        *,
        resume_from: str | Path | None = None,
        **settings: Any,
    ) -> None:
        self._trainer, self._objective, self._settings = trainer, objective, Settings(**settings)
        self._resume_from = resume_from
        self._hosted: HostedRun | None = None
        self._losses: list[Tensor] = []
        self._began = 0.0
        self._adams_epoch = True

    @property
    def run(self) -> Run:
        """The run directory.

        Raises:
            MisuseError: training has not begun.
        """
        return self._running.run

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse what cannot be supported, and begin or go on."""
        _check(args)
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        steps_an_epoch = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
        optimizer = kwargs["optimizer"]
        self._hosted = HostedRun(
            "huggingface",
            self._built(model, loader),
            getattr(optimizer, "optimizer", optimizer),  # Within accelerate's.
            self._settings,
            budget=state.max_steps / steps_an_epoch,
            steps=steps_an_epoch,
            clipped=args.max_grad_norm is not None and args.max_grad_norm > 0,
            state=self._stored(args, state),
        )
        self._hook = model.register_forward_hook(self._keep_loss)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count."""
        self._losses, self._began = [], time.perf_counter()
        self._adams_epoch = not (self._running.in_second_phase or self._running.over)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """In the second phase take its steps instead of Adam's, which finds no gradients and does nothing."""
        if self._running.in_second_phase:
            self._log(self._running.second_phase())
            kwargs["optimizer"].zero_grad()
        elif self._running.over:  # Resumed where the budget is spent: the trainer takes a step before it stops.
            kwargs["optimizer"].zero_grad()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """In the second phase end the epoch, and training where the budget is spent."""
        if not self._adams_epoch:
            control.should_epoch_stop = True
            control.should_training_stop = control.should_training_stop or self._running.over
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Take in an epoch of Adam's, and end training where the budget is spent."""
        if self._adams_epoch:
            loss = fmean(torch.stack(self._losses).tolist()) if self._losses else None
            self._log(self._running.adam_epoch(loss, cost=1.0, seconds=time.perf_counter() - self._began))
        control.should_training_stop = control.should_training_stop or self._running.over
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put what a run goes on from beside the trainer's checkpoint."""
        buffer = io.BytesIO()
        torch.save(self._running.state_dict(), buffer)
        write_atomically(_folder(args, state) / _STATE, buffer.getvalue())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the summary."""
        self._hook.remove()
        self._running.finish()

    @property
    def _running(self) -> HostedRun:
        if self._hosted is None:
            raise MisuseError("the trainer has not begun: expected a train() with this callback before.")
        return self._hosted

    def _built(self, model: Any, loader: Any) -> Objective:
        if isinstance(self._objective, Objective):
            return self._objective
        if self._objective is not None:
            return self._objective(model)
        return Objective.from_batch_loss(model, list(loader), self._loss, _weight)

    def _loss(self, model: Any, batch: Mapping[str, Any]) -> Tensor:
        loss = self._trainer.compute_loss(model, dict(batch))
        assert isinstance(loss, Tensor)  # Asked for outputs too, it returns a pair.
        return loss

    def _keep_loss(self, module: Any, args: Any, output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if module.training and isinstance(loss, Tensor):
            self._losses.append(loss.detach())

    def _log(self, numbers: Mapping[str, float]) -> None:
        if numbers:
            self._trainer.log({f"convexlab/{name}": value for name, value in numbers.items()})

    def _stored(self, args: Any, state: Any) -> Mapping[str, Any] | None:
        """Return the state beside the checkpoint that the trainer resumes from; None at its first step."""
        if state.global_step == 0:
            return None
        path = (_folder(args, state) if self._resume_from is None else Path(self._resume_from)) / _STATE
        if not path.is_file():
            raise FailureError(
                f"cannot resume: expected {str(path)!r} beside the checkpoint, which this callback writes. Pass "
                "resume_from=, the checkpoint, if it is elsewhere; or train without it from here."
            )
        stored: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return stored


def _weight(batch: Mapping[str, Any]) -> float:
    """Return how many labels a batch's mean is over: of class indices, those that are not ignored."""
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and not labels.is_floating_point():
        return float((labels != _IGNORED).sum())
    return float(rows_of(batch))


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _check(args: Any) -> None:
    """Refuse what cannot be supported.

    Raises:
        MisuseError: says what was expected, what came, and what to do.
    """
    if args.world_size > 1 or args.n_gpu > 1:
        raise MisuseError(
            f"expected training on one device, got {max(args.world_size, args.n_gpu)}: a step of the second phase is "
            "on the whole training set, in one process. Make one device visible (CUDA_VISIBLE_DEVICES=0)."
        )
    if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
        raise MisuseError("expected weights in one piece, got DeepSpeed or FSDP, which cut them. Train without.")
    if args.fp16 or args.bf16:
        raise MisuseError(
            f"expected full precision, got {'fp16' if args.fp16 else 'bf16'}: the second phase compares losses closer "
            "than lower precision resolves. Leave fp16 and bf16 off."
        )

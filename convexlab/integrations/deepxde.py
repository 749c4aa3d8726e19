"""DeepXDE on its PyTorch backend: from its Adam to the second phase.

Needs the extra ``deepxde``.
"""

from __future__ import annotations

from typing import Any

import torch

from convexlab.errors import MisuseError
from convexlab.importing import imported
from convexlab.optim.flat import FlatOptimizer
from convexlab.training.phases import AUTO, second_phase

__all__ = ["hand_over"]


def hand_over(
    model: Any, evaluations: int, *, method: str = AUTO, display_every: int = 1000, verbose: int = 1
) -> tuple[Any, Any]:
    """Go on with a model that Adam has trained, until so many gradients are spent.

    ::

        model.compile("adam", lr=1e-3)
        model.train(iterations=1000)
        hand_over(model, 1000)

    The same loss on the same points goes on being minimised, under the model's own callbacks of training. The L2
    regularisation that is Adam's weight decay ends with it.

    Args:
        model: a ``deepxde.Model``, compiled with "adam" or "adamw" and trained.
        evaluations: of the loss with its gradient: what an iteration of Adam costs.
        method: as for `second_phase`.
        display_every: iterations, each of one or a few evaluations.
        verbose: 0 prints nothing.

    Returns:
        What ``model.train`` does: the history of losses, and the state.

    Raises:
        MisuseError: another backend, mixed precision, no Adam or one without a step, or fewer than two evaluations.
    """
    callbacks, backend = imported("deepxde.callbacks", "deepxde"), imported("deepxde.backend", "deepxde")
    if backend.backend_name != "pytorch":
        raise MisuseError(
            f"expected DeepXDE on PyTorch, got its backend {backend.backend_name!r}. Set DDE_BACKEND=pytorch before "
            "it is imported."
        )
    if imported("deepxde.config", "deepxde").mixed:
        raise MisuseError("expected full precision, got mixed: the second phase compares losses closer than that.")
    if evaluations < 2:
        raise MisuseError(f"expected at least 2 evaluations, which a step takes, got {evaluations!r}.")
    if not isinstance(getattr(model, "opt", None), torch.optim.Optimizer):
        raise MisuseError("the model has no optimiser: expected model.compile('adam', ...) and model.train before.")
    optimizer = second_phase(model.opt, method=method, budget=evaluations)
    model.opt = optimizer

    class Budget(callbacks.Callback):  # type: ignore[misc, name-defined]  # a module by name
        left = evaluations

        def on_epoch_begin(self) -> None:
            optimizer.param_groups[0]["max_evaluations"] = max(1, self.left - (optimizer.known is None))

        def on_epoch_end(self) -> None:
            self.left -= _spent(optimizer)
            if self.left < 1 or optimizer.report is None or optimizer.report.state == "converged":
                self.model.stop_training = True

    model.train(iterations=evaluations, display_every=display_every, callbacks=[Budget()], verbose=verbose)
    history, state = model.train(iterations=0, display_every=display_every, verbose=0)  # Which records where it ended.
    return history, state


def _spent(optimizer: FlatOptimizer) -> int:
    report = optimizer.report
    return 0 if report is None else report.gradients

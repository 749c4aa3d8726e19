"""From where Adam stands through the second phase to the end of the budget; back to Adam where that does not pay."""

from __future__ import annotations

from collections.abc import Callable

import torch

from convexlab.optim.flat import FlatOptimizer
from convexlab.problems import Problem
from convexlab.training.phases import PATIENCE, PhaseTwo
from convexlab.training.trajectory import Trajectory

__all__ = ["HandOver"]

# When the second phase is given up for Adam, the paper's "safe resort", besides failed steps in a row: steps that
# together lower the loss by less than this share; steps in a row with a gradient norm above all that Adam had.
_STALL_STEPS, _STALL_SHARE = 50, 1e-3
_RISE_STEPS = 10


class HandOver:
    """The second phase by name, the same wherever along Adam it begins.

    Args:
        name: of the second phase; its cost is charged under it.
        phase: the second phase.
        problem: what is trained.
        budget: gradient equivalents in all, Adam's before the switch included.
    """

    def __init__(self, name: str, phase: PhaseTwo, problem: Problem, budget: float) -> None:
        self.name = name
        self.phase = phase
        self.problem = problem
        self.budget = budget

    def build(self, adam: torch.optim.Adam) -> FlatOptimizer:
        """Return the optimiser that takes over from Adam."""
        return self.phase.build(self.problem.model.parameters(), adam, self.problem.dataset.train_size)

    def follow(self, trajectory: Trajectory, largest_norm: float | None, record: Callable[[Trajectory], None]) -> None:
        """Go on from where a trajectory stands until its budget is spent.

        Args:
            trajectory: at the switch, or restored to anywhere behind it. When the second phase is given up its notes
                get ``safe_resort``, with ``epoch`` and ``reason``.
            largest_norm: of the gradient, over Adam's epochs until the switch; None if there were none.
            record: called with the trajectory after every epoch, measured.

        Raises:
            FailureError: the loss became infinite or NaN.
        """
        if trajectory.second is None:
            trajectory.second = self.build(trajectory.adam)
        while "safe_resort" not in trajectory.notes:
            left = self.budget - trajectory.cost
            if left < self.phase.least_cost:
                return
            failed = (
                trajectory.sampled_steps(self.name, budget=left)
                if self.phase.sampled
                else trajectory.second_step(self.name, search_cost=self.phase.search_cost, budget=left)
            )
            trajectory.measure()
            if reason := _against(trajectory, failed, largest_norm):
                trajectory.notes["safe_resort"] = {"epoch": trajectory.epoch, "reason": reason}
            record(trajectory)
        while trajectory.cost + 1 <= self.budget:
            trajectory.adam_epoch()
            trajectory.measure()
            record(trajectory)


def _against(trajectory: Trajectory, failed: str | None, largest_norm: float | None) -> str | None:
    """Take in a step of the second phase, and return what speaks against going on with it, if anything does."""
    notes = trajectory.notes
    # A search that the budget cut short has not failed for good.
    notes["failures"] = notes.get("failures", 0) + 1 if failed else 0
    notes["best_losses"] = [*notes.get("best_losses", []), trajectory.best_loss][-_STALL_STEPS - 1 :]
    above = largest_norm is not None and trajectory.gradient_norm > largest_norm
    notes["risen"] = notes.get("risen", 0) + 1 if above else 0
    if notes["failures"] >= PATIENCE:
        return failed
    if notes["risen"] >= _RISE_STEPS:
        return (
            f"the gradient norm has been above Adam's largest, {largest_norm:.3g}, for {_RISE_STEPS} steps: the peak "
            "before the switch was not the only one"
        )
    before, now = notes["best_losses"][0], notes["best_losses"][-1]
    if len(notes["best_losses"]) > _STALL_STEPS and before - now < _STALL_SHARE * before:
        return f"{_STALL_STEPS} steps have lowered the loss by less than {_STALL_SHARE:.1%}"
    return None

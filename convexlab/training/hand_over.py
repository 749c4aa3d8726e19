"""From the switch through the second phase to the end of the budget; back to Adam where the second phase fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from convexlab.errors import MisuseError
from convexlab.machine.capture import capture_asked
from convexlab.optim.flat import FlatOptimizer
from convexlab.problems import Problem
from convexlab.training.phases import PhaseTwo, trained_by
from convexlab.training.second_phase import Resort, second_phase_steps
from convexlab.training.trajectory import Trajectory

__all__ = ["HandOver"]


class HandOver:
    """The second phase of a problem, the same for every switch along Adam.

    Args:
        name: of the second phase; its cost is charged under it.
        phase: the second phase.
        problem: what is trained.
        budget: gradient equivalents in all, Adam's before the switch included.

    Raises:
        MisuseError: the second phase is not for this problem.
    """

    _setup = 0.0  # Gradient equivalents that are charged at the switch.

    def __init__(self, name: str, phase: PhaseTwo, problem: Problem, budget: float) -> None:
        phase.check_size(problem.objective.size)
        if phase.sampled:
            problem.random_rows()
        self._least_squares = problem.objective.least_squares() if phase.residuals else None
        if self._least_squares is not None:
            self._setup = self._least_squares.setup
            least = self._setup + self._least_squares.price + phase.search_cost
            if budget < least:
                raise MisuseError(
                    f"the first step of {name} takes {least:.0f} gradient equivalents here, for the Jacobian of "
                    f"{self._least_squares.count:,} residuals: expected a larger budget, got {budget:g}. Raise "
                    f"--epochs, or choose another --phase-two."
                )
        self.name = name
        self.phase = phase
        self.problem = problem
        self.budget = budget

    def build(self, adam: torch.optim.Adam) -> FlatOptimizer:
        """Return the optimiser that takes over from Adam."""
        optimizer = self.phase.build(trained_by(adam), adam, self.problem.examples or 1)
        if self.problem.objective.ranks.shared:
            optimizer.processes = "together"
        return optimizer

    def follow(self, trajectory: Trajectory, largest_norm: float | None, record: Callable[[Trajectory], None]) -> None:
        """Continue a trajectory until its budget is spent, or it has converged.

        Args:
            trajectory: at the switch, or restored to anywhere behind it.
            largest_norm: the largest gradient norm of Adam's epochs until the switch; None if there were none.
            record: called with the trajectory after every epoch. After an epoch of Adam's, it has to measure what it
                records.

        Raises:
            FailureError: the loss became infinite or NaN.
        """
        for _ in self.steps(trajectory, largest_norm):
            record(trajectory)
        while trajectory.safe_resort is not None and trajectory.cost + 1 <= self.budget:
            trajectory.adam_epoch()
            record(trajectory)

    def steps(self, trajectory: Trajectory, largest_norm: float | None) -> Iterator[None]:
        """Hand over if that is still to be done, and yield after every step that the trajectory has recorded.

        It ends with the budget, where the second phase has converged, or where `Trajectory.safe_resort` says why Adam
        is to go on. The iteration may be left between two steps, and begun anew.

        Args:
            trajectory: as for `follow`.
            largest_norm: as for `follow`.

        Raises:
            FailureError: the loss became infinite or NaN.
        """
        if trajectory.second is None and trajectory.gradient_norm == 0.0:
            # A constant model, one class alone, the minimum: nothing to hand over, and no second moments to do it with.
            trajectory.safe_resort = {"epoch": trajectory.epoch, "reason": "the gradient is zero at the switch"}
        elif trajectory.second is None:
            if trajectory.cost + self._setup > self.budget:
                return
            trajectory.account.charge(self.name, self._setup)
            trajectory.second = self.build(trajectory.adam)
        if trajectory.safe_resort is not None or trajectory.second is None:
            return
        resort = Resort.of(self.problem, largest_norm, trajectory.resort)
        steps = second_phase_steps(
            trajectory.second,
            self.phase,
            self.problem.objective,
            resort,
            budget=self.budget - trajectory.cost,
            closure=self.problem.loss_of_rows if self.phase.sampled else None,
            examples=self.problem.examples,
            least_squares=self._least_squares,
        )
        with self.problem.objective.captured(wanted=capture_asked()):
            for step in steps:
                trajectory.take(self.name, step)
                trajectory.resort = resort.state_dict()
                yield

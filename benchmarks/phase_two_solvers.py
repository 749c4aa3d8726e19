"""Second phases and their peers, from one point on, all through one meter that charges every evaluation.

A value with its gradient costs 1, a value alone 1/3, a Hessian product 2: what the objective has counted. The
evaluation that would exceed the budget is not made; the best point until then is the result, for everyone alike.

Peers have their tolerances set to zero. One that stops all the same, before the budget is spent, is started again
from its best point for as long as that lowers the loss, so that no peer loses because of a threshold.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.optimize
import torch
from numpy.typing import NDArray
from phase_two_adam import Curve, gradients
from phase_two_problems import Task, clock
from torch import Tensor

import convexlab as cl
from convexlab.linalg.vectors import accumulation_dtype, flatten, norm
from convexlab.training.phases import AUTO, PhaseTwo, phase_two, phase_two_names
from convexlab.training.second_phase import Resort, second_phase_steps

__all__ = ["SOLVERS", "Meter", "Outcome", "refusal", "solve"]

_VALUE, _GRADIENT = 1 / 3, 1.0
_NO_LIMIT = 10**9
_EXAMPLES_AT_ONCE, _EXAMPLES_ON_DEVICE = 128, 4096  # The first as in the objective.


class _BudgetSpentError(Exception):
    """Ends a solver from within its closure."""


class Meter:
    """The objective as every solver sees it: charged, timed, the best point remembered."""

    def __init__(self, task: Task, budget: float) -> None:
        self._task = task
        self._budget = budget
        self._before = task.objective.cost.gradient_equivalents
        self._device = task.objective.device
        self._begin = clock(self._device)
        # What is evaluated for the record alone is neither charged nor timed.
        self._record = task.objective.in_dtype(task.objective.dtype)
        self._recording = 0.0
        self.not_finite = 0
        """Evaluations that gave infinity or NaN."""
        self.curve = Curve(budget)
        """From cost 0, where the solver began."""

    @property
    def spent(self) -> float:
        """Gradient equivalents so far, of whatever kind."""
        return self._task.objective.cost.gradient_equivalents - self._before

    @property
    def left(self) -> float:
        """Gradient equivalents of the budget that are not spent."""
        return self._budget - self.spent

    @property
    def seconds(self) -> float:
        """As `clock` has them, since the solver began, its own work included."""
        return clock(self._device) - self._begin - self._recording

    def closure(self, *, backward: bool = True) -> Tensor:
        """Evaluate as a torch closure at the present weights.

        Raises:
            _BudgetSpentError: the budget does not allow it.
        """
        if self.spent + (_GRADIENT if backward else _VALUE) > self._budget + 1e-6:
            raise _BudgetSpentError
        loss = self._task.objective.closure(backward=backward)
        value = float(loss)
        self.not_finite += not math.isfinite(value)
        self.curve.add(self.spent, value, self.seconds, self._task.objective.flat_parameters)
        return loss

    def sampled(self, rows: Tensor) -> Tensor:
        """Evaluate some examples as the closure of `ProgressiveLBFGS` at the present weights, for their share.

        Raises:
            _BudgetSpentError: as for `closure`.
        """
        share = len(rows) / self._task.setting.train_size
        if self.spent + share > self._budget + 1e-6:
            raise _BudgetSpentError
        self._task.model.zero_grad()
        total = torch.zeros((), dtype=accumulation_dtype(self._device), device=self._device)
        for part in rows.split(_EXAMPLES_AT_ONCE if self._device.type == "cpu" else _EXAMPLES_ON_DEVICE):
            loss = self._task.objective.training_loss(self._task.problem.random_rows().of(part)) * (
                len(part) / len(rows)
            )
            loss.backward()
            total += loss.detach()
        self._task.objective.spend(cl.Cost(gradients=share))
        return total

    def measure(self) -> tuple[float, float]:
        """Return loss and gradient norm at the present weights, for the record alone, and put the loss on record."""
        begin, seconds = clock(self._device), self.seconds
        loss, gradient = self._record.value_and_gradient()
        self.curve.add(self.spent, loss, seconds, self._task.objective.flat_parameters)
        self._recording += clock(self._device) - begin
        return loss, float(norm(gradient))

    def at(self, weights: Tensor) -> tuple[float, Tensor]:
        """Return loss and gradient at a flat vector (n,)."""
        self._task.objective.write(weights)
        loss = self.closure()
        return float(loss), flatten(gradients(self._task.model))


@dataclass
class Outcome:
    """How a solver ended."""

    stopped: str | None = None
    """None, or why it stopped before the budget was spent."""
    starts: int = 1
    evaluations: Counter[int] = field(default_factory=Counter)
    """Of ours: how many steps took how many evaluations."""


Solver = Callable[[Task, Meter, torch.optim.Adam, Outcome], None]
"""Runs until it stops, and says in the outcome why."""


def refusal(name: str, task: Task) -> str | None:
    """Return why one of our second phases is not for this problem, or None."""
    if name not in phase_two_names():
        return None
    phase = phase_two(name)
    if phase.sampled and not task.setting.batch_size:
        return "it has no examples to draw"
    if phase.residuals:
        return "its Jacobians are metered in physics_peers.py"
    most = phase.max_parameters
    return f"more than {most} parameters" if most is not None and task.objective.size > most else None


def solve(solver: str | PhaseTwo, task: Task, meter: Meter, adam: torch.optim.Adam) -> Outcome:
    """Run a solver, or a second phase without a name, from the task's present weights.

    It ends when the budget is spent or it stops by itself.
    """
    outcome = Outcome()
    run = partial(_ours, solver) if isinstance(solver, PhaseTwo) else SOLVERS[solver]
    try:
        run(task, meter, adam, outcome)
    except _BudgetSpentError:
        outcome.stopped = None
    return outcome


def _ours(phase: PhaseTwo, task: Task, meter: Meter, adam: torch.optim.Adam, outcome: Outcome) -> None:
    examples = task.setting.train_size
    optimizer = phase.build(task.model.parameters(), adam, examples)
    if phase.sampled:
        meter.measure()
    steps = second_phase_steps(
        optimizer,
        phase,
        task.objective,
        Resort(None),
        budget=meter.left,
        closure=meter.sampled if phase.sampled else meter.closure,
        examples=examples,
        measure=meter.measure,
    )
    for step in steps:
        report = optimizer.report
        assert report is not None
        outcome.evaluations[report.values + report.gradients] += 1
        outcome.stopped = step.given_up


def _started_again(start: Callable[[Task, Meter], str]) -> Solver:
    """Return a solver that starts a peer again from its best point for as long as that lowers the loss."""

    def run(task: Task, meter: Meter, adam: torch.optim.Adam, outcome: Outcome) -> None:
        for outcome.starts in range(1, _NO_LIMIT):
            before = meter.curve.best_loss
            outcome.stopped = start(task, meter)
            if not meter.curve.best_loss < before:
                return
            assert meter.curve.best is not None
            task.objective.write(meter.curve.best)

    return run


def _torch_lbfgs(history: int, task: Task, meter: Meter) -> str:
    optimizer = torch.optim.LBFGS(
        task.model.parameters(),
        max_iter=_NO_LIMIT,
        max_eval=_NO_LIMIT,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=history,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(meter.closure)
    return "the step was zero or the gradient not descended"


def _pytorch_minimize(method: str, options: Mapping[str, Any], task: Task, meter: Meter) -> str:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is deprecated")
        import torchmin

    start = task.objective.flat_parameters()
    found = torchmin.minimize(
        lambda x: _Known.apply(x, meter),
        start,
        method,
        max_iter=_NO_LIMIT,
        options={"gtol": 0.0} | dict(options),
    )
    return str(found.message)


class _Known(torch.autograd.Function):
    """Gives autograd the value and the gradient that the meter has evaluated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meter: Meter) -> Tensor:
        value, gradient = meter.at(x.detach())
        ctx.save_for_backward(gradient)
        return torch.tensor(value, dtype=torch.float64, device=x.device)

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * factor.to(gradient), None


def _scipy(method: str, options: Mapping[str, Any], task: Task, meter: Meter) -> str:
    start = task.objective.flat_parameters()

    def function(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = meter.at(torch.from_numpy(x).to(start))
        return value, gradient.double().cpu().numpy()

    options = {"gtol": 0.0, "maxiter": _NO_LIMIT} | dict(options)
    found = scipy.optimize.minimize(function, start.double().cpu().numpy(), jac=True, method=method, options=options)
    return str(found.message)


SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {
        **{name: partial(_ours, phase_two(name)) for name in phase_two_names() if name != AUTO},
        "torch-lbfgs-20": _started_again(partial(_torch_lbfgs, 20)),
        "torch-lbfgs-100": _started_again(partial(_torch_lbfgs, 100)),
        "minimize-cg": _started_again(partial(_pytorch_minimize, "cg", {})),
        "minimize-lbfgs": _started_again(
            partial(_pytorch_minimize, "l-bfgs", {"history_size": 100, "xtol": 0.0, "gtd_tol": 0.0})
        ),
        "scipy-cg": _started_again(partial(_scipy, "CG", {})),
        "scipy-lbfgsb": _started_again(partial(_scipy, "L-BFGS-B", {"maxcor": 100, "ftol": 0.0, "maxfun": _NO_LIMIT})),
    }
)
"""By name: our second phases, then the peers."""

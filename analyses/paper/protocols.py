"""Every protocol that trains one network of the paper's Table 1, from the same start and on shared work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from convexlab.detection import build_detector
from convexlab.errors import MisuseError
from convexlab.problems import Problem
from convexlab.runs import Row
from convexlab.training.phases import LARGE, phase_two
from paper.adam_run import AdamRun, State
from paper.switching import followed

__all__ = ["ADAM", "COSINE", "FIXED", "OURS", "PAPERS", "Best", "ProtocolPlan", "train_protocols"]

ADAM, COSINE, PAPERS, FIXED, OURS = "adam", "adam-cosine", "paper", "ours-fixed", "ours"


@dataclass(frozen=True)
class ProtocolPlan:
    """How a network is trained."""

    epochs: int
    """Of Adam: the budget in gradient equivalents, and the number of epochs as the paper counts them."""
    switch: int
    """Epoch of the paper's fixed switch."""
    rate: float
    """Adam's learning rate."""
    seed: int
    """Of the order of the mini-batches."""
    papers: str = "cg-golden"
    """The second phase after the fixed switch; by name."""
    ours: str = LARGE
    """The second phase after the detected switch, and after the paper's."""
    detector: str = "gradient-norm-peak"

    def __post_init__(self) -> None:
        """Refuse a switch that leaves either phase nothing."""
        if not 1 <= self.switch < self.epochs:
            raise MisuseError(f"expected a switch within the {self.epochs} epochs, got {self.switch}.")


@dataclass
class Best:
    """The lowest loss of a protocol, where it was met, and the curve that led there."""

    problem: Problem
    loss: float = math.inf
    weights: Tensor | None = None
    curve: list[tuple[float, float, float]] = field(default_factory=list)
    """(epoch as the paper counts, gradient equivalents, loss)."""

    def take(self, epoch: float, cost: float, loss: float) -> None:
        """Take in where the protocol stands."""
        self.curve.append((epoch, cost, loss))
        if loss < self.loss:
            self.loss, self.weights = loss, self.problem.objective.flat_parameters()

    def judged(self) -> Row:
        """Return what the network is worth with the weights of the lowest loss."""
        if self.weights is None:  # No finite loss along the whole way.
            return {"train_loss": None, "train_accuracy": None, "validation_loss": None, "validation_accuracy": None}
        self.problem.objective.write(self.weights)
        measures = self.problem.measures()
        return {
            "train_loss": self.loss,
            "train_accuracy": measures.get("train_accuracy"),
            "validation_loss": measures.get("validation_loss"),
            "validation_accuracy": measures.get("validation_accuracy"),
        }

    def judged_aside(self) -> Row:
        """Judge the best so far, and come back to where the model stands."""
        here = self.problem.objective.flat_parameters()
        judged = self.judged()
        self.problem.objective.write(here)
        return judged


def train_protocols(problem: Problem, plan: ProtocolPlan, *, paper: bool = True) -> dict[str, Row]:
    """Train a network with Adam at a constant and at a cosine rate, as the paper does, and in our two phases.

    The paper's second phase starts from its fixed switch, ours from there (`FIXED`) and from the detected one (`OURS`).

    The Adam phase of either second phase is the beginning of the constant-rate run. A detector is told what Adam's own
    mini-batches say, which costs nothing.

    Args:
        problem: what is trained; its model is moved.
        plan: how.
        paper: whether the paper's protocol is among them.

    Returns:
        By protocol: ``train_loss``, ``train_accuracy``, ``validation_loss``, ``validation_accuracy`` where the training
        loss was lowest, and ``curve`` of (epoch as the paper counts, gradient equivalents, training loss). The paper's
        protocol goes on for all its epochs whatever they cost. ``at_equal_cost`` is its result at the end of the
        budget; ``steps`` and ``cost`` are totals. Either second phase has ``switch`` (epoch, or None) and ``failed``
        (None, or why it ended early), ours ``reason``.
    """
    run = AdamRun(problem, rate=plan.rate, seed=plan.seed)
    constant, fixed, detected, reason = _adam_watched(run, plan)
    protocols: dict[str, Row] = {ADAM: constant.judged() | {"curve": constant.curve}}
    if paper:
        protocols[PAPERS] = _papers(run, plan, fixed, constant)
    protocols[FIXED] = _ours(run, plan, fixed, constant)
    protocols[OURS] = _ours(run, plan, detected, constant) | {"reason": reason}
    cosine = _adam(
        AdamRun(problem, rate=plan.rate, seed=plan.seed, watched=False),
        plan.epochs,
        lambda done: plan.rate * 0.5 * (1 + math.cos(math.pi * done)),
    )
    protocols[COSINE] = cosine.judged() | {"curve": cosine.curve}
    return protocols


def _adam_watched(run: AdamRun, plan: ProtocolPlan) -> tuple[Best, State, State | None, str]:
    """Return Adam's curve, its states at the fixed and at the detected switch, and the detector's reason."""
    detector = build_detector(plan.detector, budget=plan.epochs)
    states: dict[str, State] = {}

    def watch(row: Row) -> None:
        if run.epoch == plan.switch:
            states["fixed"] = run.state()
        if run.epoch and not detector.fired:
            detector.update(loss=row["running_loss"], gradient_norm=row["unbiased_gradient_norm"])
            if detector.fired and run.epoch < plan.epochs:
                states["detected"] = run.state()

    best = _adam(run, plan.epochs, watch=watch)
    return best, states["fixed"], states.get("detected"), detector.reason


def _adam(
    run: AdamRun,
    epochs: int,
    rate: Callable[[float], float] | None = None,
    watch: Callable[[Row], None] = lambda row: None,
) -> Best:
    best = Best(run.problem)
    running = math.nan
    while True:
        row = run.record(running)
        best.take(row["epoch"], row["cost"], row["train_loss"])
        watch(row)
        if run.epoch == epochs:
            return best
        running = run.train(None if rate is None else rate(run.epoch / epochs))


def _begun(problem: Problem, constant: Best, run: AdamRun, switch: State) -> Best:
    """Return Adam's curve up to a switch, to which the run goes back, with its best weights."""
    run.restore(switch)
    curve = [point for point in constant.curve if point[0] <= switch.epoch]
    # The weights of an earlier epoch are not kept; those at the switch stand for them, and their loss.
    return Best(problem, curve[-1][2], switch.weights, curve)


def _papers(run: AdamRun, plan: ProtocolPlan, switch: State, constant: Best) -> Row:
    best, at_equal_cost = _begun(run.problem, constant, run, switch), None
    cost, steps, failed = float(plan.switch * run.epoch_cost), 0, None
    phase, most = phase_two(plan.papers), plan.epochs - plan.switch
    for steps, step in enumerate(followed(run, phase, budget=math.inf, steps=most), start=1):
        if at_equal_cost is None and cost + step.cost > plan.epochs * run.epoch_cost:
            at_equal_cost = best.judged_aside()
        cost, failed = cost + step.cost, failed or step.given_up
        best.take(plan.switch + steps, cost, step.loss)
    return best.judged() | {
        "curve": best.curve,
        "switch": plan.switch,
        "steps": steps,
        "cost": cost,
        "failed": failed,
        "at_equal_cost": at_equal_cost or best.judged(),
    }


def _ours(run: AdamRun, plan: ProtocolPlan, switch: State | None, constant: Best) -> Row:
    if switch is None:
        return constant.judged() | {"curve": constant.curve, "switch": None, "failed": None}
    best = _begun(run.problem, constant, run, switch)
    cost, failed = float(switch.epoch * run.epoch_cost), None
    left = plan.epochs * run.epoch_cost - cost
    for epoch, step in enumerate(followed(run, phase_two(plan.ours), budget=left), start=switch.epoch + 1):
        cost, failed = cost + step.cost, failed or step.given_up
        best.take(epoch, cost, step.loss)
    return best.judged() | {"curve": best.curve, "switch": switch.epoch, "failed": failed}

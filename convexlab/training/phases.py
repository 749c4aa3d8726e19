"""The second phases by name, the rule that chooses one, and the one call that hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from convexlab.errors import MisuseError, unknown_name
from convexlab.optim import (
    LBFGS,
    LevenbergMarquardt,
    NonlinearCG,
    ProgressiveLBFGS,
    SelfScaledBroyden,
    adam_preconditioner,
)
from convexlab.optim.flat import FlatOptimizer
from convexlab.optim.self_scaled_broyden import MAX_PARAMETERS

__all__ = [
    "AUTO",
    "LARGE",
    "SMALL",
    "Choice",
    "PhaseTwo",
    "choose_phase_two",
    "phase_two",
    "phase_two_names",
    "second_phase",
    "trained_by",
]

AUTO = "auto"
"""The default: `SMALL` or `LARGE`, by the number of parameters and the device (`choose_phase_two`)."""
SMALL, LARGE = "ssbroyden-adam", "lbfgs-adam-scaled"

_DENSE_ON_CPU = 3_000
"""Most parameters for which a dense matrix is worth its seconds on a CPU. On other devices it is worth them wherever it
is used. Measured in docs/training.md. It decides by counts alone, so that a run is the same on every machine."""


@dataclass(frozen=True)
class PhaseTwo:
    """An optimiser for the second phase."""

    description: str
    """One line."""
    build: Callable[[Iterable[nn.Parameter], torch.optim.Adam, int], FlatOptimizer]
    """Makes it for the parameters of the Adam optimiser that it takes over from, in their order, and for so many
    examples."""
    search_cost: float = 1.0
    """Gradient equivalents of one evaluation in its line search, over all the examples that it sees."""
    sampled: bool = False
    """Whether its closure takes the rows of a sample, as that of `ProgressiveLBFGS`."""
    max_parameters: int | None = None
    """The most parameters that it takes."""
    residuals: bool = False
    """Whether its closure gives residuals and their Jacobian, as that of `LevenbergMarquardt`. The start of a step then
    costs `LeastSquares.price` instead of a gradient."""

    @property
    def least_cost(self) -> float:
        """Gradient equivalents that a step needs at least: a gradient, and one evaluation of a search."""
        return 1.0 + self.search_cost

    def check_size(self, parameters: int) -> None:
        """Refuse a network that is too large.

        Raises:
            MisuseError: more parameters than it takes.
        """
        if self.max_parameters is not None and parameters > self.max_parameters:
            raise MisuseError(
                f"this second phase keeps a dense matrix and takes at most {self.max_parameters} parameters, but the "
                f"model has {parameters}. Choose another --phase-two, such as {LARGE}."
            )


class Choice(NamedTuple):
    """The second phase that was chosen, and why."""

    name: str
    phase: PhaseTwo
    reason: str | None
    """None where it was asked for by name."""


def _scaled(params: Iterable[nn.Parameter], adam: torch.optim.Adam, examples: int) -> LBFGS:
    return LBFGS(params, preconditioner=adam_preconditioner(adam))


def _chosen(params: Iterable[nn.Parameter], adam: torch.optim.Adam, examples: int) -> FlatOptimizer:
    parameters = list(params)
    return choose_phase_two(AUTO, parameters).phase.build(parameters, adam, examples)


_PHASES: Mapping[str, PhaseTwo] = MappingProxyType(
    {
        AUTO: PhaseTwo(
            f"{SMALL} up to {_DENSE_ON_CPU:,} parameters on a CPU, {MAX_PARAMETERS:,} elsewhere; else {LARGE}",
            _chosen,
        ),
        "cg-golden": PhaseTwo(
            "the paper's: nonlinear CG (Polak-Ribière+) with golden-section search",
            lambda params, adam, examples: NonlinearCG(params, beta="polak-ribiere+", line_search="golden-section"),
            search_cost=1 / 3,
        ),
        "cg": PhaseTwo(
            "nonlinear CG (Polak-Ribière+) with the Hager-Zhang search",
            lambda params, adam, examples: NonlinearCG(params, beta="polak-ribiere+", line_search="hager-zhang"),
        ),
        "cg-adam": PhaseTwo(
            "nonlinear CG with the Hager-Zhang search, preconditioned by Adam's second moments",
            lambda params, adam, examples: NonlinearCG(params, preconditioner=adam_preconditioner(adam)),
        ),
        "lbfgs": PhaseTwo(
            "L-BFGS, 100 pairs", lambda params, adam, examples: LBFGS(params, history=100, self_scaled=False)
        ),
        "lbfgs-adam": PhaseTwo(
            "L-BFGS, 100 pairs, preconditioned by Adam's second moments",
            lambda params, adam, examples: LBFGS(
                params, history=100, self_scaled=False, preconditioner=adam_preconditioner(adam)
            ),
        ),
        LARGE: PhaseTwo("self-scaled L-BFGS, 400 pairs, preconditioned by Adam's second moments", _scaled),
        "lbfgs-adam-progressive": PhaseTwo(
            "lbfgs-adam on a growing sample of the training set, for large ones",
            lambda params, adam, examples: ProgressiveLBFGS(
                params, examples=examples, preconditioner=adam_preconditioner(adam)
            ),
            sampled=True,
        ),
        SMALL: PhaseTwo(
            f"self-scaled Broyden with a dense matrix, from Adam's second moments, up to {MAX_PARAMETERS:,} parameters",
            lambda params, adam, examples: SelfScaledBroyden(params, preconditioner=adam_preconditioner(adam)),
            max_parameters=MAX_PARAMETERS,
        ),
        "levenberg-marquardt": PhaseTwo(
            "Levenberg-Marquardt on the residuals, for sums of squares on small networks",
            lambda params, adam, examples: LevenbergMarquardt(params),
            search_cost=1 / 3,
            residuals=True,
        ),
    }
)


def phase_two_names() -> dict[str, str]:
    """Return every second phase's name with its one-line description."""
    return {name: phase.description for name, phase in _PHASES.items()}


def phase_two(name: str) -> PhaseTwo:
    """Return the second phase of that name.

    Raises:
        MisuseError: an unknown name.
    """
    if name not in _PHASES:
        raise unknown_name("phase two", name, _PHASES)
    return _PHASES[name]


def choose_phase_two(name: str, parameters: Sequence[Tensor]) -> Choice:
    """Return the second phase of that name; for `AUTO` the one that suits these parameters.

    A dense self-scaled Broyden matrix keeps the curvature of all steps; pairs keep that of the latest. Its vector work
    grows with the square of the parameters. So it is for small networks, on an accelerator for larger ones than on a
    CPU.

    Raises:
        MisuseError: an unknown name.
    """
    if name != AUTO:
        return Choice(name, phase_two(name), None)
    size, device = sum(parameter.numel() for parameter in parameters), parameters[0].device.type
    most = _DENSE_ON_CPU if device == "cpu" else MAX_PARAMETERS
    within = size <= most
    return Choice(
        SMALL if within else LARGE,
        _PHASES[SMALL if within else LARGE],
        f"{size:,} parameters, {'at most' if within else 'more than'} the {most:,} for which a dense matrix earns its "
        f"seconds on {device}",
    )


def trained_by(adam: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters that an Adam trains, group after group.

    Raises:
        MisuseError: no ``torch.optim.Adam`` or ``AdamW``, or none of its parameters requires a gradient.
    """
    if not isinstance(adam, torch.optim.Adam):
        raise MisuseError(f"expected a torch.optim.Adam or AdamW to take over from, got {type(adam).__name__}.")
    parameters = [parameter for group in adam.param_groups for parameter in group["params"] if parameter.requires_grad]
    if not parameters:
        raise MisuseError("every parameter of Adam is frozen: expected at least one that requires a gradient.")
    return parameters


def second_phase(
    adam: torch.optim.Optimizer, *, method: str = AUTO, budget: int | None = None, examples: int | None = None
) -> FlatOptimizer:
    """Return the optimiser that takes over from Adam, for the same parameters, as in `train_two_phase`.

    Adam's second moments become its preconditioner, Adam's last step the length of its first trial. Weight decay is not
    taken over: the second phase minimises what its closure returns. See `FlatOptimizer` for closures; that of
    ``levenberg-marquardt`` returns residuals, see `LevenbergMarquardt`.

    Args:
        adam: a ``torch.optim.Adam`` or ``AdamW`` after at least one step, with any number of groups.
        method: a name from `phase_two_names`.
        budget: number of evaluations that the second phase will have, if known; it allocates no memory for more pairs.
        examples: number of training examples, for a method on samples, whose closure takes their rows.

    Raises:
        MisuseError: an unknown name, no such Adam, no parameter that requires a gradient, too many for the method, or
            a method on samples without ``examples``.
    """
    phase, parameters = phase_two(method), trained_by(adam)
    assert isinstance(adam, torch.optim.Adam)
    if phase.sampled and examples is None:
        raise MisuseError(f"{method} draws examples: expected their number, examples=..., got None.")
    phase.check_size(sum(parameter.numel() for parameter in parameters))
    optimizer = phase.build(parameters, adam, examples or 1)
    if budget is not None and isinstance(optimizer, LBFGS):
        optimizer.history = max(1, min(optimizer.history, budget))
    return optimizer

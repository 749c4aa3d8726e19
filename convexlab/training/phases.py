"""The second phases by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from convexlab.errors import MisuseError, unknown_name
from convexlab.optim import LBFGS, NonlinearCG, ProgressiveLBFGS, SelfScaledBroyden, adam_preconditioner
from convexlab.optim.flat import FlatOptimizer
from convexlab.optim.self_scaled_broyden import MAX_PARAMETERS

__all__ = ["DEFAULT_PHASE_TWO", "PhaseTwo", "phase_two", "phase_two_names"]

DEFAULT_PHASE_TWO = "lbfgs-adam-scaled"

_PAIRS_MEMORY = 2 * 1024**3  # Bytes; the same everywhere, for the pairs decide the run.


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
    """The most that it takes."""

    @property
    def least_cost(self) -> float:
        """Gradient equivalents without which no step is begun: a gradient, and one evaluation of a search."""
        return 1.0 + self.search_cost

    def check_size(self, parameters: int) -> None:
        """Refuse a network that is too large.

        Raises:
            MisuseError: more parameters than it takes.
        """
        if self.max_parameters is not None and parameters > self.max_parameters:
            raise MisuseError(
                f"this second phase keeps a dense matrix and takes at most {self.max_parameters} parameters, but the "
                f"model has {parameters}. Choose another --phase-two, such as {DEFAULT_PHASE_TWO}."
            )


def _scaled(params: Iterable[nn.Parameter], adam: torch.optim.Adam, examples: int) -> LBFGS:
    preconditioner = adam_preconditioner(adam)
    return LBFGS(params, history=400, memory_budget=_PAIRS_MEMORY, self_scaled=True, preconditioner=preconditioner)


_PHASES: Mapping[str, PhaseTwo] = MappingProxyType(
    {
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
            "L-BFGS, 100 pairs", lambda params, adam, examples: LBFGS(params, memory_budget=_PAIRS_MEMORY)
        ),
        "lbfgs-adam": PhaseTwo(
            "L-BFGS, 100 pairs, preconditioned by Adam's second moments",
            lambda params, adam, examples: LBFGS(
                params, memory_budget=_PAIRS_MEMORY, preconditioner=adam_preconditioner(adam)
            ),
        ),
        "lbfgs-adam-scaled": PhaseTwo(
            "self-scaled L-BFGS, 400 pairs, preconditioned by Adam's second moments", _scaled
        ),
        "lbfgs-adam-progressive": PhaseTwo(
            "lbfgs-adam on a growing sample of the training set, for large ones",
            lambda params, adam, examples: ProgressiveLBFGS(
                params, examples=examples, memory_budget=_PAIRS_MEMORY, preconditioner=adam_preconditioner(adam)
            ),
            sampled=True,
        ),
        "ssbroyden-adam": PhaseTwo(
            f"self-scaled Broyden with a dense matrix, from Adam's second moments, up to {MAX_PARAMETERS:,} parameters",
            lambda params, adam, examples: SelfScaledBroyden(params, preconditioner=adam_preconditioner(adam)),
            max_parameters=MAX_PARAMETERS,
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

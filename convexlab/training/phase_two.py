"""The second phases by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import nn

from convexlab.errors import unknown_name
from convexlab.optim import LBFGS, NonlinearCG, adam_preconditioner
from convexlab.optim.flat import FlatOptimizer

__all__ = ["DEFAULT_PHASE_TWO", "PhaseTwo", "phase_two", "phase_two_names"]

DEFAULT_PHASE_TWO = "lbfgs-adam"


@dataclass(frozen=True)
class PhaseTwo:
    """An optimiser for the second phase."""

    description: str
    """One line."""
    build: Callable[[Iterable[nn.Parameter], torch.optim.Adam], FlatOptimizer]
    """Makes it for the parameters of the Adam optimiser that it takes over from, in their order."""
    search_cost: float
    """Gradient equivalents of one evaluation in its line search."""


_PHASES: Mapping[str, PhaseTwo] = MappingProxyType(
    {
        "cg-golden": PhaseTwo(
            "the paper's: nonlinear CG (Polak-Ribière+) with golden-section search",
            lambda params, adam: NonlinearCG(params, beta="polak-ribiere+", line_search="golden-section"),
            search_cost=1 / 3,
        ),
        "cg": PhaseTwo(
            "nonlinear CG (Polak-Ribière+) with the Hager-Zhang search",
            lambda params, adam: NonlinearCG(params, beta="polak-ribiere+", line_search="hager-zhang"),
            search_cost=1.0,
        ),
        "cg-adam": PhaseTwo(
            "nonlinear CG with the Hager-Zhang search, preconditioned by Adam's second moments",
            lambda params, adam: NonlinearCG(params, preconditioner=adam_preconditioner(adam)),
            search_cost=1.0,
        ),
        "lbfgs": PhaseTwo("L-BFGS, 100 pairs", lambda params, adam: LBFGS(params), search_cost=1.0),
        "lbfgs-adam": PhaseTwo(
            "L-BFGS, 100 pairs, preconditioned by Adam's second moments",
            lambda params, adam: LBFGS(params, preconditioner=adam_preconditioner(adam)),
            search_cost=1.0,
        ),
        "lbfgs-adam-scaled": PhaseTwo(
            "self-scaled L-BFGS, 400 pairs, preconditioned by Adam's second moments",
            lambda params, adam: LBFGS(params, history=400, self_scaled=True, preconditioner=adam_preconditioner(adam)),
            search_cost=1.0,
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

"""The ends of the spectrum of diagonal blocks of the Hessian: the curvature layer by layer."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from convexlab.curvature.effort import Effort, Meter
from convexlab.curvature.extremes import ExtremeEigenvalues, extreme_eigenvalues
from convexlab.curvature.trace import TraceEstimate, trace
from convexlab.errors import MisuseError, unknown_name
from convexlab.objective import Objective

__all__ = ["BlockCurvature", "block_curvature"]


@dataclass(frozen=True)
class BlockCurvature:
    """The curvature of the loss in some of the parameters, the others held fixed."""

    parameter_names: tuple[str, ...]
    """Names of the block's parameters, in the order of its vectors."""
    size: int
    """The number m of parameters."""
    extremes: ExtremeEigenvalues
    """Both ends of the block's spectrum; vectors (m,). The bounds hold for this block, not for all blocks at once."""
    trace: TraceEstimate | None
    """The block's trace, if asked for."""
    trace_share: float
    """The block's trace over the sum of the blocks'; NaN if not asked for or the sum is zero.

    Where some traces are negative, shares may be negative or above 1.
    """
    effort: Effort
    """Cost of both."""


def block_curvature(
    objective: Objective,
    patterns: Iterable[str] | str | None = None,
    *,
    tolerance: float = 1e-2,
    confidence: float = 0.999,
    max_steps: int | None = None,
    trace_samples: int = 0,
    seed: int = 0,
) -> dict[str, BlockCurvature]:
    """Return the ends of the spectrum of diagonal blocks of the Hessian, by name.

    A block is a principal submatrix: its eigenvalues lie between the Hessian's smallest and largest (Cauchy). So a
    negative one proves the loss non-convex. Blocks without negative eigenvalues prove nothing.

    Args:
        objective: whose Hessian, at the model's present parameters.
        patterns: a block each: the name or glob pattern of parameters, or of modules with all that is in them. They
            need not cover all parameters. None makes a block of every module that has parameters of its own, under the
            module's name. Those of the model itself are under ``""``.
        tolerance: see `extreme_eigenvalues`, as for the next two.
        confidence: for each block; all m blocks' bounds hold together with 1 - m (1 - confidence) at least.
        max_steps: for each block.
        trace_samples: products to estimate each block's trace with, by XTrace; 0 leaves it out.
        seed: of the random starts.

    Raises:
        MisuseError: a pattern that matches nothing, blocks that overlap, no pattern, or an option out of range.
    """
    names = objective.parameter_names
    blocks = _modules(names) if patterns is None else _matched(names, patterns)
    _check_disjoint(blocks)
    if trace_samples != 0 and trace_samples < 2:
        raise MisuseError(f"expected trace_samples of 0 or at least 2, got {trace_samples!r}.")
    curvatures = {}
    for block, members in blocks.items():
        part = objective.restricted_to(members)
        with Meter(part) as meter:
            operator = part.hessian()
            extremes = extreme_eigenvalues(
                operator, tolerance=tolerance, confidence=confidence, max_steps=max_steps, seed=seed
            )
            estimate = trace(operator, method="xtrace", samples=trace_samples, seed=seed) if trace_samples else None
            products = extremes.effort.products + (estimate.effort.products if estimate else 0)
            effort = meter.effort(products, extremes.effort.plan)
        curvatures[block] = BlockCurvature(part.parameter_names, part.size, extremes, estimate, math.nan, effort)
    return _with_shares(curvatures)


def _modules(names: Iterable[str]) -> dict[str, list[str]]:
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(name.rpartition(".")[0], []).append(name)
    return blocks


def _matched(names: tuple[str, ...], patterns: Iterable[str] | str) -> dict[str, list[str]]:
    requests = [patterns] if isinstance(patterns, str) else list(patterns)
    if not requests:
        raise MisuseError("expected at least one pattern, got none. Pass None for a block a module.")
    blocks = {}
    for pattern in requests:
        if pattern in blocks:
            raise MisuseError(f"the pattern {pattern!r} is given twice. Leave one out.")
        members = [name for name in names if _is_match(name, pattern)]
        if not members:
            raise unknown_name("parameter or module", pattern, {*names, *_modules(names)} - {""})
        blocks[pattern] = members
    return blocks


def _is_match(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")


def _check_disjoint(blocks: dict[str, list[str]]) -> None:
    owner: dict[str, str] = {}
    for block, members in blocks.items():
        for name in members:
            if name in owner:
                raise MisuseError(
                    f"expected blocks that do not overlap, got {name!r} in both {owner[name]!r} and {block!r}. "
                    "Narrow one of the patterns."
                )
            owner[name] = block


def _with_shares(blocks: dict[str, BlockCurvature]) -> dict[str, BlockCurvature]:
    total = sum(block.trace.value for block in blocks.values() if block.trace is not None)
    if total == 0:
        return blocks
    return {
        name: replace(block, trace_share=block.trace.value / total if block.trace is not None else math.nan)
        for name, block in blocks.items()
    }

"""The rows of a run's files as typed values: any number may be missing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Curve", "Outcome", "ProbedCheckpoint", "Records", "Row", "Switch", "mapping_of", "number_of", "text_of"]

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]


class Records(NamedTuple):
    """A run's files as they are, for those who want the data."""

    summary: Row
    """Empty when there is none yet."""
    probe: Sequence[Row]
    metrics: Sequence[Row]


def number_of(row: Row, key: str) -> float | None:
    """Return a finite number, or None for a missing, null or other value."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def text_of(row: Row, key: str) -> str:
    """Return a value as text, empty for a missing or null one."""
    value = row.get(key)
    return "" if value is None else str(value)


def mapping_of(row: Row, key: str) -> dict[str, Any]:
    """Return a nested object, empty for a missing or other value."""
    value = row.get(key)
    return dict(value) if isinstance(value, Mapping) else {}


@dataclass(frozen=True)
class Curve:
    """One training run of `metrics.jsonl` by columns, each (rows,), NaN where nothing was recorded."""

    phases: tuple[str, ...]
    epoch: Floats
    cost: Floats
    """Gradient equivalents spent so far."""
    seconds: Floats
    loss: Floats
    norm: Floats
    measures: dict[str, Floats] = field(default_factory=dict)
    """By the name of every other number that was recorded, in the order of the rows."""

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Curve:
        """Transpose rows of `metrics.jsonl`."""
        rows = list(rows)
        keys = ("epoch", "gradient_equivalents", "seconds", "train_loss", "gradient_norm")
        others = dict.fromkeys(name for row in rows for name in row if name not in keys)
        columns = {name: np.array([_nan(number_of(row, name)) for row in rows]) for name in (*keys, *others)}
        measures = {name: columns[name] for name in others if np.isfinite(columns[name]).any()}
        return cls(
            phases=tuple(text_of(row, "phase") for row in rows),
            epoch=columns["epoch"],
            cost=columns["gradient_equivalents"],
            seconds=columns["seconds"],
            loss=columns["train_loss"],
            norm=columns["gradient_norm"],
            measures=measures,
        )

    def segments(self) -> Iterator[tuple[str, slice]]:
        """Yield each phase and its rows, the last row before it included so that the drawn line is unbroken."""
        begin = 0
        for phase, group in itertools.groupby(self.phases):
            end = begin + len(list(group))
            if phase != "start":
                yield phase, slice(max(begin - 1, 0), end)
            begin = end


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


@dataclass(frozen=True)
class Outcome:
    """What one algorithm reached, at its best epoch."""

    train_loss: float | None
    cost: float | None
    """Gradient equivalents."""
    seconds: float | None
    epoch: float | None
    cost_breakdown: dict[str, float | None]
    """Gradient equivalents by what they were spent on."""
    measures: dict[str, float] = field(default_factory=dict)
    """Every other number by its name."""

    @classmethod
    def from_row(cls, row: Row) -> Outcome:
        """Read `two_phase` or one of `baselines` of `summary.json`."""
        parts = mapping_of(row, "cost_breakdown")
        known = {"train_loss", "gradient_equivalents", "seconds", "epoch"}
        others = {name: number_of(row, name) for name in row if name not in known}
        return cls(
            train_loss=number_of(row, "train_loss"),
            cost=number_of(row, "gradient_equivalents"),
            seconds=number_of(row, "seconds"),
            epoch=number_of(row, "epoch"),
            cost_breakdown={str(key): number_of(parts, key) for key in parts},
            measures={name: value for name, value in others.items() if value is not None},
        )


@dataclass(frozen=True)
class Switch:
    """When the run left Adam, and why; `epoch` is None when it never did."""

    epoch: float | None
    detector: str
    train_loss: float | None
    gradient_norm: float | None
    reason: str
    """A sentence."""

    @classmethod
    def from_row(cls, row: Row) -> Switch:
        """Read `switch` of `summary.json`."""
        return cls(
            epoch=number_of(row, "epoch"),
            detector=text_of(row, "detector"),
            train_loss=number_of(row, "train_loss"),
            gradient_norm=number_of(row, "gradient_norm"),
            reason=text_of(row, "reason"),
        )


@dataclass(frozen=True)
class LossSlice:
    """The loss along a unit vector through a checkpoint."""

    steps: Floats
    """(k,) distances from the checkpoint, rising through 0."""
    losses: Floats
    """(k,), NaN where the loss is not finite."""
    loss: float
    """At the checkpoint."""
    slope: float
    curvature: float

    def model(self, steps: Floats) -> Floats:
        """Return the loss by slope and curvature alone, (k,)."""
        return self.loss + self.slope * steps + 0.5 * self.curvature * steps**2


@dataclass(frozen=True)
class ProbedCheckpoint:
    """The curvature of the training loss at one checkpoint: a row of `probe.jsonl`."""

    name: str
    epoch: float | None
    phase: str
    train_loss: float | None
    gradient_norm: float | None
    gradient_curvature: float | None
    """gᵀHg / gᵀg."""
    smallest: float | None
    smallest_lower_bound: float | None
    """Holds with `confidence` over the random start."""
    smallest_residual: float | None
    largest: float | None
    largest_residual: float | None
    negative_mass: float | None
    negative_mass_standard_error: float | None
    trace: float | None
    trace_standard_error: float | None
    verdict: str
    """`non-convex`, `no-negative-curvature`, `unresolved`, or empty."""
    verdict_summary: str
    rounding_floor: float
    """An eigenvalue no larger than this has no sign; 0 when it was not estimated."""
    confidence: float | None
    floor: float | None
    """Relative to the largest eigenvalue."""
    steps: float | None
    cost: float | None
    """Gradient equivalents."""
    seconds: float | None
    examples: float | None
    train_size: float | None
    population: float | None
    """Training examples there are."""
    smallest_fresh: float | None
    """Curvature along the eigenvector of `smallest` on examples that it was not found on."""
    smallest_fresh_standard_error: float | None
    largest_fresh: float | None
    largest_fresh_standard_error: float | None
    sampling_summary: str
    """Sentences on what the sample says of the full loss."""
    slices: dict[str, LossSlice]
    """Along the eigenvectors of the "smallest" and the "largest" eigenvalue, as far as measured."""
    nodes: Floats
    """(k,) spectral density, stochastic Lanczos quadrature; empty when not computed."""
    weights: Floats
    """(k,) sum to 1."""

    @classmethod
    def from_row(cls, row: Row) -> ProbedCheckpoint:
        """Read one row of `probe.jsonl`."""
        plain = (
            "epoch train_loss gradient_norm gradient_curvature smallest smallest_lower_bound smallest_residual "
            "largest largest_residual negative_mass negative_mass_standard_error trace trace_standard_error "
            "confidence floor steps seconds examples train_size population "
            "smallest_fresh smallest_fresh_standard_error largest_fresh largest_fresh_standard_error"
        )
        nodes, weights = _density(mapping_of(row, "density"))
        numbers: dict[str, Any] = {key: number_of(row, key) for key in plain.split()}
        return cls(
            name=text_of(row, "checkpoint"),
            phase=text_of(row, "phase"),
            verdict=text_of(row, "verdict"),
            verdict_summary=text_of(row, "verdict_summary"),
            sampling_summary=text_of(row, "sampling_summary"),
            rounding_floor=abs(number_of(row, "rounding_floor") or 0.0),
            cost=number_of(row, "gradient_equivalents"),
            slices=_slices(row),
            nodes=nodes,
            weights=weights,
            **numbers,
        )


def _density(row: Row) -> tuple[Floats, Floats]:
    nodes, weights = (np.array(row.get(key) or [], dtype=np.float64).ravel() for key in ("nodes", "weights"))
    count = min(nodes.size, weights.size)
    nodes, weights = nodes[:count], weights[:count]
    usable = np.isfinite(nodes) & np.isfinite(weights) & (weights > 0)
    return nodes[usable], weights[usable]


def _slices(row: Row) -> dict[str, LossSlice]:
    found = {end: _slice(row, end) for end in ("smallest", "largest")}
    return {end: drawn for end, drawn in found.items() if drawn is not None}


def _slice(row: Row, end: str) -> LossSlice | None:
    stored = mapping_of(mapping_of(row, "slices"), end)
    loss, slope, curvature = (number_of(row, key) for key in ("train_loss", f"{end}_slope", end))
    if loss is None or slope is None or curvature is None:
        return None
    # A null is a NaN: numpy makes one of None.
    steps, losses = (np.array(stored.get(key) or [], dtype=np.float64).ravel() for key in ("steps", "losses"))
    usable = steps.size == losses.size and steps.size > 2 and np.isfinite(losses).sum() > 1
    if not (usable and np.isfinite(steps).all()):
        return None
    return LossSlice(steps, losses, loss, slope, curvature)

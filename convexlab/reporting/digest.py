"""What a page needs of a run, read once from its directory and checked: any number may be missing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from convexlab.runs import Run

__all__ = ["TWO_PHASE", "Curve", "Digest", "Outcome", "ProbedCheckpoint", "Switch", "read_digest"]

TWO_PHASE = "two-phase"
Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]


def _number(row: Row, key: str) -> float | None:
    """Return a finite number, or None for a missing, null or other value."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    return "" if value is None else str(value)


def _mapping(row: Row, key: str) -> dict[str, Any]:
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

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Curve:
        """Transpose rows of `metrics.jsonl`."""
        rows = list(rows)
        keys = ("epoch", "gradient_equivalents", "seconds", "train_loss", "gradient_norm")
        columns = (np.array([_nan(_number(row, key)) for row in rows]) for key in keys)
        return cls(tuple(_text(row, "phase") for row in rows), *columns)

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
    train_accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    cost: float | None
    """Gradient equivalents."""
    seconds: float | None
    epoch: float | None
    cost_breakdown: dict[str, float | None]
    """Gradient equivalents by what they were spent on."""

    @classmethod
    def from_row(cls, row: Row) -> Outcome:
        """Read `two_phase` or one of `baselines` of `summary.json`."""
        parts = _mapping(row, "cost_breakdown")
        return cls(
            train_loss=_number(row, "train_loss"),
            train_accuracy=_number(row, "train_accuracy"),
            validation_loss=_number(row, "validation_loss"),
            validation_accuracy=_number(row, "validation_accuracy"),
            cost=_number(row, "gradient_equivalents"),
            seconds=_number(row, "seconds"),
            epoch=_number(row, "epoch"),
            cost_breakdown={str(key): _number(parts, key) for key in parts},
        )


@dataclass(frozen=True)
class Switch:
    """When the run left Adam, and why; `epoch` is None when it never did."""

    epoch: float | None
    detector: str
    train_loss: float | None
    gradient_norm: float | None
    reason: str


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
            "confidence floor steps seconds examples train_size"
        )
        nodes, weights = _density(_mapping(row, "density"))
        numbers: dict[str, Any] = {key: _number(row, key) for key in plain.split()}
        return cls(
            name=_text(row, "checkpoint"),
            phase=_text(row, "phase"),
            verdict=_text(row, "verdict"),
            verdict_summary=_text(row, "verdict_summary"),
            rounding_floor=abs(_number(row, "rounding_floor") or 0.0),
            cost=_number(row, "gradient_equivalents"),
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


@dataclass(frozen=True)
class Digest:
    """One single-seed run or one probe of bare checkpoints, ready to be told."""

    label: str
    """Short and unique on the page."""
    config: dict[str, Any]
    finished: bool
    """Whether there is a `summary.json`."""
    is_probe: bool
    """Whether it is a probe of bare checkpoints, without training."""
    model: str
    parameters: float | None
    overdetermination: float | None
    """Q = training examples × classes / parameters."""
    dataset: str
    train_size: float | None
    seed: str
    budget: float | None
    """Gradient equivalents."""
    phase_two: str
    switch: Switch | None
    """None when neither the summary nor the curve shows one."""
    two_phase: Outcome | None
    baselines: dict[str, Outcome]
    environment: dict[str, Any]
    curves: dict[str, Curve]
    """By the `run` of `metrics.jsonl`."""
    probe: tuple[ProbedCheckpoint, ...]
    """By epoch."""

    @property
    def curve(self) -> Curve | None:
        """The two-phase run."""
        return self.curves.get(TWO_PHASE)

    @property
    def better_baseline(self) -> tuple[str, Outcome] | None:
        """The baseline with the lower training loss."""
        return min(
            ((name, outcome) for name, outcome in self.baselines.items() if outcome.train_loss is not None),
            key=lambda item: item[1].train_loss or 0.0,
            default=None,
        )


def read_digest(run: Run, label: str) -> Digest:
    """Read a single-seed run directory.

    Raises:
        MisuseError: the directory holds no configuration, or a file in it cannot be read.
    """
    config, summary = run.config, run.summary
    result = summary or {}
    model, dataset = _mapping(result, "model"), _mapping(result, "dataset")
    curves = _curves(run.metrics)
    phase_two = _text(result, "phase_two") or _text(config, "phase_two")
    two_phase = _mapping(result, "two_phase")
    return Digest(
        label=label,
        config=config,
        finished=summary is not None,
        is_probe=config.get("kind") == "probe",
        model=_text(model, "name") or _text(config, "model") or "model",
        parameters=_number(model, "parameters"),
        overdetermination=_number(model, "overdetermination"),
        dataset=_text(dataset, "name") or _text(config, "dataset") or "data",
        train_size=_number(dataset, "train_size") or _number(config, "train_size"),
        seed=_text(result, "seed") or _text(config, "seed"),
        budget=_number(result, "budget") or _number(config, "epochs"),
        phase_two=phase_two or "phase two",
        switch=_switch(result, curves.get(TWO_PHASE)),
        two_phase=Outcome.from_row(two_phase) if two_phase else None,
        baselines={
            str(name): Outcome.from_row(row)
            for name, row in _mapping(result, "baselines").items()
            if isinstance(row, Mapping)
        },
        environment=_mapping(result, "environment"),
        curves=curves,
        probe=tuple(sorted(map(ProbedCheckpoint.from_row, run.probe), key=_by_epoch)),
    )


def _by_epoch(checkpoint: ProbedCheckpoint) -> float:
    # A stable sort: checkpoints of unknown epoch stay in the order given, behind the others.
    return math.inf if checkpoint.epoch is None else checkpoint.epoch


def _curves(rows: Iterable[Row]) -> dict[str, Curve]:
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        by_run.setdefault(_text(row, "run"), []).append(row)
    return {name: Curve.from_rows(group) for name, group in by_run.items()}


def _switch(summary: Row, curve: Curve | None) -> Switch | None:
    row = _mapping(summary, "switch")
    if row:
        return Switch(
            epoch=_number(row, "epoch"),
            detector=_text(row, "detector"),
            train_loss=_number(row, "train_loss"),
            gradient_norm=_number(row, "gradient_norm"),
            reason=_text(row, "reason"),
        )
    return _switch_of_curve(curve) if curve else None


def _switch_of_curve(curve: Curve) -> Switch | None:
    """An unfinished run has no summary yet, but its curve shows where phase two began."""
    for index, phase in enumerate(curve.phases):
        if index and phase not in ("start", "adam"):
            at = [column[index - 1] for column in (curve.epoch, curve.loss, curve.norm)]
            epoch, loss, norm = (None if math.isnan(value) else float(value) for value in at)
            return Switch(epoch, "", loss, norm, "")
    return None

"""The rows of a run's files as typed values: any number may be missing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import numpy.typing as npt

from convexlab.runs.schema import Kind, Schema, flag, list_of, number, object_of, text, whole

__all__ = [
    "CONFIG",
    "METRICS",
    "ORACLE",
    "PROBE",
    "SUMMARY",
    "Curve",
    "EpochRow",
    "LossSlice",
    "Outcome",
    "PointMeasurement",
    "ProbedCheckpoint",
    "Records",
    "Row",
    "Sampling",
    "Switch",
    "mapping_of",
    "number_of",
    "text_of",
    "without_density",
]

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]

# Names in the files that differ from the attributes'.
_SIGNALS, _DENSITY, _TOP = "told", "density", "top"


class Records(NamedTuple):
    """A run's files as they are, for those who want the data."""

    summary: Row
    """Empty until it is known."""
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


def _whole_of(row: Row, key: str) -> int | None:
    value = number_of(row, key)
    return None if value is None else round(value)


def _text_or_none(row: Row, key: str) -> str | None:
    return text_of(row, key) or None


_READERS: dict[Any, Callable[[Row, str], Any]] = {
    str: text_of,
    str | None: _text_or_none,
    float | None: number_of,
    int | None: _whole_of,
}


@cache
def _plain_fields(cls: type) -> dict[str, Callable[[Row, str], Any]]:
    """Return the fields of a dataclass of rows that are one text or number, each with its reader."""
    return {name: _READERS[kind] for name, kind in get_type_hints(cls).items() if kind in _READERS}


def _plain_values(cls: type, row: Row) -> dict[str, Any]:
    return {name: read(row, name) for name, read in _plain_fields(cls).items()}


def _no_numbers() -> Floats:
    return np.empty(0)


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
    """All other recorded numbers by name, in the order of the rows."""

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> Curve:
        """Transpose rows of `metrics.jsonl`."""
        epochs = [EpochRow.from_row(row) for row in rows]
        names = dict.fromkeys(name for epoch in epochs for name in epoch.measures)
        return cls(
            phases=tuple(epoch.phase for epoch in epochs),
            epoch=_column(epoch.epoch for epoch in epochs),
            cost=_column(epoch.gradient_equivalents for epoch in epochs),
            seconds=_column(epoch.seconds for epoch in epochs),
            loss=_column(epoch.train_loss for epoch in epochs),
            norm=_column(epoch.gradient_norm for epoch in epochs),
            measures={name: _column(epoch.measures.get(name) for epoch in epochs) for name in names},
        )

    def segments(self) -> Iterator[tuple[str, slice]]:
        """Yield each phase and its rows, the last row before it included so that the drawn line is unbroken."""
        begin = 0
        for phase, group in itertools.groupby(self.phases):
            end = begin + len(list(group))
            if phase != "start":
                yield phase, slice(max(begin - 1, 0), end)
            begin = end


def _column(values: Iterable[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values])


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
    diverged: float | None = None
    """The epoch in which its loss or gradient became infinite or NaN; None where it did not."""
    measures: dict[str, float] = field(default_factory=dict)
    """Every other number by its name."""
    vector_seconds: float | None = None
    """Seconds of a second phase beside the loss and its gradients."""

    @classmethod
    def from_row(cls, row: Row) -> Outcome:
        """Read `two_phase` or one of `baselines` of `summary.json`."""
        parts = mapping_of(row, "cost_breakdown")
        known = {"train_loss", "gradient_equivalents", "seconds", "vector_seconds", "epoch", "diverged"}
        others = {name: number_of(row, name) for name in row if name not in known}
        return cls(
            train_loss=number_of(row, "train_loss"),
            cost=number_of(row, "gradient_equivalents"),
            seconds=number_of(row, "seconds"),
            epoch=number_of(row, "epoch"),
            cost_breakdown={str(key): number_of(parts, key) for key in parts},
            diverged=number_of(row, "diverged"),
            measures={name: value for name, value in others.items() if value is not None},
            vector_seconds=number_of(row, "vector_seconds"),
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


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """A training run after one epoch: a row of `metrics.jsonl`."""

    run: str
    """`two-phase`, or the name of a baseline."""
    phase: str
    """`start`, `adam`, or the name of the second phase."""
    epoch: float | None = None
    gradient_equivalents: float | None = None
    """Spent so far."""
    seconds: float | None = None
    """Spent so far."""
    train_loss: float | None = None
    """None where it is not finite; so is the norm."""
    gradient_norm: float | None = None
    signals: dict[str, float | None] = field(default_factory=dict)
    """The inputs of the detector, stored as `told`; empty where there was none."""
    measures: dict[str, float | None] = field(default_factory=dict)
    """Any other number of the row by its name; empty where none was measured."""

    @classmethod
    def from_row(cls, row: Row) -> EpochRow:
        """Read one row of `metrics.jsonl`."""
        plain, signals = _plain_values(cls, row), mapping_of(row, _SIGNALS)
        return cls(
            **plain,
            signals={str(name): number_of(signals, name) for name in signals},
            measures={name: number_of(row, name) for name in row if name not in plain and name != _SIGNALS},
        )

    def as_row(self) -> dict[str, Any]:
        """Return what `metrics.jsonl` holds."""
        plain = dict(vars(self))
        del plain["signals"], plain["measures"]
        return plain | ({_SIGNALS: dict(self.signals)} if self.signals else {}) | self.measures


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """Which checkpoint a row is about."""

    checkpoint: str = ""
    """File name of the run's own checkpoint; of any other the path as it was given."""
    epoch: float | None = None
    """After which the weights were stored, or the step where ``axis`` says so; None where nothing says when."""
    phase: str = ""
    """Phase of training: `start`, `adam`, or the second phase's name; empty (null in the file) where not known."""
    axis: str = ""
    """Unit of ``epoch``, "epoch" or "step"; empty (null in the file) in rows that are older than steps."""


@dataclass(frozen=True, kw_only=True)
class PointMeasurement:
    """Loss, gradient and curvature of an objective at one point, and what they cost.

    A number is None where it is not finite, or where an older file does not have it. All of curvature is None where
    the loss, its gradient or a product is not finite. Sentences that older files hold are not read.
    """

    train_loss: float | None = None
    gradient_norm: float | None = None
    gradient_curvature: float | None = None
    """gᵀHg / gᵀg; None where the gradient is zero."""
    smallest: float | None = None
    """vᵀHv of the smallest Ritz vector v: at or above the smallest eigenvalue."""
    smallest_lower_bound: float | None = None
    """No eigenvalue is below, with `confidence` over the random start; None where the steps allow none."""
    smallest_residual: float | None = None
    """‖Hv - smallest v‖."""
    smallest_slope: float | None = None
    """gᵀv along that v."""
    largest: float | None = None
    """As `smallest` at the other end; likewise the next two."""
    largest_residual: float | None = None
    largest_slope: float | None = None
    negative_mass: float | None = None
    """Share of the eigenvalues below -`floor`·`largest`, from 0 to 1, estimated."""
    negative_mass_standard_error: float | None = None
    """Standard error over the random starts; the error of quadrature is in the next two alone."""
    negative_mass_low: float | None = None
    """Lower end of an interval at `interval_level`; None in older files. Likewise the next."""
    negative_mass_high: float | None = None
    trace: float | None = None
    """Estimated."""
    trace_standard_error: float | None = None
    """Standard error over the random vectors; None where there are fewer than two."""
    trace_low: float | None = None
    """As of the negative mass; likewise the next."""
    trace_high: float | None = None
    interval_level: float | None = None
    """From 0 to 1, of every interval of the row."""
    top_values: Floats = field(default_factory=_no_numbers)
    """(k,) the largest eigenvalues, the first of them first; empty where they were not asked for."""
    top_residuals: Floats = field(default_factory=_no_numbers)
    """(k,) ‖Hv - value v‖ of each."""
    top_gradient_share: float | None = None
    """‖Vᵀg‖² / ‖g‖², from 0 to 1, V their eigenvectors."""
    adam_sharpness: float | None = None
    """Largest eigenvalue of P^(-1/2) H P^(-1/2), P of the Adam that led here; None where its moments are not stored."""
    adam_sharpness_residual: float | None = None
    adam_threshold: float | None = None
    """2 (1 + β₁) / ((1 - β₁) η), above which that Adam is unstable on a quadratic loss."""
    second_difference: float | None = None
    """Curvature along v from values of the loss alone; None unless the verdict is `non-convex`."""
    verdict: str = ""
    """`non-convex`, `no-negative-curvature`, `unresolved`, or empty."""
    failure: str | None = None
    """The message of the error that ended the measurement of curvature; None where there was none."""
    rounding_floor: float = 0.0
    """An eigenvalue no larger than this has no sign; 0 (null in the file) where it was not estimated."""
    confidence: float | None = None
    """From 0 to 1, of the lower bound."""
    floor: float | None = None
    """The verdict's resolution, relative to the largest eigenvalue."""
    steps: int | None = None
    """Dimension of the Krylov space; 0 where nothing was measured."""
    precision: str = ""
    """Precision of the products, `bf16` or `tf32`; empty (not in the file) where it was the loss's own."""
    deviation: float | None = None
    """Bound on the error of such products, part of `smallest_lower_bound`; likewise not in the file."""
    nodes: Floats = field(default_factory=_no_numbers)
    """(k,) of the spectral density, by stochastic Lanczos quadrature; empty where there is none."""
    weights: Floats = field(default_factory=_no_numbers)
    """(k,) sum to 1."""
    gradient_equivalents: float | None = None
    """Spent on this row."""
    seconds: float | None = None
    peak_memory: int | None = None
    """Bytes by which the memory in use rose at most; None where the system does not say."""

    def as_row(self) -> dict[str, Any]:
        """Return the fields as a file holds them: both parts of density and top in one object each, or null."""
        row = dict(vars(self))
        if not self.precision:
            del row["precision"], row["deviation"]
        nodes, weights = row.pop("nodes"), row.pop("weights")
        density = {"nodes": nodes.tolist(), "weights": weights.tolist()} if nodes.size else None
        values, residuals = row.pop("top_values"), row.pop("top_residuals")
        top = {"values": values.tolist(), "residuals": residuals.tolist()} if values.size else None
        return row | {_DENSITY: density, _TOP: top, "rounding_floor": self.rounding_floor or None}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a loss on a sample says of all training examples: both ends of the spectrum on examples not used before.

    A number is None where it was not measured, and a standard error where there are fewer than two batches.
    """

    population: int | None = None
    """Training examples there are; None where nothing counts them."""
    fresh_examples: int | None = None
    """How many others both eigenvectors were tried on."""
    smallest_standard_error: float | None = None
    """Standard error of `smallest`, over random batches of the sample."""
    smallest_fresh: float | None = None
    """Curvature on the fresh examples, along the eigenvector of `smallest`."""
    smallest_fresh_standard_error: float | None = None
    smallest_fresh_low: float | None = None
    """Lower end of an interval at `interval_level`; None in older files. Likewise the next."""
    smallest_fresh_high: float | None = None
    smallest_full: float | None = None
    """Curvature on all training examples, along the same; estimated, and None where no fresh one is of them."""
    smallest_full_standard_error: float | None = None
    """0 where all are known."""
    smallest_full_low: float | None = None
    """As of `smallest_fresh`; likewise the next."""
    smallest_full_high: float | None = None
    largest_standard_error: float | None = None
    """As the nine of `smallest`, along the eigenvector of `largest`; likewise the next eight."""
    largest_fresh: float | None = None
    largest_fresh_standard_error: float | None = None
    largest_fresh_low: float | None = None
    largest_fresh_high: float | None = None
    largest_full: float | None = None
    largest_full_standard_error: float | None = None
    largest_full_low: float | None = None
    largest_full_high: float | None = None


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

    @classmethod
    def along(cls, end: str, point: PointMeasurement, steps: Floats, losses: Floats) -> LossSlice | None:
        """Return the slice along the eigenvector of an end of the spectrum; None where that was not measured."""
        loss, slope, curvature = (getattr(point, name) for name in ("train_loss", f"{end}_slope", end))
        return None if None in (loss, slope, curvature) else cls(steps, losses, loss, slope, curvature)

    def model(self, steps: Floats) -> Floats:
        """Return the loss by slope and curvature alone, (k,)."""
        return self.loss + self.slope * steps + 0.5 * self.curvature * steps**2


@dataclass(frozen=True, kw_only=True)
class ProbedCheckpoint(Sampling, PointMeasurement, _Identity):
    """The curvature of the training loss at one checkpoint: a row of `probe.jsonl`, whose fields are these.

    The bases come in the file's order, from the last to the first.
    """

    slices: dict[str, LossSlice] = field(default_factory=dict)
    """Along the eigenvectors of the `smallest` and the `largest` eigenvalue, as far as measured; null where empty."""
    witness: str | None = None
    """File of the direction that proves the loss non-convex, relative to the run; None without a proof."""
    examples: int | None = None
    """Training examples that the loss is the mean over; None where nothing counts them."""
    train_size: int | None = None
    """Training examples that were asked for; None where nothing counts them."""
    key: str | None = None
    """Digests of the weights, and of all options that decide the row; None in an older file."""

    @property
    def is_measured(self) -> bool:
        """Whether anything is known of curvature there."""
        return self.smallest is not None

    @classmethod
    def from_row(cls, row: Row) -> ProbedCheckpoint:
        """Read one row of `probe.jsonl`; whatever is missing or damaged in it is None, empty or 0."""
        plain = _plain_values(cls, row)
        plain["rounding_floor"] = abs(number_of(row, "rounding_floor") or 0.0)
        nodes, weights = _density(mapping_of(row, _DENSITY))
        values, residuals = _pairs(mapping_of(row, _TOP), "values", "residuals")
        point = cls(**plain, nodes=nodes, weights=weights, top_values=values, top_residuals=residuals)
        return replace(point, slices=_slices(point, mapping_of(row, "slices")))

    def as_row(self) -> dict[str, Any]:
        """Return what `probe.jsonl` holds."""
        slices = {
            end: {"steps": drawn.steps.tolist(), "losses": drawn.losses.tolist()} for end, drawn in self.slices.items()
        }
        return super().as_row() | {"phase": self.phase or None, "axis": self.axis or None, "slices": slices or None}


_KINDS: dict[Any, Kind] = {
    str: text,
    str | None: text,
    float: number(),
    float | None: number(),
    int | None: whole(),
}
_NUMBERS = object_of(others=number())
_SPENT = {"epoch": number(0), "gradient_equivalents": number(0), "seconds": number(0)}
_OUTCOME_KINDS = _SPENT | {
    "vector_seconds": number(0),
    "train_loss": number(),
    "cost_breakdown": _NUMBERS,
    "diverged": number(0),
}
_OUTCOME = object_of(_OUTCOME_KINDS, others=number())
_SWITCH = object_of(
    {"epoch": number(0), "detector": text, "train_loss": number(), "gradient_norm": number(0), "reason": text}
)


def _either(kind: Kind) -> Kind:
    """Of one seed, or a list over several."""
    several = list_of(kind)
    return Kind(f"{kind.expected}, or a list of that", lambda value: kind.fits(value) or several.fits(value))


_TEXTS = ("kind", "objective", "model", "dataset", "loss", "data", "detector", "phase_two", "dtype", "device")
_WHOLES = ("epochs", "switch_epoch", "batch_size", "train_size", "seed", "seeds", "probe_every", "checkpoint_every")

CONFIG = Schema(
    dict.fromkeys(_TEXTS, text)
    | dict.fromkeys((*_WHOLES, "oracle_every"), whole())
    | {"lr": number(0), "no_baseline": flag, "force": flag, "made_by": object_of()}
)
"""Fields of `config.json`."""
METRICS = Schema(
    {"run": text, "phase": text, "train_loss": number(), "gradient_norm": number(0), _SIGNALS: _NUMBERS} | _SPENT,
    others=number(),
    required=("run", "epoch"),
)
"""Fields of a row of `metrics.jsonl`."""
PROBE = Schema(
    {name: _KINDS[kind] for name, kind in get_type_hints(ProbedCheckpoint).items() if kind in _KINDS}
    | {
        "confidence": number(0, 1),
        "seconds": number(0),
        "gradient_equivalents": number(0),
        _DENSITY: object_of({"nodes": list_of(number()), "weights": list_of(number())}),
        "slices": object_of(others=object_of(others=list_of(number()))),
    },
    required=("checkpoint",),
)
"""Fields of a row of `probe.jsonl`."""
ORACLE = Schema(
    _OUTCOME_KINDS | {"switch_epoch": whole(), "safe_resort": _SWITCH}, others=number(), required=("switch_epoch",)
)
"""Fields of a row of `oracle.jsonl`."""
SUMMARY = Schema(
    {
        "model": object_of({"name": text, "parameters": whole(), "overdetermination": number(0)}),
        "dataset": object_of({"name": text}),
        "loss": text,
        "measures": list_of(text),
        "budget": number(0),
        "batch_size": whole(),
        "switch": _either(_SWITCH),
        "safe_resort": _SWITCH,
        "phase_two": text,
        "two_phase": _either(_OUTCOME),
        "baselines": _either(object_of(others=_OUTCOME)),
        "oracle": _either(_NUMBERS),
        "seed": whole(),
        "seeds": list_of(whole()),
        "runs": list_of(text),
        "environment": object_of(),
        "stored": object_of({"metrics": whole(), "oracle": whole(), "checkpoints": list_of(whole())}),
    }
)
"""Fields of `summary.json`."""


def without_density(row: Row) -> dict[str, Any]:
    """Return a row of `probe.jsonl` without its spectral density, which is hundreds of numbers."""
    return {name: value for name, value in row.items() if name != _DENSITY}


def _density(row: Row) -> tuple[Floats, Floats]:
    nodes, weights = _pairs(row, "nodes", "weights")
    return nodes[weights > 0], weights[weights > 0]


def _pairs(row: Row, *names: str) -> tuple[Floats, Floats]:
    """Return two columns of finite numbers as far as both have them."""
    first, second = (_numbers(row, name) for name in names)
    count = min(first.size, second.size)
    usable = np.isfinite(first[:count]) & np.isfinite(second[:count])
    return first[:count][usable], second[:count][usable]


def _slices(point: PointMeasurement, stored: Row) -> dict[str, LossSlice]:
    slices = {}
    for end in ("smallest", "largest"):
        steps, losses = (_numbers(mapping_of(stored, end), key) for key in ("steps", "losses"))
        usable = steps.size == losses.size and steps.size > 2 and np.isfinite(losses).sum() > 1
        drawn = LossSlice.along(end, point, steps, losses) if usable and np.isfinite(steps).all() else None
        if drawn is not None:
            slices[end] = drawn
    return slices


def _numbers(row: Row, key: str) -> Floats:
    # A null is a NaN: numpy makes one of None.
    try:
        return np.array(row.get(key) or [], dtype=np.float64).ravel()
    except (TypeError, ValueError):
        return np.empty(0)

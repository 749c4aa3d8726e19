"""What a page needs of a run, read once from its directory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from convexlab.runs import Run
from convexlab.runs.oracle import Oracle, read_oracle
from convexlab.runs.plane import PathPlane, read_plane
from convexlab.runs.rows import Curve, Outcome, ProbedCheckpoint, Records, Row, Switch, mapping_of, number_of, text_of

__all__ = ["TWO_PHASE", "RunFacts", "facts_of_probe", "read_facts", "value_at"]

TWO_PHASE = "two-phase"
# The measures of runs whose summary does not name them.
_MEASURES = ("train_accuracy", "validation_loss", "validation_accuracy", "relative_error")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RunFacts:
    """One single-seed run or one probe of bare checkpoints."""

    label: str
    """Short name, unique on the page."""
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
    """Empty where an objective is known by its own name alone."""
    train_size: float | None
    seed: str
    budget: float | None
    """Budget in gradient equivalents."""
    phase_two: str
    phase_two_reason: str
    """Why this second phase was chosen; empty where the user named it."""
    expectation: str
    """The warning before the switch that it would end worse than Adam; empty without one."""
    switch: Switch | None
    """None when neither the summary nor the curve shows one."""
    safe_resort: Switch | None
    """When phase two gave up and training went back to Adam, and why."""
    two_phase: Outcome | None
    baselines: dict[str, Outcome]
    measures: tuple[str, ...]
    """Names of the measures beside the training loss, in the order of outcomes and curves."""
    environment: dict[str, Any]
    made_by: dict[str, Any]
    """How the numbers were made; empty in older runs."""
    curves: dict[str, Curve]
    """By the `run` of `metrics.jsonl`."""
    probe: tuple[ProbedCheckpoint, ...]
    """By epoch."""
    plane: PathPlane | None
    """The loss on the plane of the path through the checkpoints."""
    oracle: Oracle | None
    """Where other switches of the same run ended, if the oracle was asked for."""
    records: Records = field(repr=False)

    @property
    def subject(self) -> str:
        """What the run is about, for a heading."""
        return self.model if self.dataset in ("", self.model) else f"{self.model} on {self.dataset}"

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """What each training run reached, the two-phase run last."""
        return self.baselines | ({} if self.two_phase is None else {TWO_PHASE: self.two_phase})

    @property
    def curve(self) -> Curve | None:
        """The two-phase run."""
        return self.curves.get(TWO_PHASE)

    @property
    def switch_share(self) -> float | None:
        """The share of the budget that was spent by the time of the switch."""
        if self.switch is None or self.switch.epoch is None or self.curve is None or not self.budget:
            return None
        cost = value_at(self.curve.epoch, self.curve.cost, self.switch.epoch)
        return None if cost is None else cost / self.budget

    @property
    def probe_at_switch(self) -> ProbedCheckpoint | None:
        """The probed checkpoint at the switch, or the nearest one; None without a switch or an epoch."""
        switch = self.switch.epoch if self.switch else None
        known = [checkpoint for checkpoint in self.probe if checkpoint.epoch is not None]
        if switch is None or not known:
            return None
        return min(known, key=lambda checkpoint: abs((checkpoint.epoch or 0.0) - switch))

    @property
    def has_second_phase(self) -> bool:
        """Whether phase two made a step, by what was recorded; a switch at the end of the budget leaves no step."""
        if self.switch is None or self.switch.epoch is None:
            return False
        spent = {} if self.two_phase is None else self.two_phase.cost_breakdown
        recorded = any(phase not in ("start", "adam") for phase in (self.curve.phases if self.curve else ()))
        return recorded or not spent or self.phase_two in spent

    @property
    def better_baseline(self) -> tuple[str, Outcome] | None:
        """The baseline with the lower training loss."""
        return min(
            ((name, outcome) for name, outcome in self.baselines.items() if outcome.train_loss is not None),
            key=lambda item: item[1].train_loss or 0.0,
            default=None,
        )


def read_facts(run: Run, label: str) -> RunFacts:
    """Read a single-seed run directory.

    Raises:
        MisuseError: the directory holds no configuration, or a file in it cannot be read.
    """
    config, summary = run.config, run.summary
    result = summary or {}
    model, dataset = mapping_of(result, "model"), mapping_of(result, "dataset")
    metrics, probe = run.metrics, run.probe
    curves = _curves(metrics)
    phase_two = text_of(result, "phase_two") or text_of(config, "phase_two") or _phase_two(curves.get(TWO_PHASE))
    two_phase, resort = mapping_of(result, "two_phase"), mapping_of(result, "safe_resort")
    baselines = {
        str(name): Outcome.from_row(row)
        for name, row in mapping_of(result, "baselines").items()
        if isinstance(row, Mapping)
    }
    return RunFacts(
        label=label,
        config=config,
        finished=summary is not None,
        is_probe=config.get("kind") == "probe",
        model=text_of(model, "name") or text_of(config, "model") or text_of(config, "objective") or "model",
        parameters=number_of(model, "parameters"),
        overdetermination=number_of(model, "overdetermination"),
        dataset=text_of(dataset, "name") or text_of(config, "dataset"),
        train_size=number_of(dataset, "train_size") or number_of(config, "train_size"),
        seed=text_of(result, "seed") or text_of(config, "seed"),
        budget=number_of(result, "budget") or number_of(config, "epochs"),
        phase_two=phase_two,
        phase_two_reason=text_of(result, "phase_two_reason"),
        expectation=text_of(result, "expectation"),
        switch=_switch(result, curves.get(TWO_PHASE)),
        safe_resort=Switch.from_row(resort) if resort else None,
        two_phase=Outcome.from_row(two_phase) if two_phase else None,
        baselines=baselines,
        measures=_measures(summary, curves),
        environment=mapping_of(result, "environment"),
        made_by=dict(run.made_by),
        curves=curves,
        probe=tuple(sorted(map(ProbedCheckpoint.from_row, probe), key=_by_epoch)),
        plane=read_plane(run.landscape_path),
        oracle=read_oracle(result, run.oracle),
        records=Records(result, probe, metrics),
    )


def facts_of_probe(probe: Iterable[ProbedCheckpoint]) -> RunFacts:
    """Return what is known of checkpoints alone, without a run directory."""
    return RunFacts(
        label="",
        config={},
        finished=True,
        is_probe=True,
        model="model",
        parameters=None,
        overdetermination=None,
        dataset="",
        train_size=None,
        seed="",
        budget=None,
        phase_two="",
        phase_two_reason="",
        expectation="",
        switch=None,
        safe_resort=None,
        two_phase=None,
        baselines={},
        measures=(),
        environment={},
        made_by={},
        curves={},
        probe=tuple(probe),
        plane=None,
        oracle=None,
        records=Records({}, (), ()),
    )


def value_at(epochs: Floats, values: Floats, epoch: float) -> float | None:
    """Return a column of a curve at an epoch, interpolated where that epoch was not recorded.

    None outside the recorded epochs.
    """
    usable = np.isfinite(epochs) & np.isfinite(values)
    if not usable.any() or not epochs[usable].min() <= epoch <= epochs[usable].max():
        return None
    return float(np.interp(epoch, epochs[usable], values[usable]))


def _measures(summary: Row | None, curves: Mapping[str, Curve]) -> tuple[str, ...]:
    if summary is None:
        return tuple(dict.fromkeys(name for curve in curves.values() for name in curve.measures))
    names = summary.get("measures")
    return tuple(map(str, names)) if isinstance(names, list) else _MEASURES


def _by_epoch(checkpoint: ProbedCheckpoint) -> float:
    # A stable sort: checkpoints of unknown epoch stay in the order given, behind the others.
    return math.inf if checkpoint.epoch is None else checkpoint.epoch


def _curves(rows: Iterable[Row]) -> dict[str, Curve]:
    by_run: dict[str, list[Row]] = {}
    for row in rows:
        by_run.setdefault(text_of(row, "run"), []).append(row)
    return {name: Curve.from_rows(group) for name, group in by_run.items()}


def _switch(summary: Row, curve: Curve | None) -> Switch | None:
    row = mapping_of(summary, "switch")
    if row:
        return Switch.from_row(row)
    return _switch_of_curve(curve) if curve else None


def _phase_two(curve: Curve | None) -> str:
    later = (phase for phase in (curve.phases if curve else ()) if phase not in ("start", "adam"))
    return next(later, "phase two")


def _switch_of_curve(curve: Curve) -> Switch | None:
    """Return the switch of an unfinished run: it has no summary, but its curve shows where phase two began."""
    for index, phase in enumerate(curve.phases):
        if index and phase not in ("start", "adam"):
            at = [column[index - 1] for column in (curve.epoch, curve.loss, curve.norm)]
            epoch, loss, norm = (None if math.isnan(value) else float(value) for value in at)
            return Switch(epoch, "", loss, norm, "")
    return None

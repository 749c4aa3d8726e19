"""Run directories with the shapes that training and probing write, made without either."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convexlab.reporting import write_report
from convexlab.runs import Run
from tests.reporting.chromium import Browser, find

BUDGET = 120.0
ENVIRONMENT = {
    "python": "3.11.9",
    "torch": "2.6.0",
    "convexlab": "0.1.0",
    "platform": "Linux-6.1-x86_64",
    "processor": "x86_64",
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
}


Row = dict[str, Any]


def _write(path: Path, value: Row) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _metrics(epochs: int, switch: int | None, final: float, random: np.random.Generator) -> list[Row]:
    """A loss that falls by decades; a norm that falls from a random head, peaks in mid-training, and falls again."""

    def row(run: str, phase: str, epoch: int, cost: float, loss: float, norm: float) -> Row:
        numbers = {"epoch": epoch, "gradient_equivalents": cost, "seconds": 0.4 * cost, "train_loss": loss}
        return {"run": run, "phase": phase, **numbers, "gradient_norm": norm}

    def adam(epoch: int, lowest: float) -> tuple[float, float]:
        progress = epoch / BUDGET
        loss = 0.34 * (lowest / 0.34) ** (progress**0.7) * math.exp(0.08 * random.standard_normal())
        norm = 2.3 * math.exp(-epoch / 1.5) + 0.17 * math.exp(-(((epoch - 0.3 * BUDGET) / 20) ** 2)) + 0.01
        return loss, norm * math.exp(0.1 * random.standard_normal())

    rows = []
    last = epochs if switch is None else switch
    for epoch in range(last + 1):
        phase = "start" if epoch == 0 else "adam"
        rows.append(row("two-phase", phase, epoch, 4 / 3 * epoch, *adam(epoch, 3e-4)))
    if switch is not None:
        loss, norm = rows[-1]["train_loss"], rows[-1]["gradient_norm"]
        steps = epochs - switch
        for step in range(1, steps + 1):
            share = step / steps
            cost = 4 / 3 * switch + share * (BUDGET - 4 / 3 * switch)
            point = (loss * (final / loss) ** share, norm * (0.002 / norm) ** share)
            rows.append(row("two-phase", "cg-golden", switch + step, cost, *point))
    for name, lowest in (("adam-constant", 3.1e-4), ("adam-cosine", 2.3e-4)):
        for epoch in range(int(BUDGET) + 1):
            rows.append(row(name, "start" if epoch == 0 else "adam", epoch, epoch, *adam(epoch, lowest)))
    return rows


def _outcome(loss: float, epoch: int, breakdown: dict[str, float]) -> Row:
    cost = sum(breakdown.values())
    return {
        "train_loss": loss,
        "train_accuracy": 0.9987,
        "validation_loss": 0.0061,
        "validation_accuracy": 0.9644,
        "gradient_equivalents": cost,
        "seconds": 0.4 * cost,
        "epoch": epoch,
        "cost_breakdown": breakdown,
    }


def _summary(epochs: int, switch: int | None, final: float, seed: int, rows: list[Row]) -> Row:
    at = next(row for row in rows if row["run"] == "two-phase" and row["epoch"] == (switch or 0))
    moved = {"adam": BUDGET, "detector": 0.0, "cg-golden": 0.0}
    if switch is not None:
        moved = {"adam": 1.0 * switch, "detector": switch / 3, "cg-golden": BUDGET - 4 / 3 * switch}
    return {
        "schema": 1,
        "model": {"name": "vit-mlp", "parameters": 154058, "overdetermination": 0.0933},
        "dataset": {"name": "digits", "train_size": 1437, "validation_size": 360, "classes": 10},
        "loss": "mse",
        "seed": seed,
        "budget": BUDGET,
        "switch": {
            "epoch": switch,
            "detector": "gradient-norm-peak",
            "train_loss": at["train_loss"] if switch is not None else None,
            "gradient_norm": at["gradient_norm"] if switch is not None else None,
            "reason": "The smoothed gradient norm fell to 0.89 of its peak 0.186, reached at epoch 33."
            if switch is not None
            else "The smoothed gradient norm never fell to 0.9 of its peak.",
        },
        "phase_two": "cg-golden",
        "two_phase": _outcome(final, epochs, moved),
        "baselines": {
            "adam-constant": _outcome(3.1e-4, 117, {"adam": BUDGET}),
            "adam-cosine": _outcome(2.3e-4, 120, {"adam": BUDGET}),
        },
        "environment": ENVIRONMENT,
    }


def _density(smallest: float, largest: float, negative_mass: float, random: np.random.Generator) -> Row:
    """Most weight near zero, a negative side, and a few outliers that hold hardly any."""
    bulk = largest * 10.0 ** random.uniform(-6, -2, 300)
    below = smallest * random.uniform(0, 1, 60) ** 3
    outliers = largest * np.array([1.0, 0.6, 0.45, 0.2, 0.1])
    weights = np.concatenate(
        [
            np.full(300, (1 - negative_mass) / 300),
            np.full(60, negative_mass / 60),
            np.full(5, 6.5e-6),
        ]
    )
    return {"nodes": np.concatenate([bulk, below, outliers]).tolist(), "weights": (weights / weights.sum()).tolist()}


def _probe(epochs: list[int], switch: int | None, random: np.random.Generator) -> list[Row]:
    rows = []
    for epoch in epochs:
        share = epoch / max(epochs[-1], 1)
        smallest, largest = -0.6 * math.exp(-6 * share) - 2e-4, 3.0 + 40 * share * math.exp(-3 * share)
        verdict = "non-convex" if share < 0.6 else "unresolved" if share < 0.9 else "no-negative-curvature"
        mass = 0.32 * math.exp(-4 * share)
        rows.append(
            {
                "checkpoint": f"epoch-{epoch:05d}.safetensors",
                "epoch": epoch,
                "phase": "start" if epoch == 0 else "adam" if switch is None or epoch <= switch else "cg-golden",
                "train_loss": 0.34 * 1e-3**share,
                "gradient_norm": 0.2 * math.exp(-3 * share),
                "gradient_curvature": -0.02 + 8 * share,
                "smallest": smallest if share < 0.9 else -1e-7,
                "smallest_lower_bound": smallest - 0.01 * largest,
                "smallest_residual": 2e-4,
                "largest": largest,
                "largest_residual": 1e-3,
                "negative_mass": mass,
                "negative_mass_standard_error": 0.05 * mass,
                "negative_mass_low": 0.9 * mass,
                "negative_mass_high": 1.2 * mass,
                "trace": 90.0 - 30 * share,
                "trace_standard_error": 2.5,
                "trace_low": 84.0 - 30 * share,
                "trace_high": 96.0 - 30 * share,
                "interval_level": 0.95,
                "verdict": verdict,
                "rounding_floor": 3e-7,
                "confidence": 0.999,
                "floor": 1e-3,
                "steps": 64,
                "gradient_equivalents": 1166.0,
                "seconds": 41.2,
                "density": _density(smallest, largest, mass, random),
                "examples": 1437,
                "train_size": 1437,
                "population": 1437,
                "fresh_examples": 360,
                "smallest_fresh": 0.9 * smallest,
                "smallest_fresh_standard_error": 0.031,
                "smallest_fresh_low": 0.9 * smallest - 0.063,
                "smallest_fresh_high": 0.9 * smallest + 0.063,
                "largest_fresh": 0.8 * largest,
                "largest_fresh_standard_error": 0.21,
                "largest_fresh_low": 0.8 * largest - 0.43,
                "largest_fresh_high": 0.8 * largest + 0.43,
            }
        )
    return rows


def build_run(
    path: Path,
    *,
    epochs: int = 100,
    switch: int | None = 40,
    final: float = 1.4e-4,
    seed: int = 0,
    finished: bool = True,
    baselines: bool = True,
    trained: bool = True,
    probed: bool = True,
    config: Row | None = None,
    summary: Row | None = None,
    probe: Row | None = None,
) -> Run:
    """Write a run; `config`, `summary` and `probe` (every row) overwrite what it would hold."""
    path.mkdir(parents=True)
    random = np.random.default_rng(seed)
    settings = {"model": "vit-mlp", "dataset": "digits", "loss": "mse", "epochs": BUDGET, "seed": seed, "lr": 1e-3}
    _write(path / "config.json", settings | (config or {}))
    rows = _metrics(epochs, switch, final, random)
    if trained:
        _write_lines(path / "metrics.jsonl", [row for row in rows if baselines or row["run"] == "two-phase"])
    if finished:
        result = _summary(epochs, switch, final, seed, rows)
        _write(path / "summary.json", result | ({} if baselines else {"baselines": {}}) | (summary or {}))
    if probed:
        places = sorted({*range(0, epochs + 1, max(epochs // 8, 1)), epochs, switch or 0})
        _write_lines(path / "probe.jsonl", [row | (probe or {}) for row in _probe(places, switch, random)])
    return Run(path)


def build_probe(path: Path, count: int = 3, **changes: Any) -> Run:
    """Write a probe of bare checkpoints, without training; `changes` overwrite every row."""
    path.mkdir(parents=True)
    _write(path / "config.json", {"kind": "probe", "model": "vit-mlp", "dataset": "digits", "loss": "mse"})
    rows = _probe([50 * index for index in range(count)], None, np.random.default_rng(0))
    _write_lines(path / "probe.jsonl", [row | changes for row in rows])
    return Run(path)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    return lambda name="run", **options: build_run(tmp_path / name, **options)


@pytest.fixture
def make_probe(tmp_path: Path) -> Callable[..., Run]:
    return lambda name="probe", **options: build_probe(tmp_path / name, **options)


@pytest.fixture
def make_bare(tmp_path: Path) -> Callable[..., Run]:
    """Runs with nothing to draw, where the figures do not matter."""
    return lambda name="run", **options: build_run(tmp_path / name, trained=False, probed=False, **options)


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished, probed run with its report; to be read only."""
    run = build_run(tmp_path_factory.mktemp("full") / "run")
    write_report([run])
    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with contextlib.closing(Browser(find(), tmp_path_factory.mktemp("profile"))) as running:
        yield running

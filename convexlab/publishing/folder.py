"""The folder of a trained network: which checkpoints it keeps, how they are stored, and what they measure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convexlab.checkpoints import load_weights, read_checkpoint, write_checkpoint
from convexlab.errors import MisuseError
from convexlab.linalg.vectors import norm
from convexlab.machine.environment import dtype_name
from convexlab.problems import Problem, Setting, setting_of
from convexlab.publishing.card import Card, write_card, write_index
from convexlab.runs import Row, Run, write_json, write_json_lines

__all__ = ["chosen_epochs", "publish"]

_ADAM, _SECOND = 6, 5
# Digits of the card: more than the weights as stored are good for would be none.
_DIGITS = 5


def publish(
    run: Run,
    folder: Path,
    card: Card,
    *,
    stored_as: torch.dtype = torch.float32,
    probe_size: int | None = None,
) -> Run:
    """Make the folder of a trained network from a finished run whose checkpoints are every epoch's.

    Args:
        run: of `train_two_phase`.
        folder: of ``models/``, which may hold the recipe already; what an earlier call left there is replaced.
        card: what the recipe knows.
        stored_as: of floating-point weights; they are computed with in the run's own precision.
        probe_size: training examples that `probe` samples by default; None is all.

    Returns:
        The folder, as a run.

    Raises:
        MisuseError: the run is not finished, or has never switched.
    """
    summary = run.summary
    if summary is None:
        raise MisuseError(f"{str(run.path)!r} is not finished: train it to its end first.")
    if summary["switch"]["epoch"] is None:
        raise MisuseError(
            f"{str(run.path)!r} has never switched: expected a run of both phases. Train with a switch_epoch."
        )
    target = Run(folder)
    epochs = chosen_epochs(run, summary["switch"]["epoch"])
    for old in target.checkpoints:
        old.unlink()
    target.write_config(run.config, run.made_by)
    write_json_lines(target.metrics_path, run.metrics)
    write_json(target.summary_path, summary)
    recorded = {row["epoch"]: row for row in run.metrics if row["run"] == "two-phase"}
    rows, problem, setting = [], None, None
    for epoch in epochs:
        path = _store(run.checkpoint_path(epoch), target.checkpoint_path(epoch), stored_as, probe_size)
        checkpoint = read_checkpoint(path)
        if problem is None:
            # The training loss, of all its examples.
            setting = setting_of(read_checkpoint(run.checkpoint_path(epoch)), {}, trust=True)
            problem = setting.build("cpu")
        load_weights(problem.model, checkpoint)
        rows.append(_measured(path, problem, recorded[epoch]))
    assert problem is not None
    assert setting is not None
    facts = _facts(folder, summary, card, rows, setting, probe_size, stored_as)
    write_card(folder / "README.md", facts | _final(problem, rows[-1]) | {"checkpoints": rows}, card)
    write_index(folder.parent)
    return target


def chosen_epochs(run: Run, switch: int) -> list[int]:
    """Return about a dozen epochs with checkpoints: start, powers up to the switch, then evenly to the end."""
    stored = [int(path.stem.rpartition("-")[2]) for path in run.checkpoints]
    adam = [0.0, *(switch ** (place / (_ADAM - 2)) for place in range(_ADAM - 1))]
    second = [switch + (stored[-1] - switch) * (place + 1) / _SECOND for place in range(_SECOND)]
    return sorted({min(stored, key=lambda epoch: abs(epoch - wanted)) for wanted in [*adam, *second]})


def _store(source: Path, path: Path, dtype: torch.dtype, probe_size: int | None) -> Path:
    checkpoint = read_checkpoint(source)

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    added = {} if probe_size is None else {"probe_size": str(probe_size)}
    tensors = {name: rounded(tensor) for name, tensor in checkpoint.tensors.items()}
    write_checkpoint(path, tensors, checkpoint.metadata | added)
    return path


def _measured(path: Path, problem: Problem, recorded: Row) -> Row:
    loss, gradient = problem.objective.value_and_gradient()
    return {
        "file": f"{path.parent.name}/{path.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "epoch": recorded["epoch"],
        "phase": recorded["phase"],
        "loss": _short(loss),
        "gradient_norm": _short(float(norm(gradient))),
        "loss_in_training": _short(recorded["train_loss"]),
        "gradient_norm_in_training": _short(recorded["gradient_norm"]),
    }


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else value


def _facts(
    folder: Path,
    summary: Row,
    card: Card,
    rows: Sequence[Row],
    setting: Setting,
    probe_size: int | None,
    stored_as: torch.dtype,
) -> Row:
    switch, end, second = summary["switch"]["epoch"], rows[-1]["epoch"], summary["phase_two"]
    examples = summary["dataset"]["train_size"]
    spent = summary["two_phase"]["cost_breakdown"]
    return {
        "name": folder.name,
        "model": card.model,
        "parameters": summary["model"]["parameters"],
        "dataset": card.dataset,
        "training_examples": examples,
        "examples_probed": examples if probe_size is None else probe_size,
        "loss": card.loss,
        "recipe": f"models/{folder.name}/{card.recipe}",
        "seed": setting.seed,
        "stored_as": dtype_name(stored_as),
        "epochs": {"adam": switch, second: end - switch},
        "gradient_equivalents": {name: round(spent[name], 2) for name in ("adam", second)},
        "license": "Apache-2.0",
        "data_license": card.data_license,
    }


def _final(problem: Problem, last: Row) -> dict[str, Any]:
    """Return the quality of the last checkpoint, whose weights the model has."""
    measures = {name.replace("train_", "training_"): value for name, value in problem.measures().items()}
    return {"final": {name: _short(value) for name, value in ({"training_loss": last["loss"]} | measures).items()}}

"""The results of a two-phase run: its checkpoints and its summary, whichever trainer made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from convexlab.checkpoints import write_checkpoint, write_moments
from convexlab.machine.atomic import make_folder
from convexlab.machine.environment import describe_environment, dtype_name
from convexlab.runs import Row, Run, write_json
from convexlab.runs.schema import VERSION
from convexlab.training.config import TwoPhaseConfig
from convexlab.training.phases import Choice
from convexlab.training.switch import expectation_of
from convexlab.training.trajectory import Trajectory

__all__ = ["checkpoint_every", "keep_best", "write_summary", "write_weights"]

# Checkpoints kept evenly along a run for a later probe, besides start, switch and end.
_CHECKPOINTS = 6
# Fields of an outcome that are no validation's.
_NOT_MEASURES = frozenset(
    {"train_loss", "gradient_equivalents", "seconds", "vector_seconds", "epoch", "cost_breakdown", "diverged"}
)


def checkpoint_every(config: TwoPhaseConfig) -> int:
    """Return the epochs between two checkpoints, besides start, switch and end."""
    return config.checkpoint_every or config.probe_every or max(1, config.epochs // _CHECKPOINTS)


def write_weights(
    run: Run, config: TwoPhaseConfig, trajectory: Trajectory, *, at: tuple[int, str] | None = None
) -> Path:
    """Write the model's weights as they are now; before the second phase also Adam's second moments.

    Args:
        run: whose checkpoint it is.
        config: its settings.
        trajectory: of the model.
        at: epoch and phase of the weights; None is the present place of the trajectory.
    """
    setting, problem = config.setting, trajectory.problem
    epoch, phase = at or (trajectory.epoch, trajectory.phase)
    described = (
        {"format": "convexlab"}
        | setting.names
        | {"train_size": config.train_size, "seed": config.seed, "dtype": dtype_name(problem.objective.dtype)}
        | problem.metadata()
        | {"epoch": epoch, "phase": phase}
    )
    metadata = {key: str(value) for key, value in described.items() if value is not None}
    path = run.checkpoint_path(epoch)
    make_folder(path.parent)
    write_checkpoint(path, problem.model.state_dict(), metadata)
    if at is None and trajectory.second is None:
        write_moments(path, problem.model, trajectory.adam)  # For the curvature in Adam's metric.
    return path


def keep_best(run: Run, config: TwoPhaseConfig, trajectory: Trajectory) -> None:
    """Give the model of a run that diverged its best weights again, and store them unless their epoch is stored."""
    best = trajectory.best
    trajectory.problem.model.load_state_dict(best.weights)
    if not run.checkpoint_path(best.epoch).exists():
        phase = "start" if best.epoch == 0 else "adam" if trajectory.second is None else trajectory.phase
        write_weights(run, config, trajectory, at=(best.epoch, phase))


def write_summary(
    run: Run,
    config: TwoPhaseConfig,
    choice: Choice,
    trajectory: Trajectory,
    two_phase: Row,
    *,
    baselines: Mapping[str, Row],
    oracle: Row | None,
) -> None:
    """Write ``summary.json``.

    Args:
        run: whose it is.
        config: its settings.
        choice: the second phase.
        trajectory: the two-phase run.
        two_phase: what it reached, `Trajectory.summary`.
        baselines: the same of every baseline, by name.
        oracle: the result of the oracle; None without one.
    """
    problem = trajectory.problem
    model: Row = {"name": config.model or config.setting.label, "parameters": problem.objective.size}
    if problem.overdetermination is not None:
        model["overdetermination"] = problem.overdetermination
    summary = {
        "schema": VERSION,
        "model": model,
        "dataset": {"name": config.dataset or problem.about or config.setting.label} | problem.facts(),
        "loss": config.loss or "the objective's own",
        "measures": [name for name in two_phase if name not in _NOT_MEASURES],
        "budget": config.epochs,
        "batch_size": problem.batch_size,
        "switch": trajectory.switch,
        "safe_resort": trajectory.safe_resort,
        "phase_two": choice.name,
        "phase_two_reason": choice.reason,
        "expectation": expectation_of(config, trajectory),
        "two_phase": two_phase,
        "baselines": dict(baselines),
        "oracle": oracle,
        "seed": config.seed,
        "environment": describe_environment(problem.objective.device, dtype_name(problem.objective.dtype)),
    }
    write_json(run.summary_path, summary)

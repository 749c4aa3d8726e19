"""The checkpoints of one training as a path through the space of weights, and the loss on its plane."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import torch

from convexlab.checkpoints import Checkpoint, load_weights
from convexlab.probing.plane import Milestone, measure_plane
from convexlab.problems import Problem, Setting
from convexlab.progress import Listener, Progress
from convexlab.runs.plane import PathPlane

__all__ = ["TrainingPath"]


@dataclass(frozen=True)
class TrainingPath:
    """Checkpoints of one setting, by epoch."""

    setting: Setting
    epochs: list[int]
    names: list[str]
    checkpoints: list[Checkpoint]

    def key(self, points: int, budget: float) -> str:
        """Return a digest of all that the plane depends on, so that it is known whether it is made already."""
        # An objective at hand has no name to store.
        setting = replace(self.setting, objective=self.setting.names.get("objective"))
        options = json.dumps([asdict(setting), self.epochs, self.names, points, budget])
        digest = hashlib.sha256(options.encode())
        for checkpoint in self.checkpoints:
            # Not of the file: the order of its metadata differs from one writing to the next.
            for tensor in (checkpoint.tensors[name] for name in sorted(checkpoint.tensors)):
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def measure(self, problem: Problem, points: int, budget: float, progress: Listener) -> PathPlane | None:
        """Return the loss on the plane of the path; None where the checkpoints lie on one line.

        Checkpoints whose weights are not finite are left out. The model is left at the last of the others.

        Raises:
            MisuseError: a checkpoint that does not fit the model.
        """
        objective, milestones, last = problem.objective, [], None
        for epoch, name, checkpoint in zip(self.epochs, self.names, self.checkpoints, strict=True):
            load_weights(problem.model, checkpoint)
            weights = objective.flat_parameters().cpu()
            if bool(weights.isfinite().all()):
                milestones.append(Milestone(name, epoch, checkpoint.metadata.get("phase", ""), weights))
                last = checkpoint
        if last is None:
            return None
        load_weights(problem.model, last)  # Its buffers, too.
        return measure_plane(
            objective,
            milestones,
            train_size=self.setting.sizes(problem)["examples"],
            budget=budget,
            points=points,
            key=self.key(points, budget),
            progress=lambda done, total: progress(Progress("plane", done, total)),
        )

"""The checkpoints of one training as a path through the space of weights, and the loss on its plane."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from convexlab.checkpoints import CheckpointHeader, add_tensors, load_weights, reread
from convexlab.objective import Objective
from convexlab.probing.loss import ProbedLoss
from convexlab.probing.plane import Milestone, measure_plane
from convexlab.probing.vectors import StoredVectors
from convexlab.problems import Setting
from convexlab.progress import Listener, Progress
from convexlab.runs.plane import PathPlane

__all__ = ["TrainingPath"]


@dataclass(frozen=True)
class TrainingPath:
    """Checkpoints of one setting, by epoch; each is read when it is its turn."""

    setting: Setting
    epochs: list[int]
    names: list[str]
    headers: list[CheckpointHeader]

    def key(self, points: int, budget: float) -> str:
        """Return a digest of all that the plane depends on: a stored plane with the same digest is kept."""
        options = json.dumps([self.setting.as_row, self.epochs, self.names, points, budget])
        digest = hashlib.sha256(options.encode())
        for header in self.headers:
            _add(digest, header)
        return digest.hexdigest()

    def measure(
        self, loss: ProbedLoss, folder: Path, *, key: str, points: int, budget: float, progress: Listener
    ) -> PathPlane | None:
        """Return the loss on the plane of the path; None where the checkpoints lie on one line.

        Checkpoints whose weights are not finite are left out. The model is left at the last of the others. What does
        not fit into memory lies in ``folder`` meanwhile.

        Raises:
            MisuseError: a checkpoint that does not fit the model.
        """
        objective = loss.objective
        milestones, last = [], None
        with StoredVectors(folder) as vectors:
            for epoch, name, header in zip(self.epochs, self.names, self.headers, strict=True):
                phase = _load(objective, header)
                weights = objective.flat_parameters().cpu()
                if bool(weights.isfinite().all()):
                    milestones.append(Milestone(name, epoch, phase))
                    vectors.append(weights)
                    last = header
            if last is None:
                return None
            _load(objective, last)  # Its buffers, too.
            return measure_plane(
                objective,
                milestones,
                vectors,
                train_size=loss.examples,
                budget=budget,
                points=points,
                key=key,
                progress=lambda done, total: progress(Progress("plane", done, total)),
            )


# A checkpoint is gone when its function returns: a variable of a loop would hold it while the next one is read.


def _add(digest: hashlib._Hash, header: CheckpointHeader) -> None:
    add_tensors(digest, reread(header))


def _load(objective: Objective, header: CheckpointHeader) -> str:
    """Put a checkpoint's weights into the model, and return its phase."""
    checkpoint = reread(header)
    load_weights(objective.model, checkpoint)
    return checkpoint.metadata.get("phase", "")

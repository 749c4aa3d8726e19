"""Series as TensorBoard shows them.

Needs the extra ``tensorboard``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from convexlab.importing import imported

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes numbers by name and epoch into a folder's event files: a ``log`` for `Watch` and `train_two_phase`.

    ::

        with TensorBoard("runs/events") as log:
            watch = cl.Watch(objective, adam, log=log)

    Args:
        folder: made if it is not there; what others have written into it stays.

    Raises:
        MisuseError: tensorboard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        imported("tensorboard", "tensorboard")
        self._writer = imported("torch.utils.tensorboard", "tensorboard").SummaryWriter(os.fspath(folder))

    def __call__(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Write the numbers of an epoch."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

"""The customary sign for a switch: the loss has stopped falling."""

from __future__ import annotations

import math

from convexlab.detection.base import Detector, Signals, at_least, fraction

__all__ = ["LossPlateau"]


class LossPlateau(Detector):
    """Plateau: the training loss has not fallen by a share of itself for some epochs.

    As ``torch.optim.lr_scheduler.ReduceLROnPlateau`` and DeepXDE's ``EarlyStopping`` decide, relative to the best loss.

    Args:
        share: how much of itself the loss must fall by to count as falling.
        patience: epochs without such a fall.

    Raises:
        MisuseError: a setting out of range.
    """

    def __init__(self, *, share: float = 0.05, patience: int = 5) -> None:
        super().__init__()
        self.share = fraction("share", share)
        self.patience = at_least("patience", patience, 1)
        self._best = math.inf
        self._waited = 0

    def _decide(self, signals: Signals) -> tuple[bool, str]:
        loss = signals.loss
        if loss < self._best * (1.0 - self.share) or self._best == math.inf:
            self._best, self._waited = loss, 0
        else:
            self._waited += 1
        if self._waited < self.patience:
            return False, f"the loss fell by {self.share:.0%} within the last {self.patience} epochs"
        return True, f"the loss has not fallen by {self.share:.0%} from {self._best:.3g} for {self.patience} epochs"

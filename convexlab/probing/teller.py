"""Progress messages on a checkpoint while it is measured: the share done, the numbers so far, and the time left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from convexlab.curvature.bounds import steps_for
from convexlab.curvature.lanczos import Lanczos
from convexlab.progress import Listener, Progress, silent
from convexlab.wording.numbers import duration, number

__all__ = ["Teller"]

# Work beside the steps of the Krylov run, in products, measured on a ResNet-20. The ends and their recomputation in
# float64 take up to 13, the trace 8, the curvature along the gradient 1, slices 2.
_BESIDE = 24
# Shares of the work at a checkpoint.
_FIRST, _KRYLOV, _ENDS = 0.02, 0.65, 0.8
# Nobody waits for less than these seconds with impatience.
_PATIENCE = 30.0


@dataclass
class Teller:
    """Reports the progress on one checkpoint among several to a listener."""

    listener: Listener = silent
    name: str = ""
    done: int = 0
    """Checkpoints before this one."""
    total: int = 1
    _begin: float = field(default_factory=time.perf_counter)
    _loss: str = ""
    _expected: int = 1

    def loss(self, value: float, gradient_norm: float) -> None:
        """Report loss and gradient norm."""
        self._loss = f"loss {number(value)}, gradient {number(gradient_norm)}"
        self._tell(_FIRST, "")

    def forecast(self, seconds: float, process: Lanczos, *, tolerance: float, confidence: float) -> None:
        """Report the expected time, by the seconds of one product."""
        least, most = process.steps, process.max_steps
        self._expected = min(most, steps_for(process.operator.shape[0], tolerance, confidence))
        times = [duration(seconds * (steps + _BESIDE)) for steps in (least, most)]
        left = "" if self.total == 1 else f", and there are {self.total - self.done}"
        self._tell(
            _FIRST,
            f"a product takes {duration(seconds)}, the checkpoint {times[0]} or more and {times[1]} at most{left}",
            landmark=self.done == 0 and seconds * (least + _BESIDE) > _PATIENCE,
        )

    def steps(self, process: Lanczos) -> None:
        """Report the ends of the spectrum so far."""
        values, _ = process.ritz()
        share = min(1.0, process.steps / self._expected)
        self._tell(
            _FIRST + share * (_KRYLOV - _FIRST),
            f"curvature {number(float(values[0]))} to {number(float(values[-1]))} after {process.steps} products",
        )

    def verdict(self, kind: str, smallest: float, largest: float) -> None:
        """Report the verdict; the remaining work is averages and pictures."""
        late = time.perf_counter() - self._begin > _PATIENCE
        words = kind.replace("-", " ").replace("non convex", "non-convex")
        self._tell(_ENDS, f"{words}, curvature {number(smallest)} to {number(largest)}", landmark=late)

    def _tell(self, share: float, words: str, *, landmark: bool = False) -> None:
        note = f"{self.name}: {', '.join(filter(None, [self._loss, words]))}"
        done = self.done + share
        self.listener(Progress("probe", done, self.total, note, within=True, landmark=landmark, unit="checkpoints"))

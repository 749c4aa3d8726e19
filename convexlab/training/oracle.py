"""The oracle: the second phase from every N-th epoch of Adam, which shows in hindsight when to have switched.

It does not influence the run. It shares Adam's epochs with the baseline at a constant rate, so it costs only the second
phases. A switch is followed exactly as the run itself is, so that the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from convexlab.errors import FailureError
from convexlab.progress import Listener, Progress
from convexlab.runs import Row, Run, write_json_lines
from convexlab.training.config import TwoPhaseConfig
from convexlab.training.hand_over import HandOver
from convexlab.training.journal import Journal
from convexlab.training.trajectory import Trajectory

__all__ = ["Oracle", "hindsight"]


class Oracle:
    """The switches of one seed. Adam's states are kept on disk during its epochs, and restored one by one.

    Args:
        run: the directory; ``oracle.jsonl`` gets a row a switch.
        config: with ``oracle_every``; None tries no switch.
        journal: of the run. A switch begins as Adam's state after that epoch, under a name of its own, and goes on
            under it.
        hand_over: what follows a switch.
        progress: called with how far the work is.
    """

    def __init__(
        self, run: Run, config: TwoPhaseConfig, journal: Journal, hand_over: HandOver, progress: Listener
    ) -> None:
        self.epochs = config.oracle_epochs
        self._run = run
        self._journal = journal
        self._hand_over = hand_over
        self._progress = progress

    def keep(self, trajectory: Trajectory) -> None:
        """Store Adam's state if a switch is to be tried from it."""
        if trajectory.epoch in self.epochs:
            self._journal.save(_name(trajectory.epoch), trajectory.adam_state())

    def ask(self, begin: Callable[[str], Trajectory]) -> list[Row]:
        """Try the switches that are not tried yet, each within the budget of the run and at its best epoch.

        Args:
            begin: takes up the trajectory of that name where its state is.

        Returns:
            A row a switch: ``switch_epoch``, ``safe_resort`` and what the summary says of a run. Fewer than asked for
            where Adam itself diverged.
        """
        rows = self._run.oracle
        done = {row["switch_epoch"] for row in rows}
        reached = {row["epoch"] for row in self._journal.rows("adam-constant")}
        for epoch in self.epochs:
            name = _name(epoch)
            if epoch not in done and self._journal.holds(name):
                rows.append(self._followed(begin(name), epoch))
                write_json_lines(self._run.oracle_path, rows)
            elif epoch not in done and epoch in reached:
                raise FailureError(
                    f"cannot resume: the state {name!r} is missing in {str(self._journal.folder)!r}. Restore it, or "
                    "delete that folder to train again from the start."
                )
            self._journal.drop(name)
        return rows

    def _followed(self, trajectory: Trajectory, epoch: int) -> Row:
        def record(trajectory: Trajectory) -> None:
            if trajectory.phase == "adam":
                trajectory.measure()
            self._journal.report(trajectory.name, trajectory.state, lambda: self._tell(epoch, trajectory))

        with trajectory.until_it_diverges():
            self._hand_over.follow(trajectory, self._journal.largest_norm("adam-constant", until=epoch), record)
        return {"switch_epoch": epoch, "safe_resort": trajectory.safe_resort} | trajectory.summary()

    def _tell(self, epoch: int, trajectory: Trajectory) -> None:
        budget, place = self._hand_over.budget, self.epochs.index(epoch)
        done = sum(budget - before for before in self.epochs[:place]) + trajectory.cost - epoch
        note = f"switch at epoch {epoch} ({place + 1} of {len(self.epochs)}), loss {trajectory.train_loss:.3g}"
        self._progress(Progress("oracle", done, sum(budget - each for each in self.epochs), note, unit="cost"))


def hindsight(rows: Sequence[Row], loss: float) -> Row:
    """Return what the summary says of an oracle.

    Args:
        rows: of its switches.
        loss: where the run itself ended.

    Returns:
        ``epoch`` and ``train_loss`` of the switch that ended lowest, the earliest of equal ones. ``regret``: the run's
        loss over that, minus 1; negative where the run ended below all of them. ``switches``: the number that were
        tried. ``gradient_equivalents``: their cost without the Adam epochs that they share.
    """
    best = min(rows, key=lambda row: float(row["train_loss"]), default=None)
    return {
        "epoch": None if best is None else best["switch_epoch"],
        "train_loss": None if best is None else best["train_loss"],
        "regret": loss / best["train_loss"] - 1.0 if best is not None and best["train_loss"] > 0 else None,
        "switches": len(rows),
        "gradient_equivalents": sum(row["gradient_equivalents"] - row["switch_epoch"] for row in rows),
    }


def _name(epoch: int) -> str:
    return f"oracle-{epoch:05d}"

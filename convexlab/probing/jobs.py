"""Several checkpoints at once on one machine, each in a process of its own; rows are written by the parent alone.

A worker is a new process (spawn), so it inherits no lock, thread or device. It builds the loss from its names. Then it
measures one checkpoint after the other, with its share of the threads and of the memory.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from convexlab.curvature.forecast import forecast_memory
from convexlab.errors import ConvexLabError, FailureError, MisuseError, ShortageWarning
from convexlab.importing import failure_in
from convexlab.interrupts import handled_by
from convexlab.linalg.vectors import accumulation_dtype
from convexlab.machine.capture import capture_asked
from convexlab.machine.memory import available_memory, is_out_of_memory, resident_bytes, take_share
from convexlab.machine.ranks import Ranks
from convexlab.probing.loss import ProbedLoss, build_probed_loss
from convexlab.probing.measuring import Item, measure
from convexlab.probing.point import ProbeOptions
from convexlab.probing.teller import Teller
from convexlab.problems import Setting
from convexlab.progress import Listener, Progress
from convexlab.runs import Run
from convexlab.runs.rows import ProbedCheckpoint
from convexlab.wording.numbers import byte_size

__all__ = ["Shared", "bytes_of_runs", "check_jobs", "jobs_that_fit", "measure_at_once"]

# Seconds between two looks at whether somebody wants to stop.
_LOOK = 0.5
# Bytes that a process takes on an accelerator before it has a tensor there (CUDA's context: 0.3 to 0.6 GB).
_CONTEXT = 600_000_000


@dataclass(frozen=True)
class Shared:
    """What every worker is given at its start."""

    options: ProbeOptions
    target: Path
    device: str
    jobs: int
    threads: int
    """Threads of each worker."""


@dataclass(frozen=True)
class _Order:
    """A checkpoint to measure."""

    item: Item
    place: int
    """Among those that are measured, from 0."""
    total: int


@dataclass(frozen=True)
class _Done:
    row: ProbedCheckpoint
    warnings: list[tuple[type[Warning], str]]


@dataclass(frozen=True)
class _Failed:
    kind: type[ConvexLabError]
    message: str
    trace: str


def check_jobs(jobs: int, settings: Iterable[Setting], ranks: Ranks) -> None:
    """Raise a MisuseError unless so many checkpoints can be measured at once."""
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise MisuseError(f"expected jobs to be a whole number from 1, got {jobs!r}.")
    if jobs > 1 and ranks.shared:
        raise MisuseError(
            f"there are {ranks.size} ranks already, which measure checkpoints together: expected jobs to be 1 beside "
            f"them, got {jobs}. Start as many ranks as you want jobs."
        )
    for setting in settings if jobs > 1 else ():
        if setting.objective is not None and not isinstance(setting.objective, str):
            raise MisuseError(
                f"every job puts the loss together for itself: expected an objective by name or file.py:factory, got "
                f"{type(setting.objective).__name__}. Name a factory, or leave jobs at 1."
            )


def jobs_that_fit(jobs: int, losses: Sequence[ProbedLoss], options: ProbeOptions) -> int:
    """Return how many jobs memory holds, at least one and at most ``jobs``; where that is fewer, it is said.

    A job needs the memory that this process has now (the libraries, the data, the model). It also needs that of a
    product, and of the longest Krylov basis for a verdict. Gradient graphs are kept as far as each job's share of the
    rest allows.
    """
    device = losses[0].objective.device
    run = bytes_of_runs(losses, options)
    resident, host = resident_bytes(), available_memory(torch.device("cpu"))
    needs = [(resident + (run if device.type == "cpu" else 0), host)]
    if device.type != "cpu":
        held = torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
        needs.append((_CONTEXT + held + run, available_memory(device)))
    fitting = [(free // need, need, free) for need, free in needs if free is not None]
    most, need, free = min(fitting, default=(jobs, 0, 0))
    if most >= jobs:
        return jobs
    warnings.warn(
        f"memory holds {max(1, most)} of {jobs} jobs at a time: one may take {byte_size(need)}, and {byte_size(free)} "
        "are free. A shorter run (max_steps) or a smaller sample (probe_size) takes less.",
        ShortageWarning,
        stacklevel=2,
    )
    return max(1, most)


def bytes_of_runs(losses: Sequence[ProbedLoss], options: ProbeOptions) -> int:
    """Return what a Krylov run with any of the losses takes, with one product, by one process."""
    return max(_bytes_of_run(loss, options) for loss in losses)


def _bytes_of_run(loss: ProbedLoss, options: ProbeOptions) -> int:
    objective = loss.objective
    steps = options.most_steps(objective.size)
    basis = (steps + 1) * objective.size * accumulation_dtype(objective.device).itemsize
    if options.products == "differences":
        return basis
    try:
        forecast = forecast_memory(objective.hessian(options.products, options.precision), steps)
    except FailureError:  # No second derivative, or no memory: every row will say so.
        return basis
    return basis + forecast.work


def measure_at_once(
    items: Sequence[Item], shared: Shared, keep: Callable[[ProbedCheckpoint], None], progress: Listener
) -> None:
    """Measure checkpoints in ``shared.jobs`` processes, and hand each row to ``keep`` as it comes.

    Where ``progress`` raises a KeyboardInterrupt, no further checkpoint is begun; those at work are measured and kept
    first.

    Raises:
        ConvexLabError: what a worker raised, as one error; or a FailureError where one died. Rows that came are kept.
    """
    waiting, total, finished = deque(enumerate(items)), len(items), 0
    stopped: KeyboardInterrupt | None = None
    with _workers(min(shared.jobs, total), shared) as workers:
        while any(worker.item for worker in workers) or (waiting and stopped is None):
            for worker in workers:
                if worker.item is None and waiting and stopped is None:
                    place, item = waiting.popleft()
                    worker.begin(_Order(item, place, total))
            for worker in _ready(workers):
                answer = worker.answer()
                if isinstance(answer, Progress):
                    worker.share, worker.note, worker.landmark = answer.done, answer.note, answer.landmark
                else:
                    keep(answer)
                    worker.item, worker.share = None, 0.0
                    finished += 1
            if stopped is None:
                try:
                    progress(_state(workers, finished, total))
                except KeyboardInterrupt as asked:
                    stopped = asked
    if stopped is not None:
        raise stopped


@dataclass
class _Worker:
    """A process that measures, as its parent sees it."""

    process: BaseProcess
    connection: Connection
    item: Item | None = None
    """The checkpoint that is being measured."""
    share: float = 0.0
    """Share of the work on this checkpoint that is done."""
    note: str = ""
    landmark: bool = False

    def begin(self, order: _Order) -> None:
        """Give it a checkpoint to measure."""
        self.item = order.item
        # A process that has died says so when its answer is read.
        with contextlib.suppress(OSError):
            self.connection.send(order)

    def answer(self) -> Progress | ProbedCheckpoint:
        """Return what it says, once it says something: how far it is, or its row.

        Raises:
            ConvexLabError: it failed, or is dead.
        """
        assert self.item is not None
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise FailureError(
                f"a job ended at {self.item.name!r} without a message ({_words_of(self.process.exitcode)}). Often the "
                "cause is short memory: take fewer jobs. The rows measured so far are kept: --resume goes on."
            ) from None
        if isinstance(answer, _Failed):
            raise answer.kind(answer.message) from FailureError(answer.trace)
        if isinstance(answer, _Done):
            for category, message in answer.warnings:
                warnings.warn(message, category, stacklevel=2)
            return answer.row
        assert isinstance(answer, Progress)
        return answer

    def end(self) -> None:
        """End the process, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _words_of(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"signal {-exitcode}, {signal.Signals(-exitcode).name}"
    return f"exit status {exitcode}"


@contextlib.contextmanager
def _workers(count: int, shared: Shared) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        # Ctrl-C and its like go to all of a terminal's processes, and the parent decides. What is ignored where a
        # process is started is ignored in it.
        with handled_by(signal.SIG_IGN):
            workers.extend(_start(shared) for _ in range(count))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def _start(shared: Shared) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # No daemon: a data loader in it has processes of its own.
    process = context.Process(target=_work, args=(theirs, shared), name="convexlab-job", daemon=False)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Return the workers that have something to say, or have died."""
    at_work = {worker.connection: worker for worker in workers if worker.item is not None}
    return [at_work[connection] for connection in wait(list(at_work), timeout=_LOOK)]  # type: ignore[index]


def _state(workers: Sequence[_Worker], finished: int, total: int) -> Progress:
    at_work = [worker for worker in workers if worker.item is not None]
    landmark = next((worker for worker in at_work if worker.landmark), None)
    note = landmark.note if landmark else "; ".join(filter(None, (worker.note for worker in at_work)))
    for worker in at_work:
        worker.landmark = False
    done = finished + sum(worker.share for worker in at_work)
    return Progress("probe", done, total, note, landmark=landmark is not None, unit="checkpoints")


# In a worker.


def _work(connection: Connection, shared: Shared) -> None:
    """Measure what comes through a connection, until it is closed."""
    torch.set_num_threads(shared.threads)
    take_share(shared.jobs)
    losses: dict[Setting, ProbedLoss] = {}
    # Where the parent is gone, so is whoever wanted the rows.
    with contextlib.suppress(EOFError, OSError):
        while True:
            order: _Order = connection.recv()
            try:
                answer: _Done | _Failed = _measured(order, shared, losses, connection.send)
            except Exception as error:  # noqa: BLE001 - the parent raises it
                answer = _failed(error, order.item)
            connection.send(answer)


def _measured(
    order: _Order, shared: Shared, losses: dict[Setting, ProbedLoss], send: Callable[[Progress], None]
) -> _Done:
    item, place = order.item, order.place

    def tell(step: Progress) -> None:
        send(Progress(step.task, step.done - place, 1, step.note, landmark=step.landmark))

    teller = Teller(tell, item.name, done=place, total=order.total)
    with warnings.catch_warnings(record=True) as caught:
        if item.setting not in losses:
            losses[item.setting] = build_probed_loss(item.setting, shared.device)
        loss = losses[item.setting]
        with loss.objective.captured(wanted=capture_asked()):
            row = measure(item, loss, shared.options, Run(shared.target), teller)
    return _Done(row, [(warning.category, str(warning.message)) for warning in caught])


def _failed(error: Exception, item: Item) -> _Failed:
    trace = traceback.format_exc()
    if isinstance(error, ConvexLabError):
        return _Failed(MisuseError if isinstance(error, MisuseError) else FailureError, str(error), trace)
    if is_out_of_memory(error):
        return _Failed(FailureError, f"a job ran out of memory at {item.name!r}. Take fewer jobs (--jobs).", trace)
    words = failure_in(error) or f"{type(error).__name__}: {error}"
    return _Failed(FailureError, f"a job failed at {item.name!r}: {words}.", trace)

"""Processes of torch.distributed that share one computation: each has a part, and all have the same numbers.

Every rank runs the same program, and all decide alike because they decide by the same bits. What ranks evaluate apart
is summed by one all-reduce, whose result has the same bits in all ranks. Rank 0 alone writes files, and shows what is
to be seen. Only this module and the averages of `convexlab.optim` call collectives.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed

from convexlab.errors import FailureError, LostRankError, MisuseError, ShortageError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

__all__ = ["ALONE", "PATIENCE", "Ranks", "current", "of_torchrun", "ranks_of", "together"]

Result = TypeVar("Result")

PATIENCE = 600.0
"""Seconds after which a rank that does not answer counts as lost, by default."""

# Seconds, three years: clocks count nanoseconds in 64 bits.
_LONGEST = 1e8
# For the store of torchrun to answer.
_BRIEFLY = timedelta(seconds=10)
# A mark is a whole number below this: sums of squares over thousands of ranks are exact in float64.
_MARKS = 2**20
# An error of one rank is raised in all, as the first of these kinds that it is; anything else as a FailureError.
_KINDS: tuple[type[Exception], ...] = (ShortageError, MisuseError, FailureError, RuntimeError)
_WHATEVER_ELSE = len(_KINDS)

_APART = (
    "the ranks have come apart: they are not at the same point of the same computation, so that a sum over them would "
    "mean nothing. Usual causes: ranks on processors of different kinds, which round differently; data or a model that "
    "differ from rank to rank; code that draws by the rank. Start all ranks alike, on machines of one kind."
)
# Before what gloo says stands where it says so.
_SOURCE = re.compile(r"\[[^\]]*\.\w+:\d+\]")
_LOST = (
    "a rank of {size} was lost: it ended, or did not answer in time ({reason}). What was stored is kept; go on with "
    "--resume, with any number of ranks."
)


class Ranks:
    """The ranks of a process group, or one process alone.

    All of them have to call the same methods in the same order.
    """

    def __init__(self, group: distributed.ProcessGroup | None) -> None:
        """Take a group; None is one process alone, which waits for no other."""
        self._group = None if group is None else weakref.ref(group)
        self.rank = 0 if group is None else distributed.get_rank(group)
        """From 0."""
        self.size = 1 if group is None else distributed.get_world_size(group)
        self._calls = 0
        self._store: Store | None = None
        self._lost = ""
        self._changing = False

    @classmethod
    def of(cls, group: distributed.ProcessGroup | None) -> Ranks:
        """Return the ranks of a group, the same object every time.

        Raises:
            MisuseError: it is no group, or one that this process does not belong to.
        """
        if group is None:
            return ALONE
        if not distributed.is_available() or not isinstance(group, distributed.ProcessGroup):
            raise MisuseError(
                f"expected a process group of torch.distributed that this process belongs to, got {group!r}. Call "
                "torch.distributed.init_process_group() first, and pass torch.distributed.group.WORLD."
            )
        if group not in _known:
            _known[group] = cls(group)
        return _known[group]

    def speaks_first(self) -> bool:
        """Return whether no rank has called this before, so that only one reports an error that all meet.

        It does not wait for the others, which may have ended.
        """
        if self._store is None:
            return self.is_writer
        try:
            self._store.set_timeout(_BRIEFLY)
            return int(self._store.add("convexlab/spoken", 1)) == 1
        except RuntimeError:  # The store is gone too.
            return True

    def __deepcopy__(self, memo: object) -> Ranks:
        return self  # A group cannot be copied.

    @property
    def group(self) -> distributed.ProcessGroup | None:
        """The group, None for one process alone.

        Nothing here keeps it alive. Threads of a group that outlives `torch.distributed.destroy_process_group` may end
        the interpreter by an abort.

        Raises:
            FailureError: it was destroyed.
        """
        group = None if self._group is None else self._group()
        if group is None and self._group is not None:
            raise FailureError(
                "the process group of these ranks was destroyed. Call torch.distributed.destroy_process_group() after "
                "the last evaluation."
            )
        return group

    @property
    def shared(self) -> bool:
        """Whether there is a group, be it of one."""
        return self._group is not None

    @property
    def is_writer(self) -> bool:
        """Whether this rank writes files and shows what is to be seen."""
        return self.rank == 0

    # Sums.

    def total(self, size: int, like: Tensor, fill: Callable[[Tensor], object], marks: Sequence[object] = ()) -> Tensor:
        """Return the sum (size,) over the ranks of what each has filled in: one all-reduce, the same bits in all.

        An error of one rank is raised in all. So no rank waits for one that has failed.

        Args:
            size: of the sum.
            like: its dtype and device.
            fill: adds to the zeros (size,) that it is given.
            marks: what has to be equal in all ranks, such as where they evaluate; that is checked.

        Raises:
            FailureError: the ranks are not at the same point of the same computation.
            LostRankError: one of them does not answer.
        """
        if self.group is None:
            alone = like.new_zeros(size)
            fill(alone)
            return alone
        buffer = like.new_zeros(size + _WHATEVER_ELSE + 3)
        error = _error_of(lambda: fill(buffer[:size]))
        if error is not None:
            buffer.zero_()
            buffer[size + _kind_of(error)] = 1.0
        self._calls += 1
        mark = zlib.crc32(repr((self._calls, size, *marks)).encode()) % _MARKS
        buffer[-2], buffer[-1] = mark, mark**2
        self._reduce(buffer)
        *kinds, total, squares = buffer[size:].tolist()
        self._raise_first(kinds, error)
        if self.size * squares != total**2:  # Equal only where all are, by Cauchy and Schwarz; whole numbers are exact.
            raise FailureError(_APART)
        return buffer[:size]

    def added(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks, in its place."""
        if self.group is not None:
            there = values.to(self._reachable(values))
            self._reduce(there)
            if there is not values:
                values.copy_(there)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any rank."""
        return flag if self.group is None else bool(self.added(self._number(float(flag))))

    def most(self, value: float) -> float:
        """Return the largest of a number over the ranks."""
        if self.group is None:
            return value
        number = self._number(value)
        self._reduce(number, largest=True)
        return float(number)

    def least(self, value: float) -> float:
        """Return the smallest of a number over the ranks."""
        return value if self.group is None else -self.most(-value)

    # Parts.

    def part_of(self, size: int) -> slice:
        """Return which entries of a vector (size,) this rank holds; all ranks but the last ones hold equally many."""
        width = -(-size // self.size)
        return slice(min(size, self.rank * width), min(size, (self.rank + 1) * width))

    def joined(self, part: Tensor, size: int) -> Tensor:
        """Return vectors (..., size) of which every rank has its `part_of`, the last dimension."""
        if self.size == 1:
            return part
        ours = self._padded(part, size)
        parts = [torch.empty_like(ours) for _ in range(self.size)]
        with self._answering():
            distributed.all_gather(parts, ours, group=self.group)
        return torch.cat(parts, dim=-1)[..., :size].to(part.device)

    def joined_by_writer(self, part: Tensor, size: int) -> Tensor:
        """Return the same in rank 0, and an empty tensor in the others."""
        if self.size == 1:
            return part
        ours = self._padded(part, size)
        parts = [torch.empty_like(ours) for _ in range(self.size)] if self.is_writer else None
        with self._answering():
            distributed.gather(ours, parts, dst=self._writer, group=self.group)
        return part.new_empty(0) if parts is None else torch.cat(parts, dim=-1)[..., :size].to(part.device)

    def _padded(self, part: Tensor, size: int) -> Tensor:
        """Return a part as long as the longest, where the group exchanges it."""
        ours = part.new_zeros((*part.shape[:-1], -(-size // self.size)), device=self._reachable(part))
        ours[..., : part.shape[-1]] = part
        return ours

    # Decisions and files.

    def agreed(self, decide: Callable[[], Result]) -> Result:
        """Return in all ranks what ``decide`` gives in rank 0: a plain value that depends on a clock or on files.

        An error of rank 0 is raised in all.
        """
        if self.group is None or self._changing:
            return decide()
        value: list[Any] = [None]

        def evaluate() -> None:
            value[0] = decide()

        error = self._changed(evaluate)
        self._raise_alike(error)
        with self._answering():
            distributed.broadcast_object_list(value, src=self._writer, group=self.group, device=self._place)
        return value[0]  # type: ignore[no-any-return]

    def by_writer(self, change: Callable[[], Result]) -> Result | None:
        """Have rank 0 change files while all others wait, so that all see the same files before and after.

        An error of rank 0 is raised in all. Where a rank is lost already, rank 0 goes ahead.

        Returns:
            What the change returns, in rank 0; None elsewhere.
        """
        if self.group is None or self._changing or (self._lost and self.is_writer):
            return change()
        if self._lost:
            return None
        results: list[Result] = []
        self.any(False)  # Whoever still reads has done so.
        self._raise_alike(self._changed(lambda: results.append(change())))
        return results[0] if results else None

    def alike(self, make: Callable[[], Result]) -> Result:
        """Return what ``make`` gives here; an error of one rank is raised in all. It must not call a collective."""
        if self.group is None:
            return make()
        results: list[Result] = []
        self._raise_alike(_error_of(lambda: results.append(make())))
        return results[0]

    def gathered(self, value: Result) -> list[Result]:
        """Return what each rank has, in the order of the ranks: plain values that can be pickled."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        with self._answering():
            distributed.all_gather_object(values, value, group=self.group)
        return values

    # Details.

    def _changed(self, change: Callable[[], object]) -> Exception | None:
        """Make a change in rank 0, in which further ones are made without waiting; return its error."""
        if not self.is_writer:
            return None
        self._changing = True
        try:
            return _error_of(change)
        finally:
            self._changing = False

    def _raise_alike(self, error: Exception | None) -> None:
        kinds = torch.zeros(_WHATEVER_ELSE + 1, dtype=torch.float64, device=self._place)
        if error is not None:
            kinds[_kind_of(error)] = 1.0
        self._raise_first(self.added(kinds).tolist(), error)

    def _raise_first(self, kinds: list[float], error: Exception | None) -> None:
        """Raise an error in all ranks if there is one in any: its own where it happened, elsewhere one that says so."""
        if not any(kinds):
            return
        texts: list[str | None] = [None] * self.size
        with self._answering():
            distributed.all_gather_object(texts, None if error is None else _text_of(error), group=self.group)
        if error is not None:
            raise error
        rank, text = next((rank, text) for rank, text in enumerate(texts) if text is not None)
        kind = next(place for place, count in enumerate(kinds) if count)
        raise (_KINDS[kind] if kind < _WHATEVER_ELSE else FailureError)(f"rank {rank} of {self.size} failed: {text}")

    def _reduce(self, values: Tensor, *, largest: bool = False) -> None:
        operation = distributed.ReduceOp.MAX if largest else distributed.ReduceOp.SUM
        with self._answering():
            distributed.all_reduce(values, operation, group=self.group)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Explain the failure of a collective; afterwards no rank waits any more."""
        if self._lost:
            raise LostRankError(self._lost)
        try:
            yield
        except RuntimeError as error:
            lines = _SOURCE.sub("", str(error)).strip().splitlines() or [type(error).__name__]
            reason = lines[-1].partition(". ")[0][:100].rstrip(".")
            self._lost = _LOST.format(size=self.size, reason=reason)
            raise LostRankError(self._lost) from error

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self._place)

    def _reachable(self, values: Tensor) -> torch.device:
        """Return where values are exchanged: where they are, unless that is a CPU which the group cannot reach."""
        return self._place if values.device.type == "cpu" else values.device

    @property
    def _writer(self) -> int:
        return distributed.get_global_rank(self.group, 0) if self.group is not None else 0

    @property
    def _place(self) -> torch.device:
        """Where small numbers are exchanged: on the CPU if the group has a backend for it."""
        on_host = "cpu:" in distributed.get_backend_config(self.group)
        return torch.device("cpu" if on_host else "cuda")


ALONE = Ranks(None)
"""One process, without a group."""

_known: weakref.WeakKeyDictionary[distributed.ProcessGroup, Ranks] = weakref.WeakKeyDictionary()
_current: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)


def current() -> Ranks:
    """Return the ranks that work `together` here; files are written by their rank 0."""
    return _current.get()


@contextlib.contextmanager
def together(ranks: Ranks) -> Iterator[Ranks]:
    """Have the ranks work together within the block: rank 0 alone changes files, and all see the same."""
    token = _current.set(ranks)
    try:
        yield ranks
    finally:
        _current.reset(token)


def ranks_of(holder: object) -> Ranks:
    """Return the ranks that an operator or a loss is shared by."""
    ranks = getattr(holder, "ranks", ALONE)
    return ranks if isinstance(ranks, Ranks) else ALONE


@contextlib.contextmanager
def of_torchrun(device: str = "auto", patience: float = PATIENCE) -> Iterator[Ranks]:
    """Yield the ranks that ``torchrun`` has started this process among, by gloo, on GPUs by NCCL; else `ALONE`.

    A rank on GPUs takes the one of its local number.

    Args:
        device: where it will compute, by name.
        patience: seconds after which a rank that does not answer counts as lost.

    Raises:
        MisuseError: a patience that is not positive, or longer than clocks of 64 bits count in nanoseconds.
    """
    if not 0 < patience <= _LONGEST:
        raise MisuseError(
            f"expected to wait for a rank for a positive number of seconds, at most {_LONGEST:,.0f}, got {patience!r}. "
            "Choose another --timeout."
        )
    started = {"RANK", "WORLD_SIZE"} <= os.environ.keys() and distributed.is_available()
    if not started or distributed.is_initialized():
        yield ALONE
        return
    on_gpus = torch.cuda.is_available() and (device == "auto" or device.startswith("cuda"))
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # A rank that is lost is an error, not an abort.
    # Imported after the meeting, it would keep the group for ever: its functions have group.WORLD as a default.
    importlib.import_module("torch.distributed.nn.functional")
    from torch.distributed.rendezvous import rendezvous

    timeout, backends = timedelta(seconds=patience), "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        distributed.init_process_group(backends, store=store, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise LostRankError(f"the ranks that torchrun announces did not meet: {error}") from error
    try:
        ranks = Ranks.of(distributed.group.WORLD)
        ranks._store = store
        yield ranks
    finally:
        distributed.destroy_process_group()


def _error_of(call: Callable[[], object]) -> Exception | None:
    """Return the error that a call raises; that of a lost rank is raised at once, as others do not answer."""
    try:
        call()
    except LostRankError:
        raise
    except Exception as error:  # noqa: BLE001 - raised again, in all ranks
        return error
    return None


def _kind_of(error: Exception) -> int:
    kinds = (place for place, kind in enumerate(_KINDS) if isinstance(error, kind))
    return next(kinds, _WHATEVER_ELSE)


def _text_of(error: Exception) -> str:
    known = isinstance(error, _KINDS)
    return str(error) if known else f"{type(error).__name__}: {error}"

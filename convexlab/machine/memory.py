"""What memory is in use, what is left, and what a piece of code takes; no counter is reset for that.

On an accelerator it is what torch's allocator has handed out. On the CPU it is the resident set of the process, with
what was freed but not yet given back by the C library.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convexlab.errors import MisuseError
from convexlab.wording.numbers import byte_size

__all__ = [
    "LiveTensors",
    "PeakMemory",
    "available_memory",
    "is_out_of_memory",
    "release_freed_memory",
    "require_room",
    "resident_bytes",
    "room_for_graphs",
    "take_share",
]

# Control groups of the process, which psutil does not know.
_GROUPS = Path("/proc/self/cgroup")
_GROUP = Path("/sys/fs/cgroup")
# By version of control groups: their folder, their limit, what they use, and the statistic of what can be dropped.
_GROUP_FILES = {
    "": ("", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
# Where there is no limit, version 1 has a number near 2⁶³.
_UNLIMITED = 2**60
# Processes that share what is free.
_sharers = 1
# Seconds between two looks at what is in use.
_INTERVAL = 0.005
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is short: Python's, an accelerator's, or that of torch on the CPU."""
    words = "allocate memory", "not enough memory", "out of memory"
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def take_share(processes: int) -> None:
    """Let `available_memory` return, from now on, this process's share of free memory among so many processes."""
    global _sharers
    _sharers = processes


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be taken on a device; None where that is not known.

    On the CPU that is what the system can provide without swapping, or what the limit of a container or a batch job
    leaves. Processes that ``torchrun`` has started on one machine share it equally. It is the part of `take_share`.
    """
    free = _free_memory(device)
    return None if free is None else free // _sharers


def _free_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        pooled = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + pooled
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    if device.type != "cpu":
        return None
    left = max(0, min([int(psutil.virtual_memory().available), *_left_in_groups()]))
    return left // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def room_for_graphs(device: torch.device, budget: int | None) -> int | None:
    """Return the bytes that graphs may take: the budget, or half of what is free now; None where that is not known."""
    if budget is not None:
        return budget
    free = available_memory(device)
    return None if free is None else free // 2


def require_room(needed: int, device: torch.device, what: str) -> None:
    """Refuse work that does not fit into what is free on a device, before it begins; ``what`` says what it is.

    Raises:
        MisuseError: it does not.
    """
    free = available_memory(device)
    if free is not None and needed > free:
        raise MisuseError(
            f"{what} takes {byte_size(needed)}, expected at most the {byte_size(free)} that are free on {device.type}. "
            "Choose another method, or fewer residuals or parameters."
        )


def release_freed_memory() -> None:
    """Give what was freed on the CPU back to the system, where the C library is glibc; do nothing elsewhere.

    Glibc keeps what lies between blocks in use, and torch's aligned allocations use little of it again. A process that
    builds graphs and keeps them would grow to nearly twice their size.
    """
    if _TRIM is not None:
        _TRIM(0)


class PeakMemory:
    """A context manager that measures how far the memory in use rises within its block, above where it was.

    A thread looks every 5 ms. Where the system's own high-water mark rises within the block, the result is exact. Such
    blocks may be nested.
    """

    def __init__(self, device: torch.device) -> None:
        """Measure on ``device``."""
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="convexlab-peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._mark, used = _high_water(self._device), _in_use(self._device)
        self._start = self._most = self._mark if used is None else used
        if used is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rise()
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def rise(self) -> int | None:
        """Return the peak less the start in bytes, so far or of the whole block; None where that is not known.

        Where only the system's high-water mark is known, it is the rise of that: too little if it was higher before.
        """
        if self._start is None or self._most is None:
            return None
        if not self._stop.is_set():
            self._look()
            high = _high_water(self._device)
            if high is not None and self._mark is not None and high > self._mark:
                self._most = max(self._most, high)
        return self._most - self._start

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        used = _in_use(self._device)
        if used is not None and self._most is not None:
            self._most = max(self._most, used)


class LiveTensors(TorchDispatchMode):
    """A context manager that counts the storage of tensors made within its block for as long as they live.

    It does not count what an operation takes and frees inside itself.
    """

    def __init__(self) -> None:
        """Count from zero."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        """Those that are alive now."""
        self.peak = 0
        """The largest that ``bytes`` has been."""
        self.made = 0
        """All that were made, whether they are alive or not."""
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # With True, torch imports its compiler (a second, 100 MB) to keep it from looking in here.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in self._known and storage._cdata not in given:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def forget(_: object) -> None:
            del self._known[key]
            self.bytes -= size

        self._known[key] = weakref.ref(storage, forget)
        self.bytes += size
        self.made += size
        self.peak = max(self.peak, self.bytes)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.layout is torch.strided)
    return [tensor.untyped_storage() for tensor in tensors]


def resident_bytes() -> int:
    """Return the bytes of this process in main memory."""
    return int(_process(os.getpid()).memory_info().rss)


def _in_use(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return resident_bytes() if device.type == "cpu" else None


@functools.cache
def _process(pid: int) -> psutil.Process:
    """Return the process; making the object takes longer than a look, and after a fork it is another."""
    return psutil.Process(pid)


def _high_water(device: torch.device) -> int | None:
    """Return the most that has been in use, at least since the process began.

    Linux begins with the peak of the program that started this one, so a smaller peak of its own is not known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    if sys.platform == "win32":
        return int(_process(os.getpid()).memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _left_in_groups() -> Iterator[int]:
    """Yield what the limits of this process' control groups leave, and of those that these are in."""
    for line in _read(_GROUPS).splitlines():
        _, controller, place = line.split(":", 2)
        if controller in _GROUP_FILES:
            root, limit, used, droppable = _GROUP_FILES[controller]
            inner = Path(root, place.lstrip("/"))
            for group in (_GROUP / part for part in (inner, *inner.parents)):
                most = _read(group / limit).strip()
                if most.isdecimal() and int(most) < _UNLIMITED:
                    left = int(most) - int(_read(group / used) or 0)
                    statistics = dict(line.split() for line in _read(group / "memory.stat").splitlines())
                    yield left + int(statistics.get(droppable, 0))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""

"""Memory in use, memory left, and what a block takes, against sizes that are known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from convexlab.machine import memory
from convexlab.machine.memory import LiveTensors, PeakMemory, available_memory, release_freed_memory

CPU = torch.device("cpu")
MB = 10**6
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="sizes are those of glibc's heap and Linux's pages")


@pytest.fixture(autouse=True)
def _no_holes() -> None:
    """A hole that earlier tests left in the heap, still resident, would be filled without the process taking more."""
    release_freed_memory()


def _fill(size: int) -> torch.Tensor:
    """Return so many bytes, all of them touched; above 32 MB glibc maps them, and gives them back at once."""
    return torch.ones(size, dtype=torch.uint8)


# What the process takes. The counter of resident pages is kept a processor at a time, and off by some hundred pages
# each; the interpreter takes pages now and then too: 8 MB.
SLACK = 8 * MB


FRESH = """
import json
import psutil
import torch
from convexlab.machine.memory import PeakMemory

def of_files():
    return psutil.Process().memory_info().shared

def fill(size):
    return torch.ones(size * 10**6, dtype=torch.uint8)

before = fill(50)
files = of_files()
with PeakMemory(torch.device("cpu")) as peak:
    kept = fill(40)
    more = fill(60)
    files = of_files() - files
    del more
    so_far = peak.rise()
after = fill(200)  # No longer of the block.
print(json.dumps([so_far - files, peak.rise() - files]))
"""


@needs_linux
def test_the_peak_is_that_of_the_block_and_counts_from_its_start() -> None:
    """In a process of its own, and without the pages of libraries, which a busy system takes back for a while."""
    done = subprocess.run([sys.executable, "-P", "-c", FRESH], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for rise in json.loads(done.stdout):
        assert abs(rise - 100 * MB) <= SLACK


@needs_linux
def test_a_peak_below_the_highest_ever_is_found_by_looking() -> None:
    _fill(300 * MB)
    with PeakMemory(CPU) as peak:
        passing = _fill(80 * MB)
        time.sleep(0.1)  # Twenty looks.
        del passing
    rise = peak.rise()
    assert rise is not None
    assert abs(rise - 80 * MB) <= SLACK


@needs_linux
def test_blocks_can_be_nested() -> None:
    with PeakMemory(CPU) as outer:
        kept = _fill(40 * MB)
        with PeakMemory(CPU) as inner:
            also_kept = _fill(64 * MB)
    assert len(kept) + len(also_kept) == 104 * MB
    for peak, size in ((outer, 104 * MB), (inner, 64 * MB)):
        rise = peak.rise()
        assert rise is not None
        assert abs(rise - size) <= SLACK


def test_no_thread_outlives_the_block_and_errors_pass_through() -> None:
    threads = threading.active_count()
    with pytest.raises(KeyError, match="gone"), PeakMemory(CPU):
        raise KeyError("gone")
    assert threading.active_count() == threads


@needs_linux
def test_measuring_costs_less_than_a_millisecond() -> None:
    def once() -> float:
        begin = time.process_time()
        with PeakMemory(CPU):
            pass
        return time.process_time() - begin

    assert min(once() for _ in range(20)) < 1e-3


def test_a_device_of_which_nothing_is_known_has_no_peak() -> None:
    threads = threading.active_count()
    with PeakMemory(torch.device("meta")) as peak:
        assert threading.active_count() == threads
        assert peak.rise() is None
    assert peak.rise() is None


@needs_linux
def test_what_is_in_use_is_what_the_system_says() -> None:
    _fill(50 * MB)
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    entries = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    used, most = memory._in_use(CPU), memory._high_water(CPU)
    assert used is not None
    assert most is not None
    assert abs(used - entries["VmRSS:"]) <= SLACK
    assert most >= entries["VmHWM:"] - SLACK  # Higher, where the process that started this one was.


@needs_linux
def test_a_forked_process_measures_itself() -> None:
    kept = _fill(50 * MB)
    here = memory._in_use(CPU)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writes, str(memory._process(os.getpid()).pid).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(reads, 20)) == child
    assert here is not None
    assert here > len(kept)


# What is left.


def test_what_is_left_is_less_than_there_is() -> None:
    left = available_memory(CPU)
    assert left is not None
    assert 0 < left < psutil.virtual_memory().total
    assert available_memory(torch.device("meta")) is None


GROUPS = {
    "2": ("0::/job/step", "memory.max", "memory.current", "inactive_file"),
    "1": ("7:memory:/job/step", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@pytest.mark.parametrize("version", GROUPS)
@pytest.mark.parametrize("limited", ["", "job", "job/step"])
def test_the_limit_of_a_control_group_counts(
    version: str, limited: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line, limit, used, droppable = GROUPS[version]
    groups, root = tmp_path / "cgroup", tmp_path / "groups"
    groups.write_text(f"3:cpuset:/elsewhere\n{line}\n", encoding="ascii")
    base = root / "memory" if version == "1" else root
    for place in ("", "job", "job/step"):
        (base / place).mkdir(parents=True, exist_ok=True)
        (base / place / limit).write_text("9223372036854771712\n" if version == "1" else "max\n", encoding="ascii")
        (base / place / used).write_text("700\n", encoding="ascii")
        (base / place / "memory.stat").write_text(f"anon 400\n{droppable} 250\n", encoding="ascii")
    monkeypatch.setattr(memory, "_GROUPS", groups)
    monkeypatch.setattr(memory, "_GROUP", root)
    unlimited = available_memory(CPU)
    assert unlimited is not None
    assert unlimited > 10**5
    (base / limited / limit).write_text("1000\n", encoding="ascii")
    assert available_memory(CPU) == 1000 - 700 + 250
    (base / limited / limit).write_text("300\n", encoding="ascii")
    assert available_memory(CPU) == 0


@needs_linux
def test_freed_memory_is_given_back() -> None:
    """Blocks too small to be mapped on their own, every other one of which is freed: glibc would keep the gaps."""
    if memory._TRIM is None:
        pytest.skip("not glibc")
    blocks = [torch.ones(100_000, dtype=torch.uint8) for _ in range(1000)]
    del blocks[::2]
    before = memory._in_use(CPU)
    release_freed_memory()
    after = memory._in_use(CPU)
    assert before is not None
    assert after is not None
    # 500 gaps of 24 pages of 4 kB and two parts of one.
    assert before - after > 500 * 23 * 4096 - SLACK
    assert all(bool(block.all()) for block in blocks)


# Tensors that live.


def test_storage_counts_once_and_for_as_long_as_it_lives() -> None:
    given = torch.ones(1000)
    with LiveTensors() as live:
        assert live.bytes == 0
        a = given * 2
        assert live.bytes == 4000
        views = [a[:10], a.view(10, 100), a.detach(), given.view(10, 100), given[3:]]
        a.add_(1)
        given.mul_(0)
        assert live.bytes == 4000
        b = torch.empty(500, dtype=torch.float64)
        assert (live.bytes, live.peak) == (8000, 8000)
        del b
        assert (live.bytes, live.peak) == (4000, 8000)
        del a
        assert live.bytes == 4000
        views.clear()
        assert (live.bytes, live.peak) == (0, 8000)
        late = torch.zeros(10)
    assert live.bytes == 40
    del late
    assert (live.bytes, live.peak) == (0, 8000)


def test_what_a_graph_holds_is_counted_and_inner_temporaries_are_in_the_peak() -> None:
    weight = torch.ones(1000, requires_grad=True)
    with LiveTensors() as live:
        loss = weight.exp().square().sum()
        # Saved: the exponential, the argument of the square too; the loss itself. The square has been summed up.
        assert live.bytes == 4000 + 4
        assert live.peak == 2 * 4000 + 4
        (gradient,) = torch.autograd.grad(loss, weight)
        assert live.bytes == 2 * 4000 - 4000 + 4
        assert len(gradient) == 1000


def test_counters_may_be_nested_and_batches_of_a_loader_are_seen() -> None:
    data = TensorDataset(torch.ones(8, 250), torch.zeros(8, dtype=torch.int64))
    with LiveTensors() as outer:
        kept = list(DataLoader(data, batch_size=4))
        with LiveTensors() as inner:
            output = nn.functional.relu(kept[0][0])
    assert inner.bytes == output.nbytes == 4000
    assert outer.bytes >= 2 * 4000 + 2 * 32 + 4000

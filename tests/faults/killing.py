"""Work in a child process that is killed between two steps that change files, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from convexlab.machine import atomic
from convexlab.machine.lock import LOCK
from tests.tiny import without_seconds

Action = Callable[[], object]

_ELSEWHERE = {"checksum", "made_by", "environment"}


def run_in_child(action: Action, stop: int | None = None) -> int | None:
    """Call ``action`` in a child process, and kill that before its step number ``stop``.

    Returns:
        How many steps there were, or None where it was killed.
    """

    def kill(step: str, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    status, steps = status_in_child(action, stop, kill)
    assert status in (0, -signal.SIGKILL), "the child failed; its traceback is above"
    return steps if status == 0 else None


def status_in_child(action: Action, stop: int | None, fault: Callable[[str, Path], object]) -> tuple[int, int]:
    """Call ``action`` in a child process, where ``fault`` happens before the step number ``stop`` that changes files.

    Returns:
        Its exit status, minus the signal that killed it, and how many steps there were until its end.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _be_child(action, stop, fault, write)
    os.close(write)
    with os.fdopen(read) as pipe:
        steps = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(steps or 0)


def _be_child(action: Action, stop: int | None, fault: Callable[[str, Path], object], pipe: int) -> None:
    steps = 0

    def count(step: str, path: Path) -> None:
        nonlocal steps
        steps += 1
        if steps == (stop or 0) + 1 and stop is not None:
            fault(step, path)

    status = 1
    try:
        atomic.between = count
        os.fsync = lambda handle: None  # No power fails here, and half the time is the disk's.
        action()
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - whatever it is, this process is not to go on as the test runner
        traceback.print_exc()
    finally:
        os.write(pipe, str(steps).encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def contents(folder: Path) -> dict[str, Any]:
    """Every file in a folder but what a clock, a host or a command line decides; of weights the bytes."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _plain(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        return [_plain(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return "a page" if path.suffix == ".html" else path.read_bytes()


def _plain(value: dict[str, Any]) -> Any:
    return without_seconds({name: item for name, item in value.items() if name not in _ELSEWHERE})


def differences(left: Any, right: Any, where: str = "") -> Iterator[str]:
    """Name every place where two contents differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        for name in {**left, **right}:
            if name in left and name in right:
                yield from differences(left[name], right[name], f"{where}/{name}")
            else:
                yield f"{where}/{name} on one side only"
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for place, pair in enumerate(zip(left, right, strict=True)):
            yield from differences(*pair, f"{where}[{place}]")
    elif left != right:
        yield f"{where}: {str(left)[:60]} and {str(right)[:60]}"


def leftovers(folder: Path) -> list[str]:
    """Names of files that no finished run has."""
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.name in (LOCK, "state")]

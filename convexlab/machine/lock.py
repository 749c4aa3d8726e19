"""One process at a time in a folder, and the folder there as long as it works."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from convexlab.errors import FailureError, MisuseError
from convexlab.machine.ranks import current

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "check_present", "create", "held_alone"]

LOCK = ".lock"
"""The name of the file in a folder that says who works in it."""

# File systems that know no locks answer with one of these.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


@dataclass
class _Held:
    thread: int
    inode: int


_held: dict[Path, _Held] = {}
# Folders that were made to be held: they go again if nothing was put into them.
_created: set[Path] = set()


def create(folder: Path) -> bool:
    """Make a folder, with those above it, and return whether it was not there before."""
    made = False
    for path in [*reversed(folder.parents), folder]:
        if path.is_dir():
            continue
        try:
            path.mkdir()
        except FileExistsError:
            return False
        _created.add(path.resolve())
        made = path == folder
    return made


@contextmanager
def held_alone(folder: Path) -> Iterator[Path]:
    """Hold a folder, which is made if it is not there, against all other processes; yield it.

    It is the system's own lock on a file in the directory, which names process and host. The lock ends with the
    process, however that ends and wherever it ran. So a file that is left behind blocks no other process. Within a
    thread it can be held again. Of several ranks that work together, rank 0 holds it for all.

    Raises:
        MisuseError: another process holds it, or another thread.
    """
    held = current().by_writer(lambda: _hold(folder))
    try:
        yield folder
    finally:
        if held is not None:
            _let_go(*held)


def _hold(folder: Path) -> tuple[Path, int] | None:
    """Hold a folder; return its place and the handle of the lock, or None where this thread holds it already."""
    create(folder)
    place = folder.resolve()
    if place in _held and _held[place].thread == threading.get_ident():
        return None
    handle = _acquire(place)
    _held[place] = _Held(threading.get_ident(), os.fstat(handle).st_ino)
    return place, handle


def _let_go(place: Path, handle: int) -> None:
    there = _is_there(place)
    if fcntl is None:  # Windows removes no file that is open.
        os.close(handle)
    if there:  # Removed while it is held: whoever opened it meanwhile finds out that it is no more.
        (place / LOCK).unlink()
    del _held[place]
    if fcntl is not None:
        os.close(handle)
    for path in (place, *place.parents):
        if path not in _created:
            break
        try:
            path.rmdir()
        except OSError:  # Something was put into it.
            break
        _created.discard(path)


def check_present(path: Path) -> None:
    """Raise a FailureError if ``path`` is in a folder that this process holds and that was removed since."""
    place = path.parent.resolve()
    for folder in _held:
        if place.is_relative_to(folder) and not _is_there(folder):
            raise FailureError(
                f"{str(folder)!r} was removed or replaced while it was worked in, so that {path.name!r} cannot be "
                "stored. Begin again in another folder."
            )


def _is_there(folder: Path) -> bool:
    try:
        return (folder / LOCK).lstat().st_ino == _held[folder].inode
    except OSError:
        return False


def _acquire(folder: Path) -> int:
    path = folder / LOCK
    while True:
        handle = os.open(
            path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0), 0o644
        )
        try:
            if folder in _held or not _lock(handle):
                raise MisuseError(
                    f"{str(folder)!r} is in use by {_owner_text(handle)}. Wait for it, stop it, or choose another "
                    "folder by --out."
                )
            # The process that held it may have removed the file since it was opened.
            if path.exists() and os.fstat(handle).st_ino == path.stat().st_ino:
                os.ftruncate(handle, 0)
                me = {"pid": os.getpid(), "host": socket.gethostname(), "began": _begin_of(os.getpid())}
                os.write(handle, json.dumps(me).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> bool:
    """Take the system's lock, and return whether that succeeded."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                return False
        else:
            return True
    owner = _owner(handle)
    alive = owner.get("host") == socket.gethostname() and owner.get("began") == _begin_of(owner.get("pid"))
    return not (alive and owner.get("began") is not None)


def _begin_of(pid: object) -> float | None:
    """Return when a process began, which distinguishes it from a later one of that number; None without one."""
    try:
        return float(psutil.Process(pid).create_time()) if isinstance(pid, int) else None
    except psutil.Error:
        return None


def _owner(handle: int) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        owner = json.loads(os.pread(handle, 1000, 0) if hasattr(os, "pread") else os.read(handle, 1000))
        if isinstance(owner, dict):
            return owner
    return {}


def _owner_text(handle: int) -> str:
    owner = _owner(handle)
    return f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"

"""Files that appear whole or not at all: written beside, flushed to disk, renamed.

Everything that changes a run directory passes here, one step after the other. A process that is killed between two
steps leaves the former files, and at most files that `clean` removes. Of several ranks that work together, rank 0 alone
changes files, while the others wait.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from convexlab.machine.lock import check_present
from convexlab.machine.ranks import current

__all__ = ["clean", "make_folder", "remove", "remove_folder", "write_atomically"]

_PARTIAL = re.compile(r"\..+\.(\d+)-[^.]+\.partial")


def _between(step: str, path: Path) -> None:
    """Stand between two steps; tests stop the process here."""


between: Callable[[str, Path], None] = _between


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` either keeps its old content or has all of the new.

    Raises:
        OSError: it could not be written; the error names ``path``.
        FailureError: the folder that this process holds is gone.
    """
    current().by_writer(lambda: _write(path, content))


def _write(path: Path, content: bytes) -> None:
    check_present(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        between("create", path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.{os.getpid()}-", suffix=".partial")
        beside = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                between("write", path)
                file.write(content)
                file.flush()
                between("fsync", path)
                os.fsync(file.fileno())
            # A file of mkstemp is private to the user; a result shall be as readable as any other file.
            beside.chmod(0o644)
            between("rename", path)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        between("done", path)


def make_folder(path: Path) -> None:
    """Make a folder in one that exists, unless it is there.

    Raises:
        OSError: it is a link, which may lead anywhere, or it cannot be made.
    """
    current().by_writer(lambda: _make_folder(path))


def _make_folder(path: Path) -> None:
    with _naming(path):
        if path.is_symlink():
            raise OSError(0, "expected a folder, not a link that leads elsewhere")
        between("mkdir", path)
        path.mkdir(exist_ok=True)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    current().by_writer(lambda: _remove(path))


def _remove(path: Path) -> None:
    with _naming(path):
        between("unlink", path)
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove a folder of files, if it is there."""
    current().by_writer(lambda: _remove_folder(path))


def _remove_folder(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        return
    for file in sorted(path.iterdir()):
        remove(file)
    with _naming(path):
        between("rmdir", path)
        path.rmdir()


def clean(folder: Path) -> None:
    """Remove what writers left in a folder that were killed there."""
    current().by_writer(lambda: _clean(folder))


def _clean(folder: Path) -> None:
    for file in folder.iterdir() if folder.is_dir() else ():
        match = _PARTIAL.fullmatch(file.name)
        if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
            remove(file)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have what the system refuses name the file that was meant: "No space left on device" alone says nothing."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise

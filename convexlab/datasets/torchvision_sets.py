"""The public image benchmarks of the paper, read and where needed downloaded by torchvision."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import pickle
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from convexlab.datasets.arrays import Source, source_from_arrays
from convexlab.errors import MisuseError
from convexlab.machine.ranks import current

__all__ = ["TORCHVISION_SETS", "TorchvisionSet", "data_folder", "read_torchvision_set", "torchvision_datasets"]

VARIABLE = "CONVEXLAB_DATA"
_IDX = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, AssertionError, LookupError, EOFError, pickle.PickleError)
_NOT_DOWNLOADED = (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error)


@dataclass(frozen=True)
class TorchvisionSet:
    """Where torchvision keeps one data set."""

    torchvision_name: str
    """Class in ``torchvision.datasets``."""
    folder: str
    """Below the data folder."""
    files: tuple[str, ...]
    """All files that must be there."""

    def missing(self, root: Path) -> list[str]:
        """Return the files that are not below ``root``."""
        return [file for file in self.files if not (root / self.folder / file).is_file()]


TORCHVISION_SETS = {
    "mnist": TorchvisionSet("MNIST", "MNIST/raw", _IDX),
    "fashion-mnist": TorchvisionSet("FashionMNIST", "FashionMNIST/raw", _IDX),
    "cifar10": TorchvisionSet(
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{part}" for part in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar100": TorchvisionSet("CIFAR100", "cifar-100-python", ("train", "test", "meta")),
}
"""The data sets, by the name that ``load_dataset`` takes."""


def data_folder(root: str | Path | None = None) -> Path:
    """Return ``root``, else the folder named by ``$CONVEXLAB_DATA``, else the platform's cache folder for convexlab."""
    import platformdirs

    chosen = root or os.environ.get(VARIABLE) or platformdirs.user_cache_dir("convexlab")
    return Path(chosen).expanduser()


def read_torchvision_set(name: str, root: str | Path | None = None) -> Source:
    """Read a data set from the data folder, after downloading it if files are missing there.

    Args:
        name: a key of ``TORCHVISION_SETS``.
        root: folder that holds, or shall hold, torchvision's data sets; default as in ``data_folder``.

    Raises:
        MisuseError: the files are not there and cannot be downloaded, or are there and cannot be read.
    """
    wanted, folder = TORCHVISION_SETS[name], data_folder(root)
    datasets = torchvision_datasets(name)
    # Of several ranks one downloads for all; another machine still lacks them then.
    current().by_writer(lambda: _download(name, wanted, folder))
    _download(name, wanted, folder)
    kind = getattr(datasets, wanted.torchvision_name)
    try:
        train, test = (kind(str(folder), train=is_train, download=False) for is_train in (True, False))
    except _UNREADABLE as error:
        damaged = str(folder / wanted.folder)
        raise MisuseError(
            f"{name}: the files in {damaged!r} are damaged ({error}). Delete them and try again."
        ) from error
    return source_from_arrays(name, train.data, train.targets, test.data, test.targets)


def torchvision_datasets(name: str) -> ModuleType:
    """Return torchvision's data sets; all else works without it.

    Raises:
        MisuseError: it is not installed.
    """
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise MisuseError(
            f"{name} needs torchvision, which is not installed. Install it (pip install torchvision), or use data that "
            "need none: digits, npz:FILE, or your own batches by --data."
        ) from error
    return datasets  # type: ignore[no-any-return]


def _download(name: str, wanted: TorchvisionSet, folder: Path) -> None:
    """Download what is missing."""
    if not wanted.missing(folder):
        return
    datasets = torchvision_datasets(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Into a folder beside, then renamed: torchvision takes a half-extracted file for a whole one ever after.
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as beside, _chatter_where_it_is_read():
            getattr(datasets, wanted.torchvision_name)(beside, download=True)
            (folder / wanted.folder).mkdir(parents=True, exist_ok=True)
            for file in wanted.files:
                (Path(beside) / wanted.folder / file).replace(folder / wanted.folder / file)
    except _NOT_DOWNLOADED as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise MisuseError(
            f"{name}: looked in {str(folder / wanted.folder)!r}, which lacks {', '.join(wanted.missing(folder))}; "
            f"downloading them failed ({reason}). Set {VARIABLE} to a folder that holds {wanted.folder}/, "
            "or use data that needs no network: digits, or npz:FILE."
        ) from error


@contextlib.contextmanager
def _chatter_where_it_is_read() -> Iterator[None]:
    """Keep torchvision's messages off standard output, and its progress bar to terminals."""
    sink = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield

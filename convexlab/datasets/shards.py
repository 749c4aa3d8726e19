"""Samples in tar files, as the library webdataset has them: read shard after shard, one batch in memory."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from convexlab.datasets.mapped import native
from convexlab.errors import FailureError, MisuseError
from convexlab.importing import imported

__all__ = ["Shards", "open_shards"]

LAYOUT = (
    "tar files of samples, each an input (NAME.x.npy, or an image: NAME.jpg, .jpeg, .png, .webp) and a target "
    "(NAME.y.npy, or NAME.cls with a class number), such as webdataset:shards/train-{0000..0063}.tar"
)
_IMAGES = ("jpg", "jpeg", "png", "webp")
# Of what a sample's files are called behind its name, in the order of preference. Nothing else is decoded: what is
# pickled in a shard would run code.
_INPUTS = ("x.npy", *_IMAGES)
_TARGETS = ("y.npy", "cls")
# What tarfile, NumPy, Pillow and webdataset raise on a file that is damaged, or on samples of other keys or shapes.
_UNREADABLE = (tarfile.TarError, OSError, ValueError, EOFError, RuntimeError, SyntaxError)
# Bytes of a block in a tar file, and what lies where in a file's first one.
_BLOCK, _MAGIC, _AT = 512, b"ustar", 257


class Shards(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of the samples of tar files, always in the order of the files; a reader process takes every k-th file.

    Args:
        files: the shards.
        input: what a sample's input is called behind its name, such as ``"x.npy"``.
        target: likewise.
        size: samples in a batch; the last of every reader may have fewer.
    """

    def __init__(self, files: Sequence[str], input: str, target: str, size: int) -> None:
        super().__init__()
        self.files, self.size = list(files), size
        self._keys = (input, target)

    @property
    def bytes(self) -> int:
        """What all files hold."""
        return sum(Path(file).stat().st_size for file in self.files)

    @property
    def most_readers(self) -> int:
        """Processes that can read at once."""
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches.

        Raises:
            FailureError: a shard is damaged, or samples differ in shape.
        """
        reader = get_worker_info()
        files = self.files if reader is None else self.files[reader.id :: reader.num_workers]
        decode, batch = _decoder(self._keys), list[tuple[Any, Any]]()
        try:
            for sample in _samples(files):
                batch.append(self._pair(decode, sample))
                if len(batch) == self.size:
                    yield _collated(batch)
                    batch = []
            if batch:
                yield _collated(batch)
        except _UNREADABLE as error:
            raise FailureError(f"a shard among {files[0]!r} and others cannot be read: {_words_of(error)}.") from error

    def _pair(self, decode: Callable[[dict[str, Any]], dict[str, Any]], sample: dict[str, Any]) -> tuple[Any, Any]:
        """Return the input and the target of a sample, decoded."""
        name = f"the sample {sample['__key__']!r} of {sample['__url__']!r}"
        for key in self._keys:
            if key not in sample:
                raise FailureError(f"{name} has no {key}, as the first one has. Write it anew with both parts.")
        try:
            decoded = decode(sample)
        except _library().autodecode.DecodingError as error:
            cause = error.__cause__ or error
            raise FailureError(f"{name} cannot be decoded: {cause}. webdataset:PATTERN expects {LAYOUT}.") from error
        return decoded[self._keys[0]], decoded[self._keys[1]]


def open_shards(pattern: str, size: int) -> Shards:
    """Return the samples of the tar files that a pattern names, with braces, or ``*`` in its last part.

    Raises:
        MisuseError: webdataset is not installed, no such files, or samples of another kind.
    """
    files = _files(pattern)
    try:
        for file in files:
            _check_end(file)
        file = files[0]
        with contextlib.closing(_samples([file])) as samples:
            first = next(samples)
    except (*_UNREADABLE, StopIteration) as error:
        raise MisuseError(f"{file!r} does not fit: {_words_of(error)}. webdataset:PATTERN expects {LAYOUT}.") from error
    keys = [key for key in first if not key.startswith("__")]
    input, target = (next((key for key in known if key in keys), None) for known in (_INPUTS, _TARGETS))
    if input is None or target is None:
        raise MisuseError(f"the samples of {files[0]!r} hold {', '.join(keys)}: webdataset:PATTERN expects {LAYOUT}.")
    return Shards(files, input, target, size)


def _library() -> Any:
    return imported("webdataset", "webdataset")


def _files(pattern: str) -> list[str]:
    expanded = _library().shardlists.expand_urls(pattern) if pattern else []
    # No URLs: one that begins with "pipe:" would run a command.
    paths = [Path(part).expanduser().absolute() for part in expanded]
    matches = [(path, sorted(path.parent.glob(path.name))) for path in paths]
    missing = [str(path) for path, there in matches if not there]
    if missing or not matches:
        place = missing[0] if len(matches) > 1 else pattern
        raise MisuseError(f"no file at {place!r}; webdataset:PATTERN expects {LAYOUT}.")
    return [str(file) for _, there in matches for file in there]


def _check_end(file: str) -> None:
    """Raise a ReadError if a tar file lacks the zeros that end it: cut off between two samples, it reads as a whole."""
    with Path(file).open("rb") as stream:
        if stream.read(_BLOCK)[_AT:].startswith(_MAGIC):  # Else it is compressed, and an end is found in reading.
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _BLOCK))
            if any(stream.read()):
                raise tarfile.ReadError("it is cut off, as the zeros at the end of a tar file are missing")


def _samples(files: Sequence[str]) -> Generator[dict[str, Any], None, None]:
    """Yield the samples of shards, not decoded; the library itself leaves files open, and draws a seed."""
    tar = _library().tariterators

    def opened() -> Generator[dict[str, Any], None, None]:
        for file in files:
            with Path(file).open("rb") as stream:
                yield {"url": file, "stream": stream}

    with contextlib.closing(opened()) as streams:
        yield from tar.group_by_keys(tar.tar_file_expander(streams))


def _decoder(keys: Sequence[str]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    decoding = _library().autodecode
    return decoding.Decoder([decoding.ImageHandler("torchrgb")], only=list(keys))  # type: ignore[no-any-return]


def _words_of(error: Exception) -> str:
    """Return what went wrong; the library adds the file as an object behind it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error.args[0]) if error.args else "it holds no sample"


def _collated(samples: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*samples, strict=True)
    return torch.stack([_scaled(value) for value in inputs]), torch.stack([_tensor(value) for value in targets])


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an array of type {array.dtype}, which holds no real numbers")
    return torch.from_numpy(native(array))


def _scaled(value: Any) -> Tensor:
    """Return an input; bytes, as of an image, lie between 0 and 1 then."""
    tensor = _tensor(value)
    return tensor / 255 if tensor.dtype == torch.uint8 else tensor

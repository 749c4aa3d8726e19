"""The registry of data sets and the one call that loads any of them."""

from __future__ import annotations

from pathlib import Path

from convexlab.datasets.arrays import Source
from convexlab.datasets.dataset import Dataset
from convexlab.datasets.digits import read_digits
from convexlab.datasets.factory import BY_DATA, read_factory
from convexlab.datasets.imagefolder import read_imagefolder
from convexlab.datasets.npz import read_npz
from convexlab.datasets.preparing import prepare
from convexlab.datasets.subset import subset_of
from convexlab.datasets.torchvision_sets import TORCHVISION_SETS, read_torchvision_set
from convexlab.errors import MisuseError, unknown_name
from convexlab.importing import is_spec, remember

__all__ = ["dataset_names", "load_dataset"]

_DESCRIPTIONS = {
    "digits": "1,797 handwritten digits, 8x8 grey, 10 classes; ships with scikit-learn, needs no download",
    "mnist": "70,000 handwritten digits, 28x28 grey, 10 classes",
    "fashion-mnist": "70,000 pieces of clothing, 28x28 grey, 10 classes",
    "cifar10": "60,000 photographs, 32x32 colour, 10 classes",
    "cifar100": "60,000 photographs, 32x32 colour, 100 classes",
    "npz:FILE": "NumPy archive with x_train (N, H, W) or (N, H, W, C), y_train (N,), x_test, y_test",
    "imagefolder:DIR": "image files in DIR/train/CLASS/ and DIR/test/CLASS/",
    "package.module:factory": "function returning a Dataset or (x_train, y_train, x_test, y_test); or file.py:factory",
}


def dataset_names() -> dict[str, str]:
    """Return every name that ``load_dataset`` takes, with a description of one line."""
    return dict(_DESCRIPTIONS)


def load_dataset(
    name: str,
    *,
    train_size: int | None = None,
    seed: int = 0,
    image_size: int = 32,
    root: str | Path | None = None,
) -> Dataset:
    """Load a data set, resized and standardised, into memory.

    Every image is resized to ``image_size`` x ``image_size`` (bilinear, antialiased). Every channel is shifted and
    scaled to mean 0 and standard deviation 1 with the statistics of the **whole** training split, whatever
    ``train_size`` is. So subsets of one data set are comparable, and one test split serves them all. Only a ``Dataset``
    returned by a factory is taken as it is, apart from ``train_size``.

    Args:
        name: a name from ``dataset_names``, such as ``"digits"``, ``"npz:FILE"`` or ``"package.module:factory"``.
        train_size: number of training examples: a stratified subset (see ``stratified_indices``); ``None`` takes all.
        seed: which subset; it changes nothing else.
        image_size: height and width in pixels.
        root: folder of torchvision's data sets; default ``$CONVEXLAB_DATA``, else the platform's cache folder.

    Raises:
        MisuseError: unknown name, data that are missing or do not fit, or an argument out of range.
        FailureError: a factory raised an error of its own.
    """
    _check_whole("image_size", image_size, low=1)
    _check_whole("seed", seed, low=0)
    if train_size is not None:
        _check_whole("train_size", train_size, low=1)
    data = _read(name, image_size, root)
    if isinstance(data, Source):
        return prepare(data, image_size=image_size, train_size=train_size, seed=seed)
    return data if train_size is None else subset_of(data, train_size, seed=seed)


def _read(name: str, image_size: int, root: str | Path | None) -> Source | Dataset:
    if name == "digits":
        return read_digits()
    if name in TORCHVISION_SETS:
        return read_torchvision_set(name, root)
    if not is_spec(name):
        if name and (kind := "npz" if name.endswith(".npz") else "imagefolder" if Path(name).is_dir() else ""):
            raise MisuseError(f"unknown dataset {name!r}. Did you mean {f'{kind}:{name}'!r}?")
        raise MisuseError(f"{unknown_name('dataset', name, _DESCRIPTIONS)} {BY_DATA}")
    kind, _, argument = name.partition(":")
    if kind not in ("npz", "imagefolder"):
        return read_factory(name, image_size)
    source = read_npz(argument) if kind == "npz" else read_imagefolder(argument, image_size)
    remember(name)
    return source


def _check_whole(argument: str, value: object, *, low: int) -> None:
    # Beyond 63 bits neither a tensor's size nor the seed of a generator can follow.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**63:
        raise MisuseError(f"{argument} must be a whole number of at least {low} (and below 2**63), got {value!r}.")

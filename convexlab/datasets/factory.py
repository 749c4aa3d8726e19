"""Data sets from anybody's Python function."""

from __future__ import annotations

from typing import Any

from convexlab.datasets.arrays import Source, check_finite, source_from_arrays
from convexlab.datasets.dataset import Dataset
from convexlab.errors import MisuseError
from convexlab.importing import call_accepted, load_object

__all__ = ["BY_DATA", "read_factory"]

BY_DATA = "Batches of any kind go by --data file.py:loader instead of --dataset."

EXPECTED = "a convexlab.datasets.Dataset or the four arrays (x_train, y_train, x_test, y_test)"


def read_factory(spec: str, image_size: int) -> Source | Dataset:
    """Call ``package.module:factory`` or ``file.py:factory`` and check what it returns.

    A ``Dataset`` is complete: nothing is resized or standardised again. Four arrays or tensors are checked as in
    ``source_from_arrays``.

    Args:
        spec: where the factory is.
        image_size: handed to the factory if it has a parameter of that name.

    Raises:
        MisuseError: no such factory, it requires other arguments, or what it returns is neither of the two.
        FailureError: the factory itself raised an error, which is the cause of this one.
    """
    made = call_accepted(load_object(spec), spec, image_size=image_size)
    if isinstance(made, Dataset):
        check_finite(spec, "train", made.x_train)
        check_finite(spec, "test", made.x_test)
        return made
    if isinstance(made, tuple | list) and len(made) == 4:
        return source_from_arrays(spec, *made)
    raise MisuseError(f"{spec} must return {EXPECTED}, got {_describe(made)}. {BY_DATA}")


def _describe(made: Any) -> str:
    kind = type(made).__name__
    return f"{kind} of {len(made)}" if isinstance(made, tuple | list | dict) else kind

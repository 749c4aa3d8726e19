"""A language to be modelled, byte by byte: the names of characters, a text that is the same everywhere and for ever."""

from __future__ import annotations

import unicodedata

import torch
from torch import Tensor
from torch.nn import functional

from convexlab.architectures import TextTransformer
from convexlab.errors import MisuseError
from convexlab.machine.random_state import drawn_from
from convexlab.objective import Objective
from convexlab.problems.minibatches import RandomRows, default_batch_size
from convexlab.problems.problem import Problem

__all__ = ["character_names", "text"]

_PLACES, _WINDOWS, _VALIDATION = 32, 300, 250
# All bytes of the text lie from the first on; so many are printable and no small letters.
_FIRST, _SYMBOLS = 32, 64
# Of the scripts and symbols before the large blocks that are numbered, not named.
_LAST = 0x3000


def character_names() -> str:
    """Return the names of the characters below U+3000 in Unicode 3.2, a semicolon after each: 210 kB of ASCII.

    Python keeps that version's data for good, and Unicode never changes a name (its stability policy).
    """
    names = (unicodedata.ucd_3_2_0.name(chr(code), "") for code in range(_LAST))
    return "".join(f"{name};" for name in names if name)


def text(
    *,
    train_size: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Problem:
    """Return the language of `character_names` for a decoder-only transformer of 2 layers of width 32.

    A training example is a window of 33 bytes, whose last 32 are to be predicted, each from those before it. Windows
    for training and for validation lie evenly over the text and do not overlap. The loss is the cross-entropy a byte,
    in nats.

    Args:
        train_size: windows; None is 300.
        batch_size: Adam's; None is a twentieth of the windows, from 16 to 512.
        seed: of the weights; the windows are always the same.
        device: where to train; None is the CPU.

    Raises:
        MisuseError: more windows than the text has.
    """
    size = _WINDOWS if train_size is None else train_size
    train, validation = (windows.to(device) for windows in _windows(size))
    model = drawn_from(seed, lambda: TextTransformer(_SYMBOLS, _PLACES)).to(device)
    pair = (train[:, :-1], train[:, 1:])
    held_out = Objective(model, [(validation[:, :-1], validation[:, 1:])], _cross_entropy)
    batch_size = batch_size or default_batch_size(size)
    return Problem(
        model,
        Objective(model, [pair], _cross_entropy),
        minibatches=RandomRows(pair, size, batch_size),
        validate=lambda: {"validation_loss": held_out.value()},
        about="names of Unicode characters",
    )


def _windows(size: int) -> tuple[Tensor, Tensor]:
    """Return so many windows for training and those for validation, (windows, places + 1) symbols each."""
    symbols = torch.tensor(list(character_names().encode("ascii"))) - _FIRST
    windows = symbols[: len(symbols) // (_PLACES + 1) * (_PLACES + 1)].view(-1, _PLACES + 1)
    if not 1 <= size <= len(windows) - _VALIDATION:
        raise MisuseError(
            f"expected train_size from 1 to {len(windows) - _VALIDATION}, the windows that the text has beside those "
            f"for validation, got {size}."
        )
    held_out = torch.arange(_VALIDATION) * len(windows) // _VALIDATION
    others = torch.ones(len(windows), dtype=torch.bool)
    others[held_out] = False
    rest = windows[others]
    return rest[torch.arange(size) * len(rest) // size], windows[held_out]


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, -2), target.flatten())

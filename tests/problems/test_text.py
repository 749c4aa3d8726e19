"""The text is the same everywhere, its windows do not overlap, and its loss is a byte's."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from convexlab.errors import MisuseError
from convexlab.problems.text import _windows, character_names, text


def test_the_text_never_changes() -> None:
    names = character_names()
    assert names.startswith("SPACE;EXCLAMATION MARK;QUOTATION MARK;")
    assert hashlib.sha256(names.encode("ascii")).hexdigest().startswith("d10be4d6936c28bd")


def test_windows_are_pieces_of_it_that_do_not_overlap() -> None:
    train, validation = _windows(400)
    assert train.shape == (400, 33)
    rows = [bytes((row + 32).tolist()).decode("ascii") for row in torch.cat([train, validation])]
    names = character_names()
    places = [start for start in range(0, len(names), 33) if names[start : start + 33] in set(rows)]
    assert len(places) >= len(set(rows))
    assert all(row in names for row in rows)
    assert torch.equal(_windows(400)[1], _windows(20)[1])


def test_the_loss_is_that_of_a_guess_at_the_start() -> None:
    problem = text(train_size=8)
    assert problem.objective.size == 30_400
    assert problem.objective.value() == pytest.approx(math.log(64), rel=0.02)
    assert problem.measures()["validation_loss"] == pytest.approx(math.log(64), rel=0.02)
    assert problem.batch_size == 16


def test_weights_are_the_seeds_and_windows_are_not() -> None:
    first, second = text(train_size=4, seed=1), text(train_size=4, seed=2)
    assert not torch.equal(first.objective.flat_parameters(), second.objective.flat_parameters())
    assert torch.equal(first.objective.flat_parameters(), text(train_size=4, seed=1).objective.flat_parameters())
    (ours, _), (theirs, _) = (next(iter(problem.objective.data)) for problem in (first, second))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [0, 10**6])
def test_a_size_that_the_text_does_not_have_is_refused(size: int) -> None:
    with pytest.raises(MisuseError, match="train_size from 1 to"):
        text(train_size=size)

"""Recordings: a replay is what a call would be, for other numbers too; what cannot be recorded is called."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from convexlab.machine.capture import Replayer, capture_asked, recorder_for
from tests.tape import Recorder, recorder

__all__ = ["recorder"]

CPU = torch.device("cpu")


def square(x: Tensor, scale: float) -> Tensor:
    return (x * x).sum() * scale


def call(replayer: Replayer, x: Tensor, scale: float = 2.0) -> Tensor:
    return replayer.call("square", (), square, x, scale)


def test_the_cpu_calls_plainly_and_says_so() -> None:
    assert recorder_for(CPU) is None
    replayer, x = Replayer(CPU), torch.arange(3.0)
    for _ in range(4):
        assert float(call(replayer, x)) == 10.0
    assert replayer.refuses("square")
    assert replayer.reasons == {"": "cpu has no graphs of kernels to record"}
    assert not replayer.recordings


def test_from_the_third_call_on_a_shape_is_replayed(recorder: Recorder) -> None:
    replayer, calls = Replayer(CPU), []

    def counted(x: Tensor) -> Tensor:
        calls.append(x)
        return square(x, 1.0)

    for number in range(6):
        x = torch.full((3,), float(number))
        assert float(replayer.call("square", (), counted, x)) == 3 * number**2
    # Twice plainly, then to warm up and to be recorded.
    assert len(calls) == 4
    assert (replayer.recordings, replayer.reasons) == (1, {})
    # Compared once, and replayed for the third to the sixth call.
    assert recorder.tapes[0].replays == 5


def test_another_shape_key_or_number_is_another_recording(recorder: Recorder) -> None:
    replayer = Replayer(CPU)
    for _ in range(3):
        assert float(call(replayer, torch.ones(3))) == 6.0
        assert float(call(replayer, torch.ones(4))) == 8.0
        assert float(call(replayer, torch.ones(3), 3.0)) == 9.0
        assert float(replayer.call("square", ("other",), square, torch.ones(3), 2.0)) == 6.0
    assert replayer.recordings == 4


def test_a_dropped_reason_stands_for_all_shapes(recorder: Recorder) -> None:
    replayer = Replayer(CPU)

    def waits(x: Tensor) -> Tensor:
        return x * float(x.sum())

    for size in (2, 3):
        for _ in range(4):
            assert replayer.call("waits", (), waits, torch.ones(size)).tolist() == [size] * size
    assert replayer.reasons == {"waits": "it waits for the device"}
    assert not replayer.recordings
    # Others go on.
    for _ in range(3):
        call(replayer, torch.ones(2))
    assert replayer.recordings == 1


@pytest.mark.parametrize(
    ("function", "argument", "reason"),
    [
        (lambda x: x + torch.rand(()), torch.ones(2), "draws random numbers"),
        (lambda x: torch.ones(2), {"x": torch.ones(2), "other": object()}, "hold a object"),
    ],
)
def test_what_cannot_be_recorded_is_named(function: Any, argument: Any, reason: str, recorder: Recorder) -> None:
    replayer = Replayer(CPU)
    for _ in range(3):
        replayer.call("it", (), function, argument)
    assert reason in replayer.reasons["it"]


def test_a_replay_that_differs_is_not_used(recorder: Recorder) -> None:
    replayer, calls = Replayer(CPU), itertools.count()

    def changing(x: Tensor) -> Tensor:
        return x * 2.0 ** next(calls)

    for _ in range(4):
        replayer.call("changing", (), changing, torch.ones(2))
    assert "its replay is off by" in replayer.reasons["changing"]


def test_numbers_that_are_not_finite_decide_nothing(recorder: Recorder) -> None:
    replayer = Replayer(CPU)
    for _ in range(4):
        assert torch.isnan(call(replayer, torch.full((2,), torch.nan)))
    assert (replayer.recordings, replayer.reasons) == (0, {})
    for _ in range(3):
        call(replayer, torch.ones(2))
    assert replayer.recordings == 1


def test_only_so_many_shapes_are_recorded(recorder: Recorder) -> None:
    replayer = Replayer(CPU)
    for size in range(1, 20):
        for _ in range(3):
            assert float(call(replayer, torch.ones(size))) == 2.0 * size
    assert replayer.recordings == 16


def test_a_linear_map_is_prepared_once_a_place(recorder: Recorder) -> None:
    replayer, prepared = Replayer(CPU), []

    def prepare(x: Tensor) -> Tensor:
        prepared.append(x)
        return torch.diag(x)

    def apply(matrix: Tensor, columns: Tensor) -> Tensor:
        return (matrix @ columns).T

    def times(x: Tensor, columns: Tensor, place: int) -> Tensor:
        return replayer.apply("diagonal", (), prepare, apply, columns, place, x)

    for number in range(8):
        place = number // 2
        x = torch.full((3,), 1.0 + place)
        assert torch.equal(times(x, torch.eye(3), place), (1.0 + place) * torch.eye(3))
        assert torch.equal(times(x, torch.ones(3, 1), place), torch.full((1, 3), 1.0 + place))
    assert len(prepared) == 4
    preparation = recorder.tapes[0]
    # To be compared, then once for each of the four places: the second call of a place is the first that is replayed.
    assert preparation.replays == 5
    assert len(recorder.tapes) == 3


def test_short_memory_ends_it(recorder: Recorder) -> None:
    replayer = Replayer(CPU)
    assert not replayer.release()
    for _ in range(3):
        call(replayer, torch.ones(2))
    assert replayer.release()
    assert float(call(replayer, torch.ones(2))) == 4.0
    assert (replayer.recordings, replayer.reasons) == (0, {"": "memory is short"})


@pytest.mark.parametrize(("value", "asked"), [("", False), ("0", False), ("off", False), ("1", True), ("on", True)])
def test_a_variable_asks(value: str, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEXLAB_CAPTURE", value)
    assert capture_asked() is asked

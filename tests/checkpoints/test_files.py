"""Checkpoints come back as they were written, and whatever is none is refused, never run."""

from __future__ import annotations

import math
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convexlab.checkpoints import read_checkpoint, read_header, write_checkpoint
from convexlab.errors import MisuseError

READERS = (read_checkpoint, read_header)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = {
        "turned": torch.arange(12.0).view(3, 4).T,
        "double": torch.tensor([math.pi, math.nan, -math.inf], dtype=torch.float64),
        "half": torch.ones(3, 2, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "nothing": torch.empty(0, 3),
        "trained": nn.Parameter(torch.ones(2)),
        "channels last": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(3),
    }
    path = tmp_path / "deep" / "epoch-00001.safetensors"
    write_checkpoint(path, tensors, {"epoch": "1", "model": "größer"})
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata == {"epoch": "1", "model": "größer"}
    assert checkpoint.path == path
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(checkpoint.tensors[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_tied_weights_and_views_of_one_storage_are_stored(tmp_path: Path) -> None:
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)})
    model["second"].weight = model["first"].weight
    whole = torch.arange(6.0)
    tensors = {**model.state_dict(), "whole": whole, "part": whole[2:4]}
    write_checkpoint(tmp_path / "tied.safetensors", tensors, {})
    found = read_checkpoint(tmp_path / "tied.safetensors").tensors
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("stored") / "a.safetensors"
    write_checkpoint(path, {"a": torch.arange(5.0), "b": torch.ones(2, 2)}, {"epoch": "3"})
    return path.read_bytes()


def test_a_checkpoint_that_breaks_off_anywhere_is_refused(tmp_path: Path, stored: bytes) -> None:
    path = tmp_path / "short.safetensors"
    for length in range(len(stored)):
        path.write_bytes(stored[:length])
        for read in READERS:
            with pytest.raises(MisuseError, match=r"short\.safetensors.*(damaged|empty)"):
                read(path)
    path.write_bytes(stored + b"more")
    for read in READERS:
        with pytest.raises(MisuseError, match="damaged"):
            read(path)


def test_a_damaged_header_is_refused_or_read_but_never_a_crash(tmp_path: Path, stored: bytes) -> None:
    path, dice, refused = tmp_path / "damaged.safetensors", random.Random(0), 0
    for _ in range(400):
        content = bytearray(stored)
        for _ in range(dice.randint(1, 3)):
            content[dice.randrange(len(content))] = dice.randrange(256)
        path.write_bytes(content)
        try:
            header = read_checkpoint(path).header
        except MisuseError:
            refused += 1
            with pytest.raises(MisuseError):
                read_header(path)
        else:
            assert read_header(path) == header
    assert refused > 250


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"null",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800000]}}',
        b'{"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [9223372036854775807, 9223372036854775807], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}',
        b"\xff\xfe",
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "liar.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    for read in READERS:
        with pytest.raises(MisuseError, match="damaged"):
            read(path)
    path.write_bytes((2**63).to_bytes(8, "little") + header)
    for read in READERS:
        with pytest.raises(MisuseError, match="damaged"):
            read(path)


class _Payload:
    """What a pickle would run on being loaded."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int, suffix: str) -> None:
    path, victim = tmp_path / f"evil{suffix}", tmp_path / "victim"
    path.write_bytes(pickle.dumps({"weight": _Payload(victim)}, protocol=protocol))
    with pytest.raises(MisuseError, match="cannot read checkpoint"):
        read_checkpoint(path)
    torch.save({"weight": _Payload(victim)}, path)
    with pytest.raises(MisuseError, match="cannot read checkpoint"):
        read_checkpoint(path)
    assert not victim.exists()
    torch.save(nn.Linear(1, 1), path)
    with pytest.raises(MisuseError, match="cannot read checkpoint"):
        read_checkpoint(path)


STATE = OrderedDict(weight=torch.arange(3.0), bias=torch.tensor(1.0))


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model_state_dict": STATE, "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-3}]}},
        {"model": STATE, "args": ["--lr", 3]},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_torchs_own_checkpoints_are_read(tmp_path: Path, content: Any, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(content, path)
    found = read_checkpoint(path).tensors
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    assert read_header(path).shapes == {name: tuple(tensor.shape) for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], torch.ones(2), {"epoch": 3}, {1: torch.ones(2)}, {"a": {"b": torch.ones(1)}}, "text"]
)
def test_a_torch_file_of_anything_else_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    for read in READERS:
        with pytest.raises(MisuseError, match="does not hold a state dict"):
            read(path)


def test_a_torch_file_that_breaks_off_is_refused(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pt", tmp_path / "short.pt"
    torch.save(STATE, whole)
    content = whole.read_bytes()
    for length in range(0, len(content), 31):
        path.write_bytes(content[:length])
        with pytest.raises(MisuseError, match=r"short\.pt.*(weights_only|empty)"):
            read_checkpoint(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.safetensors", tmp_path / "missing.pt", tmp_path):
        for read in READERS:
            with pytest.raises(MisuseError, match=r"no checkpoint|holds no weights"):
                read(path)


def test_a_checkpoint_of_the_same_content_has_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(3.0), "ä": torch.ones(2, 2, dtype=torch.float16), "a": torch.zeros(1)}
    metadata = {name: f"{name} é" for name in "zyxwvutsrqponml"}
    files = []
    for place, order in enumerate((metadata, dict(reversed(metadata.items())))):
        write_checkpoint(tmp_path / f"{place}.safetensors", tensors, order)
        files.append((tmp_path / f"{place}.safetensors").read_bytes())
    assert files[0] == files[1]
    stored = read_checkpoint(tmp_path / "0.safetensors")
    assert stored.metadata == metadata
    assert all(torch.equal(stored.tensors[name], tensor) for name, tensor in tensors.items())
    assert stored.tensors.keys() == tensors.keys()

"""Distributed checkpoints: what torch writes is read, in one part or in several, and the index runs nothing."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convexlab.checkpoints import load_weights, read_checkpoint, read_header
from convexlab.checkpoints.timing import Time
from convexlab.errors import MisuseError
from convexlab.probing.places import files_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Of torch's own modules, about one another.
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def _saved(path: Path, state: dict[str, Any]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That one process alone saves it.
        dcp.save(state, checkpoint_id=path)
    return path


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def state() -> dict[str, Tensor]:
    return dict(_model().state_dict())


@pytest.fixture
def folder(state: dict[str, Tensor], tmp_path: Path) -> Path:
    model = _model()
    model.load_state_dict(state)
    adam = torch.optim.Adam(model.parameters())
    return _saved(tmp_path / "step-40", {"model": state, "optim": adam.state_dict(), "epoch": 3})


def test_a_state_beside_an_optimiser_with_its_epoch(folder: Path, state: dict[str, Tensor]) -> None:
    stored, header = read_checkpoint(folder), read_header(folder)
    _same(stored.tensors, state)
    assert (stored.key, stored.time) == ("model", Time(3, 40))
    assert (header.shapes, header.real, header.time) == (stored.header.shapes, stored.header.real, stored.time)
    load_weights(_model(), stored)
    assert files_of([folder], None) == [folder]


def test_bare_and_nested_states(state: dict[str, Tensor], tmp_path: Path) -> None:
    _same(read_checkpoint(_saved(tmp_path / "bare", state)).tensors, state)
    nested = _saved(tmp_path / "nested", {"app": {"ours": state}})
    _same(read_checkpoint(nested, "app.ours").tensors, state)
    with pytest.raises(MisuseError, match="got 'app'"):
        read_checkpoint(nested)


def _changed(folder: Path, change: Callable[[Metadata], object]) -> None:
    index = folder / ".metadata"
    metadata = pickle.loads(index.read_bytes())
    change(metadata)
    index.write_bytes(pickle.dumps(metadata))


def _cut(folder: Path) -> None:
    """Store the first layer's weight in two parts, as two processes would."""

    def cut(metadata: Metadata) -> None:
        storage, size = metadata.storage_data, torch.Size([4])
        whole = storage.pop(MetadataIndex("model.0.weight", [0, 0]))
        with (folder / whole.relative_path).open("rb") as file:
            file.seek(whole.offset)
            weight = torch.load(io.BytesIO(file.read(whole.length)), weights_only=True)
        chunks = []
        for start, stop in ((0, 2), (2, 5)):
            name, offsets = f"__{start}_0.distcp.part", torch.Size([start, 0])
            torch.save(weight[start:stop].clone(), folder / name)
            length = (folder / name).stat().st_size
            storage[MetadataIndex("model.0.weight", offsets)] = type(whole)(name, 0, length)
            chunks.append(ChunkStorageMetadata(offsets, torch.Size([stop - start, *size])))
        metadata.state_dict_metadata["model.0.weight"].chunks = chunks

    _changed(folder, cut)


def test_a_tensor_in_several_parts(folder: Path, state: dict[str, Tensor]) -> None:
    _cut(folder)
    _same(read_checkpoint(folder).tensors, state)


def test_parts_that_are_missing_or_elsewhere(folder: Path) -> None:
    _cut(folder)
    original = (folder / ".metadata").read_bytes()
    changes: dict[str, Callable[[Metadata], object]] = {
        "do not cover it": lambda metadata: metadata.state_dict_metadata["model.0.weight"].chunks.pop(),
        "of another kind": lambda metadata: metadata.storage_data.update(
            {MetadataIndex("model.0.weight", [0, 0]): metadata.storage_data[MetadataIndex("model.0.bias", [0])]}
        ),
        "not in a plain file beside": lambda metadata: setattr(
            metadata.storage_data[MetadataIndex("model.0.weight", [0, 0])], "relative_path", "../secret"
        ),
        "FileNotFoundError": lambda metadata: setattr(
            metadata.storage_data[MetadataIndex("model.0.weight", [0, 0])], "relative_path", "gone"
        ),
    }
    for message, change in changes.items():
        (folder / ".metadata").write_bytes(original)
        _changed(folder, change)
        with pytest.raises(MisuseError, match=message):
            read_checkpoint(folder)


class _Call:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "function", [Path.touch, torch.load, torch.hub.load, eval, getattr, io.open, torch.serialization.load]
)
def test_an_index_that_would_run_something(function: Callable[..., object], folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (folder / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": _Call(function, mark)}))
    for read in (read_checkpoint, read_header):
        with pytest.raises(MisuseError, match=r"UnpicklingError: it names .*dcp_to_torch"):
            read(folder)
    assert not mark.exists()

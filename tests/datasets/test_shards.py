"""Tar files of samples, written by webdataset itself."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import convexlab as cl
from convexlab.datasets import reading
from convexlab.datasets.reading import read_ahead
from convexlab.datasets.shards import open_shards
from convexlab.errors import FailureError, MisuseError

webdataset = pytest.importorskip("webdataset")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of five and four samples; the k-th has the input (k, k, k) and the class k % 3."""
    for name, numbers in (("train-000.tar", range(5)), ("train-001.tar", range(5, 9))):
        with webdataset.TarWriter(str(tmp_path / name)) as writer:
            for k in numbers:
                writer.write({"__key__": f"{k:04}", "x.npy": np.full(3, k, np.float32), "cls": k % 3})
    return tmp_path


def test_batches_are_the_samples_in_order(folder: Path) -> None:
    for pattern in ("train-{000..001}.tar", "train-*.tar"):
        shards = open_shards(str(folder / pattern), 4)
        for _ in range(2):
            batches = list(shards)
            assert [len(y) for _, y in batches] == [4, 4, 1]
            x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
            assert torch.equal(x, torch.arange(9.0)[:, None].expand(9, 3))
            assert torch.equal(y, torch.arange(9) % 3)


def test_bytes_are_scaled_where_they_are_inputs_and_stay_where_they_are_targets(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "bytes.tar")) as writer:
        for k in range(3):
            part = np.array([51 * k], np.uint8)
            writer.write({"__key__": f"{k:04}", "x.npy": part, "y.npy": part})
    ((x, y),) = open_shards(str(tmp_path / "bytes.tar"), 4)
    assert torch.equal(x, torch.tensor([[0.0], [0.2], [0.4]]))
    assert torch.equal(y, torch.tensor([[0], [51], [102]], dtype=torch.uint8))


def test_a_loss_over_shards_is_that_over_the_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(str(folder / "train-*.tar"), 4)
    assert read_ahead(shards, torch.device("cpu")) is shards
    torch.manual_seed(0)
    model, criterion, v = torch.nn.Linear(3, 3), torch.nn.CrossEntropyLoss(), torch.ones(12)
    expected = cl.Objective(model, list(shards), criterion)
    assert torch.equal(cl.Objective(model, shards, criterion).hessian() @ v, expected.hessian() @ v)
    monkeypatch.setattr(reading, "available_memory", lambda device: 1)
    loader = read_ahead(shards, torch.device("cpu"))
    assert isinstance(loader, DataLoader)
    assert torch.equal(cl.Objective(model, loader, criterion).hvp(v), expected.hvp(v))


def test_nothing_is_drawn_from_pythons_generator(folder: Path) -> None:
    import random

    state = random.getstate()
    list(open_shards(str(folder / "train-*.tar"), 4))
    assert random.getstate() == state


def test_images_are_colours_from_0_to_1(tmp_path: Path) -> None:
    image = np.zeros((4, 5, 3), np.uint8)
    image[1, 2] = 255, 51, 0
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "one", "png": image, "y.npy": np.array([0.5, 2.0], np.float32)})
    ((x, y),) = open_shards(str(tmp_path / "a.tar"), 4)
    assert x.shape == (1, 3, 4, 5)
    assert x[0, :, 1, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert y.tolist() == [[0.5, 2.0]]


def test_what_is_pickled_in_a_shard_is_never_read(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return Path.write_text, (tmp_path / "harm", "done")

    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        x = io.BytesIO()
        np.save(x, np.zeros(2))
        writer.write({"__key__": "1", "x.npy": x.getvalue(), "cls": b"1", "pyd": pickle.dumps(Harm())})
    ((_, y),) = open_shards(str(tmp_path / "a.tar"), 4)
    assert y.tolist() == [1]
    assert not (tmp_path / "harm").exists()


def test_names_of_commands_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="no file at"):
        open_shards(f"pipe:touch {tmp_path / 'harm'}", 4)
    assert not (tmp_path / "harm").exists()


def test_without_the_library_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MisuseError, match=r"pip install 'convexlab\[webdataset\]'"):
        open_shards(str(folder / "train-*.tar"), 4)


def test_other_files_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"no file at .*expects tar files"):
        open_shards(str(folder / "test-*.tar"), 4)
    (tmp_path / "b.tar").write_text("no tar")
    with pytest.raises(MisuseError, match=r"b\.tar' does not fit"):
        open_shards(str(tmp_path / "b.tar"), 4)
    with webdataset.TarWriter(str(tmp_path / "c.tar")) as writer:
        writer.write({"__key__": "1", "txt": "a word", "cls": 1})
    with pytest.raises(MisuseError, match="hold cls, txt: webdataset:PATTERN expects"):
        open_shards(str(tmp_path / "c.tar"), 4)
    with tarfile.open(tmp_path / "d.tar", "w"):
        pass
    with pytest.raises(MisuseError, match=r"d\.tar' does not fit"):
        open_shards(str(tmp_path / "d.tar"), 4)


def test_a_shard_that_is_cut_off_is_a_failure(folder: Path) -> None:
    shards = open_shards(str(folder / "train-*.tar"), 4)
    second = folder / "train-001.tar"
    second.write_bytes(second.read_bytes()[:700])
    with pytest.raises(FailureError, match="cannot be read"):
        list(shards)


def test_a_shard_that_is_cut_off_between_samples_is_refused(folder: Path) -> None:
    second = folder / "train-001.tar"
    whole = second.read_bytes()
    with tarfile.open(second) as tar:
        between = tar.getmembers()[2].offset
    for end in (between, 300):
        second.write_bytes(whole[:end])
        with pytest.raises(MisuseError, match=r"train-001\.tar' does not fit: it is cut off"):
            open_shards(str(folder / "train-*.tar"), 4)


def test_every_shard_that_is_named_has_to_be_there(folder: Path) -> None:
    with pytest.raises(MisuseError, match=r"no file at '.*train-002\.tar'"):
        open_shards(str(folder / "train-{000..002}.tar"), 4)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"cls": b"1"}, r"the sample '2' of .*a\.tar' has no x\.npy"),
        ({"x.npy": b"no numbers", "cls": b"1"}, r"the sample '2' of .*a\.tar' cannot be decoded"),
        ({"x.npy": None, "cls": b"cat"}, r"the sample '2' of .*a\.tar' cannot be decoded: .*cat"),
    ],
)
def test_a_sample_of_other_parts_is_named(parts: dict[str, Any], message: str, tmp_path: Path) -> None:
    x = io.BytesIO()
    np.save(x, np.zeros(2))
    with webdataset.TarWriter(str(tmp_path / "a.tar"), encoder=False) as writer:
        writer.write({"__key__": "1", "x.npy": x.getvalue(), "cls": b"1"})
        writer.write({"__key__": "2"} | {key: part or x.getvalue() for key, part in parts.items()})
    with pytest.raises(FailureError, match=message):
        list(open_shards(str(tmp_path / "a.tar"), 4))


def test_samples_of_one_name_in_two_shards_are_two(tmp_path: Path) -> None:
    for k in range(2):
        with webdataset.TarWriter(str(tmp_path / f"{k}.tar")) as writer:
            writer.write({"__key__": "1", "x.npy": np.full(2, k, np.float32), "cls": k})
    ((x, y),) = open_shards(str(tmp_path / "{0..1}.tar"), 4)
    assert (x[:, 0].tolist(), y.tolist()) == ([0.0, 1.0], [0, 1])

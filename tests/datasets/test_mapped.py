"""Arrays on disk as batches: what they become, that they are not in memory, and what is refused."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import convexlab as cl
from convexlab.datasets import reading
from convexlab.datasets.mapped import MappedPairs, open_pairs
from convexlab.datasets.reading import read_ahead
from convexlab.errors import FailureError, MisuseError

CPU = torch.device("cpu")


def save(folder: Path, x: Any, y: Any) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "set", np.arange(44, dtype=np.float32).reshape(11, 4), np.arange(11) % 3)


def test_batches_are_the_rows_of_the_files_in_order(folder: Path) -> None:
    pairs = open_pairs(str(folder), 4)
    assert (len(pairs), pairs.examples, pairs.bytes) == (3, 11, 11 * (4 * 4 + 8))
    for _ in range(2):
        x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        assert torch.equal(x, torch.arange(44.0).reshape(11, 4))
        assert torch.equal(y, torch.arange(11) % 3)
    assert [len(y) for _, y in pairs] == [4, 4, 3]
    assert torch.equal(pairs[-1][1], torch.tensor([2, 0, 1]))
    x, y = pairs.of(torch.tensor([9, 0]))
    assert torch.equal(x[:, 0], torch.tensor([0.0, 36.0]))
    assert torch.equal(y, torch.tensor([0, 0]))


def test_two_files_may_be_named(folder: Path) -> None:
    pairs = open_pairs(f"{folder / 'x.npy'},{folder / 'y.npy'}", 100)
    assert torch.equal(pairs[0][0], open_pairs(str(folder), 100)[0][0])


@pytest.mark.parametrize(
    ("stored", "dtype", "values"),
    [
        (np.array([[0], [255]], np.uint8), torch.float32, [[0.0], [1.0]]),
        (np.array([[0], [7]], np.int16), torch.int64, [[0], [7]]),
        (np.array([[0], [1]], bool), torch.int64, [[0], [1]]),
        (np.array([[0.5], [2]], ">f4"), torch.float32, [[0.5], [2.0]]),
        (np.array([[0.5], [2]], np.float64), torch.float64, [[0.5], [2.0]]),
        (np.asfortranarray([[0.5, 1], [2, 3]]), torch.float64, [[0.5, 1.0], [2.0, 3.0]]),
    ],
)
def test_what_types_become(stored: Any, dtype: torch.dtype, values: Any, tmp_path: Path) -> None:
    x, y = open_pairs(str(save(tmp_path / "set", stored, np.array([1, 0], np.uint8))), 2)[0]
    assert x.dtype == dtype
    assert x.tolist() == values
    assert y.tolist() == [1, 0]


def test_a_sample_is_spread_over_the_files(folder: Path) -> None:
    sample = open_pairs(str(folder), 2).sample(5, seed=1)
    rows = torch.cat([x for x, _ in sample])[:, 0] / 4
    assert sample.examples == len(rows) == 5
    stretches = torch.arange(6) * 11 // 5
    assert bool((stretches[:-1] <= rows).all() & (rows < stretches[1:]).all())
    assert torch.equal(torch.cat([x for x, _ in open_pairs(str(folder), 2).sample(5, seed=1)])[:, 0] / 4, rows)
    assert torch.equal(sample.of(torch.tensor([4, 1]))[0][:, 0] / 4, rows[[1, 4]])
    for size in (0, 12):
        with pytest.raises(MisuseError, match="must be from 1 to 11"):
            open_pairs(str(folder), 2).sample(size, seed=0)


def test_another_process_opens_the_files_itself(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", np.zeros((4000, 100), np.float32), np.zeros(4000))
    pairs = open_pairs(str(folder), 500)
    assert len(pairs[0][0]) == 500
    stored = pickle.dumps(pairs)
    assert len(stored) < 2000 < pairs.bytes
    assert len(pickle.loads(stored)[7][1]) == 500


def test_a_process_reads_ahead_where_the_files_are_larger_than_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = open_pairs(str(folder), 4)
    assert read_ahead(pairs, CPU) is pairs
    monkeypatch.setattr(reading, "available_memory", lambda device: pairs.bytes // 2)
    loader = read_ahead(pairs, CPU)
    assert isinstance(loader, DataLoader)
    assert (loader.num_workers, loader.pin_memory) == (1, False)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    criterion = torch.nn.CrossEntropyLoss()
    ahead, at_once = (cl.Objective(model, data, criterion) for data in (loader, list(pairs)))
    v = torch.ones(15)
    # The same numbers, also where the first batch alone is looked at meanwhile.
    assert torch.equal(ahead.hvp(v), at_once.hvp(v))
    operator = ahead.hessian()
    operator.prove()  # type: ignore[attr-defined]
    assert torch.equal(operator @ v, at_once.hessian() @ v)
    assert ahead.value() == at_once.value()


class Counted:
    """Batches that are made when they are asked for, and how many of them are alive then."""

    def __init__(self) -> None:
        self.most, self._alive = 0, list[weakref.ref[torch.Tensor]]()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for k in range(6):
            self._alive = [known for known in self._alive if known() is not None]
            self.most = max(self.most, len(self._alive))
            x = torch.full((4, 4), float(k))
            self._alive.append(weakref.ref(x))
            yield x, torch.arange(4) % 3


def test_a_loss_holds_one_batch_and_the_graphs_that_memory_has_room_for() -> None:
    data = Counted()
    objective = cl.Objective(torch.nn.Linear(4, 3), data, torch.nn.CrossEntropyLoss(), memory_budget=1)
    operator = objective.hessian()
    for evaluate in (objective.value, objective.gradient, lambda: operator @ torch.ones(15)):
        data.most = 0
        evaluate()
        # When the next one is made, that which was evaluated, and at most the one before.
        assert data.most <= 2
    graph_bytes = operator.graph_bytes()  # type: ignore[attr-defined]
    roomy = cl.Objective(torch.nn.Linear(4, 3), data, torch.nn.CrossEntropyLoss(), memory_budget=3 * graph_bytes)
    roomy.hessian() @ torch.ones(15)
    assert 2 < data.most <= 3 + 2


@pytest.mark.gpu
def test_an_accelerator_is_fed_from_pinned_memory(folder: Path) -> None:
    device = torch.accelerator.current_accelerator()
    loader = read_ahead(open_pairs(str(folder), 4), device)
    assert isinstance(loader, DataLoader)
    assert (loader.num_workers, loader.pin_memory) == (2, device.type == "cuda")
    model = torch.nn.Linear(4, 3)
    expected = cl.Objective(model, list(open_pairs(str(folder), 4)), torch.nn.CrossEntropyLoss()).value()
    value = cl.Objective(model.to(device), loader, torch.nn.CrossEntropyLoss()).value()
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.zeros(4), "expected one target an input, got 3 inputs .* and 4 targets"),
        (np.array(["a", "b"]), np.zeros(2), "one array of real numbers of at most 64 bits, got type <U1"),
        (np.zeros((0, 2)), np.zeros(0), "at least one example"),
        (np.array(1.0), np.zeros(1), "at least one example, got shape"),
        (np.array([object()]), np.zeros(1), "does not fit"),
        (np.zeros(2, np.longdouble), np.zeros(2), "at most 64 bits"),
    ],
)
def test_other_arrays_are_refused(x: Any, y: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=message):
        open_pairs(str(save(tmp_path / "set", x, y)), 2)


def test_files_that_are_not_there_or_damaged_are_named(folder: Path, tmp_path: Path) -> None:
    for place, message in (("", "expects a folder"), ("a,b,c", "expects a folder"), (str(tmp_path), "x.npy' *; npy")):
        with pytest.raises(MisuseError, match=message):
            open_pairs(place, 2)
    whole = (folder / "x.npy").read_bytes()
    for damaged in (whole[:-8], whole[:20], b"", b"no numbers"):
        (folder / "x.npy").write_bytes(damaged)
        with pytest.raises(MisuseError, match=r"x\.npy' does not fit"):
            open_pairs(str(folder), 2)
    with (folder / "x.npy").open("wb") as file:
        np.savez(file, x=np.zeros(3))
    with pytest.raises(MisuseError, match="an archive; that goes by --dataset npz:FILE"):
        open_pairs(str(folder), 2)


def test_files_that_are_gone_where_a_process_opens_them_are_a_failure(folder: Path) -> None:
    pairs = pickle.dumps(open_pairs(str(folder), 2))
    (folder / "y.npy").unlink()
    with pytest.raises(FailureError, match=r"can no longer be read: .*y\.npy"):
        next(iter(pickle.loads(pairs)))


def test_pairs_are_a_dataset_of_torch(folder: Path) -> None:
    pairs = MappedPairs(folder / "x.npy", folder / "y.npy", 4)
    batches = list(DataLoader(pairs, batch_size=None))
    assert [tuple(x.shape) for x, _ in batches] == [(4, 4), (4, 4), (3, 4)]

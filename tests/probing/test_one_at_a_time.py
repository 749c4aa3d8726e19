"""However many checkpoints are probed, one is in memory; and vectors of which a part is."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import convexlab as cl
from convexlab.checkpoints import Checkpoint, CheckpointHeader, reread, write_checkpoint
from convexlab.probing import measuring, path, vectors
from convexlab.probing.vectors import StoredVectors

FACTORY = """
import torch
from torch import nn
import convexlab as cl

class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(5))

def bowl():
    return cl.Objective.from_batch_loss(Point(), [torch.ones(1)], lambda model, a: (a * model.x.square()).sum())
"""
QUICK: dict[str, Any] = {"density_probes": 1, "max_steps": 2, "density_steps": 2, "slice_points": 0, "plane_points": 3}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "factory.py").write_text(FACTORY, encoding="utf-8")
    said = {"objective": f"{tmp_path / 'factory.py'}:bowl"}
    walk = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).cumsum(dim=0)
    files = [tmp_path / f"epoch-{k:05d}.safetensors" for k in range(30)]
    for file, weights in zip(files, walk, strict=True):
        write_checkpoint(file, {"x": weights}, said)
    return files


def test_a_probe_holds_one_checkpoint_at_a_time(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[weakref.ref[Checkpoint]] = []
    tensors: list[weakref.ref[torch.Tensor]] = []
    held = []

    def spy(header: CheckpointHeader) -> Checkpoint:
        held.append(sum(known() is not None for known in [*read, *tensors]))
        checkpoint = reread(header)
        read.append(weakref.ref(checkpoint))
        tensors.extend(map(weakref.ref, checkpoint.tensors.values()))
        return checkpoint

    for module in (measuring, path):
        monkeypatch.setattr(module, "reread", spy)
    result = cl.probe(files, out=tmp_path / "out", trust=True, **QUICK)
    assert len(result.rows) == 30
    assert result.run.landscape_path.is_file()
    # Once for its row, once for the digest of the path, once for its place on the plane; and the last one again.
    assert len(held) == 3 * 30 + 1
    assert set(held) == {0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("in_memory", [16, 2**20])
def test_stored_vectors_come_back_in_parts(
    dtype: torch.dtype, in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "_IN_MEMORY", in_memory)
    matrix = torch.randn(4, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    with StoredVectors(tmp_path) as stored:
        for row in matrix:
            stored.append(row)
        assert (len(stored), stored.size) == (4, 11)
        assert torch.equal(stored.parts(0, 11), matrix)
        assert torch.equal(stored.parts(3, 7), matrix[:, 3:7])
        assert torch.equal(stored.part(2, 5, 6), matrix[2, 5:6])
    assert not list(tmp_path.iterdir())

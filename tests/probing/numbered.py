"""Five checkpoints that differ so that a factory's loss can tell which one it is at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from convexlab.checkpoints import write_checkpoint

QUICK: dict[str, Any] = {"max_steps": 6, "density_steps": 4, "slice_points": 3, "plane_points": 3, "trust": True}
"""Options of their probes."""


def write_numbered(folder: Path, factory: str, dtype: torch.dtype = torch.float32) -> list[Path]:
    """Write ``factory.py``, and five checkpoints of its network: 3, 5 and 1 units; the last bias of the k-th is k."""
    (folder / "factory.py").write_text(factory, encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    files = [folder / f"epoch-{k:05d}.safetensors" for k in range(5)]
    for k, file in enumerate(files):
        sizes = {"0.weight": (5, 3), "0.bias": (5,), "2.weight": (1, 5)}
        weights = {name: torch.randn(size, generator=generator).to(dtype) for name, size in sizes.items()}
        write_checkpoint(file, weights | {"2.bias": torch.full((1,), float(k), dtype=dtype)}, {})
    return files

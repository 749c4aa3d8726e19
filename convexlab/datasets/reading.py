"""Batches from files, read ahead of the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from convexlab.datasets.mapped import MappedPairs
from convexlab.datasets.shards import Shards
from convexlab.machine.memory import available_memory

__all__ = ["read_ahead"]

# Processes that read for an accelerator, and batches that each has ready.
_READERS, _AHEAD = 2, 4


def read_ahead(batches: MappedPairs | Shards, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    """Return batches as a loss goes through them, read ahead of it where that pays.

    For an accelerator processes read ahead into pinned memory, from where they are copied while it calculates. On the
    CPU these would compete with the loss for the processors. One worker reads ahead where the files are larger than
    free memory, and so come from the disk every time.
    """
    on_host, free = device.type == "cpu", available_memory(device)
    if on_host and (free is None or batches.bytes < free):
        return batches
    readers = min(1 if on_host else _READERS, batches.most_readers)
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=readers,
        pin_memory=device.type == "cuda",
        prefetch_factor=_AHEAD,
        persistent_workers=True,
    )

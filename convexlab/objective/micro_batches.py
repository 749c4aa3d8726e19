"""How many examples are evaluated at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

from convexlab.machine.memory import room_for_graphs
from convexlab.objective.batches import common_rows

__all__ = ["automatic_size"]

# Larger micro-batches fall out of the processor's cache; see benchmarks/README.md for the measurement.
_CPU_MICRO_BATCH = 128
# A gradient graph that can be differentiated again holds about this many times what one backward pass needs.
_SECOND_ORDER_FACTOR = 3
# Examples in the trial from which the memory of a micro-batch is extrapolated.
_TRIAL_EXAMPLES = 8


def automatic_size(
    batch: Any, device: torch.device, memory_budget: int | None, graph_bytes: Callable[[Any], int]
) -> int | None:
    """Return how many examples of such a batch fit into the cache of a CPU and into the memory budget.

    Args:
        batch: one of the batches.
        device: where the loss is evaluated.
        memory_budget: bytes that the graphs of a product may take; None sets no limit on a CPU, and is half of what is
            free elsewhere.
        graph_bytes: returns what the graph of the loss of a few examples takes for one backward pass.

    Returns:
        None where nothing sets a limit.
    """
    rows, on_host = common_rows(batch), device.type == "cpu"
    size: int | None = _CPU_MICRO_BATCH if on_host else rows
    # On an accelerator nothing but its memory sets a limit.
    budget = memory_budget if on_host else room_for_graphs(device, memory_budget)
    if budget is None or rows is None or size is None:
        return size
    trial_rows = min(rows, _TRIAL_EXAMPLES)
    needed = graph_bytes(tree_map(lambda item: item[:trial_rows], batch))
    fits = int(budget * trial_rows / max(1, needed * _SECOND_ORDER_FACTOR))
    if fits >= size:
        return size
    # A power of two, so that results do not depend on every byte that happens to be free.
    return 1 << max(0, fits.bit_length() - 1)

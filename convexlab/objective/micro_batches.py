"""How many examples are evaluated at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from convexlab.errors import MisuseError
from convexlab.machine.memory import is_out_of_memory, room_for_graphs
from convexlab.objective.batches import common_rows, mapped

__all__ = ["automatic_size", "require_mean_over_rows"]

# Larger micro-batches fall out of the processor's cache; see benchmarks/README.md for the measurement.
_CPU_MICRO_BATCH = 128
# A gradient graph that can be differentiated again holds about this many times what one backward pass needs.
_SECOND_ORDER_FACTOR = 3
# Rows in the trial of whether a loss is a mean over rows.
_TRIAL_ROWS = 16
# By how much, relatively, the loss of these rows may differ from the mean over their two halves.
_MEAN_TOLERANCE = 1e-3
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
    needed = graph_bytes(mapped(lambda item: item[:trial_rows], batch))
    fits = int(budget * trial_rows / max(1, needed * _SECOND_ORDER_FACTOR))
    if fits >= size:
        return size
    # A power of two, so that results do not depend on every byte that happens to be free.
    return 1 << max(0, fits.bit_length() - 1)


def require_mean_over_rows(
    batch: Any, value: Callable[[Any], float], weight: Callable[[Any], float], rounding: float
) -> None:
    """Raise a MisuseError unless the loss of a few rows of ``batch`` is the weighted mean over their two halves.

    A loss that draws at random is not judged: the halves would draw other numbers.

    Args:
        batch: of several rows.
        value: returns the loss of a batch.
        weight: returns what a batch counts in the mean.
        rounding: ε of the loss.
    """
    rows = min(common_rows(batch) or 0, _TRIAL_ROWS)
    middle = rows // 2
    generator = torch.default_generator
    before = generator.get_state()
    cuts = ((0, rows), (0, middle), (middle, rows))
    pieces = [mapped(lambda item, start=start, stop=stop: item[start:stop], batch) for start, stop in cuts]
    weights = [weight(piece) for piece in pieces]
    advice = (
        "It cannot be cut into micro-batches: keep batches whole with micro_batch=None, and bring each row of the loss "
        "together with the rows that it needs."
    )
    try:
        whole, *values = (value(piece) if share else 0.0 for piece, share in zip(pieces, weights, strict=True))
    except (RuntimeError, ValueError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise MisuseError(
            f"the loss of {rows} rows of a batch alone cannot be evaluated ({error}). {advice}"
        ) from error
    if not torch.equal(generator.get_state(), before):
        return
    mean = sum(share * part for share, part in zip(weights[1:], values, strict=True)) / (sum(weights[1:]) or 1.0)
    scale = max(abs(whole), *map(abs, values))
    if abs(whole - mean) > (_MEAN_TOLERANCE + 4 * rounding) * scale:  # False where one of them is not finite.
        raise MisuseError(
            f"the loss of {rows} rows of a batch is {whole:.6g}, but the mean over their two halves is {mean:.6g}: it "
            f"is no mean over rows. {advice}"
        )
